"""Relevance to a question as a picture, what is predicted of it, and what is kept by both."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from foveate import drawing, relevance
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue
from foveate.evaluation.relevance_map import RelevanceMap
from foveate.evaluation.settings import Setting
from foveate.predicting import RelevancePredictor
from foveate.training.relevance import label, predictions

_SIDE = 192  # pixels of a panel
_QUESTIONS = 2  # of each dialogue, each asked first
_COLUMNS = 2  # before what is kept: relevance, and the label made of it
_WIDTH, _LONGEST = 26, 16  # letters of a line, words of an answer


def draw(
    rows: Sequence[Sequence[Setting]],
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
) -> Any:
    """A figure: of each question, and each side, a row of pictures.

    Args:
        rows: each a side, at several budgets.
        model, processor: as loaded.
        dialogues: about one picture, or one video, each.
    """
    from matplotlib.figure import Figure

    asked = [
        dataclasses.replace(each, turns=(turn,))
        for each in dialogues
        for turn in each.turns[:_QUESTIONS]
    ]
    columns = 1 + _COLUMNS + max(map(len, rows))
    height = 1.75 * len(asked) * len(rows)
    figure = Figure(figsize=(1.6 * columns, height), layout="constrained")
    grid = figure.subplots(len(asked) * len(rows), columns, squeeze=False)
    for axes in grid.flatten():
        axes.set_axis_off()
    lines = iter(grid)
    for each in asked:
        batch = Batch(model, processor, [each], [each.load()], frozenset(), _LONGEST)
        (answer,) = batch.converse(None)[0]["answers"]
        for number, row in enumerate(rows):
            panels = iter(next(lines))
            scene = next(panels)
            if number == 0:
                _show(scene, drawing.sheet(_shown(each)), f"{each.turns[0].question} {answer}")
            for title, picture in _pictures(batch, row):
                axes = next(panels)
                if picture is not None:
                    _show(axes, picture, title)
    return figure


def _pictures(batch: Batch, row: Sequence[Setting]) -> Iterator[tuple[str, Image.Image | None]]:
    """What is drawn of one side; None where there is nothing of the kind."""
    first = row[0]
    kept = [_item(batch, setting) for setting in row]
    shown = _frames(batch.dialogues[0])

    def heat(values: Tensor) -> Image.Image:
        return drawing.bare(drawing.heat(shown, kept[0].grids, values.tolist(), side=_SIDE))

    values = _values(batch, first)
    yield first.label, None if values is None else heat(values)
    is_label = values is not None and isinstance(first, RelevanceMap)
    yield "its label", heat(label(values)) if is_label and values is not None else None
    for setting, item in zip(row, kept, strict=True):
        picture = drawing.draw(shown, item, title="", side=_SIDE)
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


def _item(batch: Batch, setting: Setting) -> Any:
    """What a run says of the one picture."""
    import torch

    with torch.no_grad(), batch.attach(setting, [0], batch.told(setting)) as run:
        batch.model(**batch.inputs([0], 0, [[]]), use_cache=False)
        (item,) = run.items
    return item


def _frames(dialogue: Dialogue) -> Image.Image | list[Image.Image]:
    loaded = dialogue.load()
    return loaded if dialogue.is_video else loaded[0]


def _shown(dialogue: Dialogue) -> list[Image.Image]:
    """The picture as it is, or the frames."""
    return [drawing.enlarged(each, _SIDE) for each in dialogue.load()]


def _show(axes: Any, picture: Image.Image, title: str) -> None:
    axes.imshow(np.asarray(picture))
    axes.set_title(textwrap.fill(title, _WIDTH), fontsize=7)
