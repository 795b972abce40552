"""Scenes of high resolution: two or three views of 64 pixels a side in each direction.

The renderer, the objects and the questions are those of the small scenes. A model that looks at 64
pixels at a time sees an overview, in which much of the print and some patterns are lost, and the
tiles.
"""

from __future__ import annotations

import numpy as np

from foveate.errors import InputError
from foveate.reference.layout import SIDE, Layout
from foveate.reference.questions import Question, dialogue_about
from foveate.reference.scenes import Scene, absolute, scene
from foveate.reference.worlds import FIRST

TILE = 64
# Width and height in pixels: two by two tiles, three across, three down, three by three.
CANVASES = ((128, 128), (192, 128), (128, 192), (192, 192))


def canvas_of(seed: int, split: str) -> tuple[int, int]:
    """The canvas of this seed's scene unless another is asked for."""
    rng = np.random.default_rng([absolute(seed, split), 7])
    return CANVASES[rng.integers(len(CANVASES))]


def tiled_scene(
    seed: int, split: str, world: str = FIRST, canvas: tuple[int, int] | None = None
) -> Scene:
    """The high-resolution scene of this seed.

    Args:
        seed: counted from 0 within the split.
        split: "train", "validation" or "test".
        world: "first", or "second" for another distribution of pictures.
        canvas: width and height, one of `CANVASES`; by the seed if None.

    Raises:
        InputError: no such seed, or another canvas.
    """
    if canvas is not None and tuple(canvas) not in CANVASES:
        known = ", ".join(f"{width} x {height}" for width, height in CANVASES)
        raise InputError(f"Tiled scenes have {known} pixels; got {canvas}.")
    return scene(seed, split, world, canvas or canvas_of(seed, split))


def asked_about(layout: Layout, canvas: tuple[int, int]) -> Layout:
    """The layout as questions see it: places are shares of the canvas, whatever its size."""
    width, height = canvas
    return layout.scaled(SIDE / width, SIDE / height)


def tiled_dialogue(scene: Scene, seed: int) -> list[Question]:
    """Three questions of different kinds about any part of a scene of any size."""
    height, width = scene.owners.shape
    rng = np.random.default_rng([scene.seed, seed, 2])
    return dialogue_about(asked_about(scene.layout, (width, height)), rng)
