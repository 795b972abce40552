"""Seeded scenes: a drawn picture, what it shows, and which of its patches show something.

Three splits with disjoint seed ranges; `scene(seed, split)` is the same picture on every call.
A scene may also be drawn on a larger canvas or in the second world (`foveate.reference.worlds`).
Questions about a scene are asked by `foveate.reference.questions` (`dialogue`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from foveate.errors import InputError, UnknownName
from foveate.reference.layout import SIDE, Layout, Plate, Thing, layout
from foveate.reference.questions import Question, dialogue
from foveate.reference.rendering import draw
from foveate.reference.worlds import FIRST, world_named

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SPLITS", "Plate", "Question", "Scene", "Thing", "dialogue", "patch_mask", "scene"]

# Absolute seeds of each split: a scene can belong to one split only.
SPLITS = {
    "train": range(0, 100_000_000),
    "validation": range(100_000_000, 101_000_000),
    "test": range(200_000_000, 201_000_000),
}
# Sides of a larger canvas are whole views, as models of tiles see them.
_VIEW = 64
# A patch shows an object if at least this share of its pixels does.
_COVERED = 1 / 8


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        pixels: uint8[height, width, 3]; 128 x 128 unless a larger canvas was asked for.
        owners: uint8[height, width]; 0 background, 1 + i object i, then the plates in order.
        layout: objects and plates; also as `things` and `plates`.
        seed: the seed within its split.
        split: "train", "validation" or "test".
        world: "first" or "second".
    """

    pixels: np.ndarray = field(repr=False)
    owners: np.ndarray = field(repr=False)
    layout: Layout
    seed: int
    split: str
    world: str = FIRST

    @property
    def things(self) -> tuple[Thing, ...]:
        """The objects."""
        return self.layout.things

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The number plate and the letter signs."""
        return self.layout.plates

    @property
    def image(self) -> Image:
        """The picture as a PIL image in RGB."""
        from PIL import Image

        return Image.fromarray(self.pixels)


def scene_layout(
    seed: int, split: str, world: str = FIRST, canvas: tuple[int, int] = (SIDE, SIDE)
) -> Layout:
    """What a scene shows, without drawing it (about a tenth of the time).

    Raises:
        InputError: no such seed, or a canvas that is too small or no number of whole views.
    """
    if any(side < SIDE or side % _VIEW for side in canvas):
        raise InputError(
            f"A canvas has {SIDE} pixels a side at least, in multiples of {_VIEW}; got {canvas}."
        )
    kind = world_named(world)
    rng = np.random.default_rng([absolute(seed, split), 0, *kind.stream])
    return layout(rng, *canvas, kind.arrangement)


def scene(
    seed: int, split: str, world: str = FIRST, canvas: tuple[int, int] = (SIDE, SIDE)
) -> Scene:
    """The scene of this seed.

    Args:
        seed: counted from 0 within the split.
        split: "train", "validation" or "test".
        world: "first", or "second" for another distribution of pictures.
        canvas: width and height in pixels, multiples of 64, 128 at least.

    Raises:
        InputError: no such seed, or no such canvas.
    """
    kind = world_named(world)
    what = scene_layout(seed, split, world, canvas)
    rng = np.random.default_rng([absolute(seed, split), 1, *kind.stream])
    pixels, owners = draw(what, rng, *canvas, kind.style)
    return Scene(pixels, owners, what, seed, split, world)


def absolute(seed: int, split: str) -> int:
    """The seed counted over all splits: no two of them share one."""
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    seeds = SPLITS[split]
    if not 0 <= seed < len(seeds):
        raise InputError(f"Split {split!r} has seeds 0 to {len(seeds) - 1}; got {seed}.")
    return seeds[seed]


def patch_mask(scene: Scene, grid: int = 16) -> np.ndarray:
    """Which patches show an object or a plate: bool[grid, grid].

    Args:
        scene: of 128 x 128 pixels.
        grid: patches a side; must divide 128.

    Raises:
        InputError: the grid does not divide the sides, or the scene is larger.
    """
    height, width = scene.owners.shape
    if (height, width) != (SIDE, SIDE):
        raise InputError(
            f"Patches are told of scenes of {SIDE} x {SIDE} pixels; got {width} x {height}.\n"
            "Of a larger one, take the patches of its views: foveate.reference.views.scene_views."
        )
    if grid < 1 or SIDE % grid:
        raise InputError(f"grid={grid} does not divide the image's {SIDE} pixels.")
    cells = (scene.owners > 0).reshape(grid, SIDE // grid, grid, SIDE // grid)
    return cells.mean(axis=(1, 3)) >= _COVERED
