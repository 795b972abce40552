"""Trains what a page of claims needs to have trained: one road for every learned method.

A method's training is a function in `TRAININGS`; everything else, where it is stored, what it
learns from, what is known of it, is the same for all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.claims.kinds import KINDS
from foveate import saving
from foveate.errors import UnknownName
from foveate.evaluation.data import Dialogue
from foveate.evaluation.variants import Trained
from foveate.fingerprint import of_bits
from foveate.relevance import Rule
from foveate.training import data, relevance
from foveate.training.learning import FOLDER, random_start, train
from foveate.training.pairs import Pairs
from foveate.training.recipe import Recipe
from foveate.training.start import pca_start
from foveate.training.teacher import Teacher

HELD = 0.1  # of the dialogues, to measure on
NOTED = "trained.json"
# What a recipe may say of the labels beside the training's own numbers.
_RULE = tuple(field.name for field in dataclasses.fields(Rule))
_STARTS = {"random": random_start, "pca": pca_start}


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What one training is given.

    Attributes:
        wanted: the variant's training.
        model, processor: as loaded.
        learn, held: dialogues to learn from, and to measure on.
        out: folder of the training; the compressor comes into its folder `FOLDER`.
        cache: folder that all trainings share, for what depends on the model and dialogues alone.
        tell: told how far it is.
    """

    wanted: Trained
    model: Any
    processor: Any
    learn: Sequence[Dialogue]
    held: Sequence[Dialogue]
    out: Path
    cache: Path
    tell: Callable[[Any], None]

    @property
    def facts(self) -> dict[str, Any]:
        """What the record shall say of the variant."""
        return {"variant": self.wanted.identity}


def _metacompress(lesson: Lesson) -> None:
    variant, seed = lesson.wanted.variant, lesson.wanted.seed
    assert variant is not None
    start = dict(variant.start)
    kind = start.pop("kind", "random")
    if kind not in _STARTS:
        raise UnknownName("start", kind, _STARTS)
    begin: Any = _STARTS[kind]
    recipe = dict(variant.recipe)
    answers = recipe.pop("answers", "generated")
    train(
        lesson.wanted.make(),  # type: ignore[arg-type]  # a variant's method is a learned one
        Teacher(lesson.model, lesson.processor, lesson.cache / "teacher", answers=answers),
        lesson.learn,
        lesson.out,
        Recipe(**{"evaluate_every": 10**9, **recipe, "seed": seed}),
        validation=lesson.held,
        start=begin(seed) if kind == "random" else begin(**start),
        facts=lesson.facts,
        tensorboard=False,
        batch_size=20,
        accuracy=0,  # the claims ask more, and of other dialogues
        tell=lesson.tell,
    )


def _relevance(lesson: Lesson) -> None:
    variant = lesson.wanted.variant
    assert variant is not None
    method: Any = lesson.wanted.make()  # a variant's method is a learned one
    recipe = dict(variant.recipe)
    rule = Rule(**{name: recipe.pop(name) for name in _RULE if name in recipe})
    pairs = Pairs(lesson.model, lesson.processor, lesson.cache / "pairs", method, rule=rule)
    pairs.fill([*lesson.learn, *lesson.held])
    relevance.train(
        method,
        lesson.model,
        pairs.read(lesson.learn),
        lesson.out,
        relevance.Settings(**recipe, seed=lesson.wanted.seed),
        validation=pairs.read(lesson.held),
        facts=lesson.facts | {"rule": f"{rule}"},
        tensorboard=False,
        tell=lesson.tell,
    )


# Catalogued name of a learned method -> its training: it goes on where it was interrupted, and does
# nothing if the compressor is there.
TRAININGS: dict[str, Callable[[Lesson], None]] = {
    "metacompress": _metacompress,
    "relevance": _relevance,
    "seek": _relevance,
}


def place(folder: Path, wanted: Trained) -> Path:
    """Where one training of a model is."""
    assert wanted.variant is not None
    return folder / f"{wanted.variant.setting.method}-{wanted.seed}-{wanted.identity}"


def prepare(
    settings: Iterable[Trained],
    model: Any,
    processor: Any,
    home: str,
    folder: Path,
    cache: Path,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Train for a model what is not trained yet.

    Args:
        settings: what will be asked.
        model, processor: as loaded.
        home: the kind of dialogues that the model was trained on.
        folder: of the model's trainings.
        cache: that trainings share, of all models.
        progress: where to show how far it is.

    Returns:
        Of each training, by its identity: the variant's name, the seed, what was measured, and a
        fingerprint of the parameters. It is noted in the folder, too.
    """
    wanted = {each.identity: each for each in settings}
    drawn: dict[tuple[str, int], tuple[list[Dialogue], list[Dialogue]]] = {}
    noted: dict[str, dict[str, Any]] = {}
    task = None if progress is None else progress.add_task("training", total=len(wanted))
    for identity, each in wanted.items():
        variant, out = each.variant, place(folder, each)
        assert variant is not None
        if each.method not in TRAININGS:
            raise UnknownName("method to train", each.method, TRAININGS)
        saved = out / FOLDER

        def tell(now: Any, name: str = f"{each.label} {each.seed}") -> None:
            if progress is not None and task is not None:
                progress.update(task, description=f"{name}: step {now.step} of {now.steps}")

        if not (saved / saving.FILE).is_file():
            what = variant.data or home, variant.dialogues
            if what not in drawn:
                drawn[what] = data.split(KINDS[what[0]].examples(what[1]), HELD, 0)
            learn, held = drawn[what]
            TRAININGS[each.method](Lesson(each, model, processor, learn, held, out, cache, tell))
        found: Any = saving.load(saved, model=model)
        told = json.loads((saved / saving.FILE).read_text())["training"]
        noted[identity] = {
            "name": each.label,
            "seed": each.seed,
            "measured": told["measured"],
            "weights": of_bits(found.net),
        }
        if progress is not None and task is not None:
            progress.advance(task)
    if task is not None and progress is not None:
        progress.remove_task(task)
    return noted
