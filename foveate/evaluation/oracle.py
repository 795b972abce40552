"""The oracle: no method, but what one could do that knew where a picture shows something.

It is told the drawn scene's ground truth, so it exists for the shipped scenes alone. It does not
know the question: with fewer tokens than the objects cover it spreads over all of them, so it is
no upper bound for methods that read what is asked.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from foveate import ops
from foveate.attach.prompt import Placed
from foveate.compressor import Grid, resolve_keep
from foveate.errors import InputError
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import Setting
from foveate.evaluation.told import of_pictures
from foveate.mapping import Mapping

NAME = "oracle"
# A slot shows something if at least this share of its pixels does, as in `scenes.patch_mask`.
_COVERED = 1 / 8


@dataclasses.dataclass(frozen=True)
class Oracle(Setting):
    """Objects' patches first, evenly chosen if they are too many, else background filled evenly.

    It is attached as `uniform` is, and told what to keep.
    """

    method: str = "uniform"
    note: ClassVar[str] = (
        "no method; it is told where the picture shows something, not what is asked."
    )

    @property
    def label(self) -> str:
        """Its name in tables."""
        return NAME

    @property
    def key(self) -> str:
        """What stored answers go by."""
        return f"{NAME} {self.budget}"

    def told(
        self,
        model: Any,
        dialogues: Sequence[Dialogue],
        turn: int,
        inputs: Callable[[], dict[str, Any]],
        max_new_tokens: int,
    ) -> list[list[list[Mapping]]]:
        """What to keep of the pictures of each dialogue; the model is not run."""
        keep = self.keep
        assert keep is not None

        def chosen(dialogue: Dialogue, picture: Placed) -> Mapping:
            count = resolve_keep(keep, picture.layout.n)
            return choose(ground_truth(dialogue), picture.layout.grids, count)

        return of_pictures(model, inputs(), dialogues, chosen)


def check(data: Sequence[Dialogue]) -> None:
    """Raise an InputError unless all dialogues are about shipped scenes."""
    if any(each.scene is None for each in data):
        raise InputError(
            "The oracle is told what a picture shows, which is known of the shipped scenes only.\n"
            "Leave it out, or compare on the scenes."
        )


def ground_truth(dialogue: Dialogue) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a dialogue's scene show an object or a plate.

    Raises:
        InputError: it is not about one of the shipped scenes.
    """
    from foveate.reference.scenes import scene

    check([dialogue])
    assert dialogue.scene is not None
    found: np.ndarray = scene(*dialogue.scene).owners > 0
    return found


def asked_about(dialogue: Dialogue, turn: int) -> list[Bool[np.ndarray, "h w"]]:
    """Which pixels show each object or plate that a question names, or is answered from.

    Args:
        dialogue: as `from_reference` gives it.
        turn: of the question, counted from 0.

    Returns:
        One mask an object; none where the question is about nothing that is there.

    Raises:
        InputError: it is not about one of the shipped scenes.
    """
    from foveate.reference.scenes import dialogue as questions
    from foveate.reference.scenes import scene

    check([dialogue])
    assert dialogue.scene is not None
    drawn = scene(*dialogue.scene)
    question = questions(drawn, dialogue.scene[0])[turn]
    owners = {*itertools.chain(*question.about, *(meant for _, meant in question.named))}
    return [drawn.owners == owner for owner in sorted(owners)]


def choose(shows: Bool[np.ndarray, "h w"], grids: Sequence[Grid], keep: int) -> Mapping:
    """The slots that the oracle keeps.

    Args:
        shows: which pixels of the picture show something.
        grids: the picture's rasters of slots.
        keep: how many.
    """
    mask = torch.cat([covered(shows, grid) for grid in grids])
    return preferred(mask.long(), keep)


def preferred(worth: Int[Tensor, " n"], keep: int) -> Mapping:
    """The `keep` slots worth most, in raster order; evenly chosen where equal ones are too many."""
    chosen: list[Tensor] = []
    left = keep
    for each in worth.unique().flip(0):
        slots = (worth == each).nonzero().flatten()
        chosen.append(_evenly(slots, min(left, len(slots))))
        left -= len(chosen[-1])
        if not left:
            break
    return Mapping.select(torch.cat(chosen).sort().values, len(worth))


def _evenly(slots: Tensor, count: int) -> Tensor:
    return slots[ops.equidistant(count, len(slots))] if count else slots[:0]


def covered(shows: Bool[np.ndarray, "h w"], grid: Grid) -> Bool[Tensor, " n"]:
    """Which slots of a raster show something; where pixels are cut, both slots have them."""
    left, top, right, bottom = grid.box
    rows = _edges(top, bottom, grid.height, shows.shape[0])
    columns = _edges(left, right, grid.width, shows.shape[1])
    share = [[shows[y0:y1, x0:x1].mean() for x0, x1 in columns] for y0, y1 in rows]
    return (torch.tensor(share) >= _COVERED).flatten().repeat(grid.frames)


def _edges(start: float, stop: float, count: int, pixels: int) -> list[tuple[int, int]]:
    """First and last but one pixel of `count` equal stretches; at least one each."""
    edges = np.linspace(start * pixels, stop * pixels, count + 1)
    first = np.floor(edges[:-1] + 1e-6).astype(int).tolist()
    last = np.ceil(edges[1:] - 1e-6).astype(int).tolist()
    return [(min(a, pixels - 1), max(a + 1, b)) for a, b in zip(first, last, strict=True)]
