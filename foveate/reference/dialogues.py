"""Dialogues to learn from: questions of weighted kinds, and descriptions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foveate.reference.captions import describe, listing, relate, tally
from foveate.reference.layout import Layout
from foveate.reference.questions import KINDS, TURNS, Question, ask

# How often each kind is asked in training; the slowly learned ones more often. Evaluation asks all
# kinds equally often.
_WEIGHTS = dict.fromkeys(KINDS, 1.0) | {
    **{"number": 0.7, "letter": 0.7, "size": 0.8, "pattern": 0.8},
    **{"relation": 2.0, "count": 1.5, "extreme": 1.5},
}


def training_dialogues(
    layout: Layout, rng: np.random.Generator, count: int, captions: float
) -> list[list[Question]]:
    """`count` dialogues about one scene; a share of them are descriptions.

    Args:
        layout: the scene.
        rng: the step's random numbers.
        count: how many dialogues.
        captions: the share of dialogues that are descriptions.
    """
    chances = np.array(list(_WEIGHTS.values())) / sum(_WEIGHTS.values())

    def questions() -> list[Question]:
        kinds = rng.choice(KINDS, TURNS, replace=False, p=chances)
        return [asked for kind in kinds if (asked := ask(str(kind), layout, rng))]

    return mixed(rng, count, captions, questions, lambda: _captions(layout, rng))


def mixed(
    rng: np.random.Generator,
    count: int,
    captions: float,
    questions: Callable[[], list[Question]],
    descriptions: Callable[[], list[Question]],
) -> list[list[Question]]:
    """`count` dialogues, `captions` of them descriptions; empty ones are drawn again."""
    dialogues: list[list[Question]] = []
    while len(dialogues) < count:
        if turns := descriptions() if rng.random() < captions else questions():
            dialogues.append(turns)
    return dialogues


def _captions(layout: Layout, rng: np.random.Generator) -> list[Question]:
    form = rng.random()
    if form < 0.15:
        return [listing(layout, rng)]
    if form < 0.25:
        return [tally(layout, rng) for _ in range(2)]
    ask_one = relate if form < 0.5 else describe
    return [asked for _ in range(TURNS) if (asked := ask_one(layout, rng))]
