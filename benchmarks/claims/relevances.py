"""Relevance to a question as a picture, what is predicted of it, and what is kept by both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from foveate import drawing, relevance
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue
from foveate.evaluation.relevance_map import RelevanceMap
from foveate.evaluation.settings import Setting
from foveate.predicting import RelevancePredictor
from foveate.training.pairs import predictions
from foveate.training.relevance import label

_SIDE, _FRAME = 192, 64  # pixels of a picture, and of each frame of a video
_QUESTIONS = 2  # of each dialogue, each asked first
_LONGEST = 16  # words of an answer


def draw(
    rows: Sequence[Sequence[Setting]],
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
) -> Image.Image:
    """Of each question the picture, and of each side what it makes of it, one below the other.

    Args:
        rows: each a side, at several budgets.
        model, processor: as loaded.
        dialogues: about one picture, or one video, each.
    """
    asked = [
        dataclasses.replace(each, turns=(turn,))
        for each in dialogues
        for turn in each.turns[:_QUESTIONS]
    ]
    return drawing.sheet([_block(rows, model, processor, each) for each in asked], columns=1)


def _block(
    rows: Sequence[Sequence[Setting]], model: Any, processor: Any, dialogue: Dialogue
) -> Image.Image:
    """Everything about one question."""
    batch = Batch(model, processor, [dialogue], [dialogue.load()], frozenset(), _LONGEST)
    (answer,) = batch.converse(None)[0]["answers"]
    lines = []
    for row in rows:
        titles, pictures = zip(*_pictures(batch, row), strict=True)
        lines.append(drawing.sheet(pictures, titles, columns=len(pictures)))
    return drawing.sheet(lines, [f"{dialogue.turns[0].question} {answer}"], columns=1)


def _pictures(batch: Batch, row: Sequence[Setting]) -> Iterator[tuple[str, Image.Image]]:
    """What is drawn of one side: relevance or what it predicts, and what it keeps at each budget.

    Where there is no relevance the picture is as it is.
    """
    first, (dialogue,), (frames,) = row[0], batch.dialogues, batch.pictures
    shown = frames if dialogue.is_video else frames[0]
    side = _FRAME if dialogue.is_video else _SIDE
    kept = [_item(batch, setting) for setting in row]
    values = _values(batch, first)

    def heat(found: Tensor) -> Image.Image:
        return drawing.bare(drawing.heat(shown, kept[0].grids, found.tolist(), side=side))

    nothing = torch.zeros(kept[0].n)
    yield first.label if values is not None else "", heat(nothing if values is None else values)
    if isinstance(first, RelevanceMap) and values is not None:
        yield "its label", heat(label(values))
    else:
        yield "", heat(nothing)
    for setting, item in zip(row, kept, strict=True):
        picture = drawing.draw(shown, item, title="", side=side)
        yield f"{first.label}, {setting.budget}", drawing.bare(picture)


def _values(batch: Batch, setting: Setting) -> Tensor | None:
    """Relevance, or what is predicted of it; None of a method that predicts none."""
    inputs = batch.inputs([0], 0, [[]])
    if isinstance(setting, RelevanceMap):
        return relevance.explain(batch.model, inputs, rule=setting.rule())[0]
    method = setting.make()
    if isinstance(method, RelevancePredictor):
        return predictions(method, batch.model, inputs, batch.processor)[0]
    return None


@torch.no_grad()
def _item(batch: Batch, setting: Setting) -> Any:
    """What a run says of the one picture."""
    with batch.attach(setting, [0], batch.told(setting)) as run:
        batch.model(**batch.inputs([0], 0, [[]]), use_cache=False)
        (item,) = run.items
    return item
