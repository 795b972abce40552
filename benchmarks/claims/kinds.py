"""Kinds of dialogues that claims are judged on, and which models are asked them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from foveate.evaluation import data
from foveate.evaluation.claims import Page
from foveate.evaluation.data import Dialogue
from foveate.reference.clips import FRAMES
from foveate.reference.tiled import CANVASES

SCENES, TILES = "scenes", "tiles"  # families of models are called by what they are trained on
FAMILIES = (SCENES, TILES)
OPTIMUM = "optimum"


@dataclasses.dataclass(frozen=True)
class Kind:
    """Dialogues of one kind.

    Attributes:
        title: how a page calls them.
        family: of the models that are asked them.
        drawn: (count, split) -> dialogues.
        most: no more are asked; None: as many as of all others.
    """

    title: str
    family: str
    drawn: Callable[[int, str], list[Dialogue]]
    most: int | None = None

    def dialogues(self, count: int) -> list[Dialogue]:
        """Those of the test split that are asked."""
        return self.drawn(count if self.most is None else min(count, self.most), "test")

    def examples(self, count: int) -> list[Dialogue]:
        """Those of the train split, to learn from."""
        return self.drawn(count, "train")


SMALL, *_, LARGE = CANVASES
SECOND = {"world": "second"}
KINDS = {
    SCENES: Kind("scenes of one size", SCENES, data.from_reference),
    "second-world": Kind(
        "scenes of a second world", SCENES, functools.partial(data.from_reference, **SECOND)
    ),
    OPTIMUM: Kind("scenes with a P of their own", SCENES, data.from_reference, most=60),
    TILES: Kind("large scenes in tiles", TILES, data.from_tiles),
    "small-tiles": Kind(
        "scenes in two by two tiles", TILES, functools.partial(data.from_tiles, canvas=SMALL)
    ),
    "large-tiles": Kind(
        "scenes in three by three tiles", TILES, functools.partial(data.from_tiles, canvas=LARGE)
    ),
    "clips": Kind("clips", TILES, data.from_clips),
    "short-clips": Kind(
        "clips of 8 frames", TILES, functools.partial(data.from_clips, frames=min(FRAMES))
    ),
    "long-clips": Kind(
        "clips of 32 frames", TILES, functools.partial(data.from_clips, frames=max(FRAMES))
    ),
}


def kinds_of(page: Page) -> list[str]:
    """The kinds of dialogues that a page's models are asked: their own, and those of its claims.

    Those of its drawings, too.
    """
    drawn = {each.data for each in page.relevances}
    return [kind for kind in KINDS if kind in FAMILIES or kind in drawn or page.sides(kind)]
