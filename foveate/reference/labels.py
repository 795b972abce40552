"""What the vision tower is taught: the renderer's own knowledge, for every patch and for CLS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.reference import words
from foveate.reference.architecture import PATCH
from foveate.reference.layout import SIDE, Layout

# Background, object, number plate, letter plate.
_SORTS = ("background", "thing", "number", "letter")
_NO_DIGIT = len(words.DIGITS)
# Classes of each per-patch label; background patches carry only the first.
PATCH_CLASSES = {
    "sort": len(_SORTS),
    "colour": len(words.COLOURS),
    "shape": len(words.SHAPES),
    "size": len(words.SIZES),
    "pattern": len(words.PATTERNS),
    "tone": len(words.TONES),
    "letter": len(words.LETTERS),
    "tens": len(words.DIGITS) + 1,
    "ones": len(words.DIGITS),
}
# The picture as a whole: which colour-shape pairs and letters are there, and the number.
PRESENT = len(words.COLOURS) * len(words.SHAPES) + len(words.LETTERS)
IMAGE_CLASSES = {"present": PRESENT, "tens": len(words.DIGITS) + 1, "ones": len(words.DIGITS)}
# Background, ten objects, three plates.
MOST_OWNERS = 14
_IGNORE = -100


def owner_table(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64[owners, labels] and centres float32[owners, 2] by owner; row 0 is background."""
    table = np.full((MOST_OWNERS, len(PATCH_CLASSES)), _IGNORE, np.int64)
    centres = np.zeros((MOST_OWNERS, 2), np.float32)
    table[0, 0] = 0
    for row, thing in enumerate(layout.things, start=1):
        table[row, :5] = (
            1,
            tuple(words.COLOURS).index(thing.colour),
            words.SHAPES.index(thing.shape),
            words.SIZES.index(thing.size),
            words.PATTERNS.index(thing.pattern),
        )
        centres[row] = thing.x, thing.y
    for row, plate in enumerate(layout.plates, start=1 + len(layout.things)):
        table[row, 5] = words.TONES.index(plate.tone)
        if plate.kind == "letter":
            table[row, [0, 6]] = 3, words.LETTERS.index(plate.text)
        else:
            table[row, [0, 7, 8]] = 2, *_digits(plate.text)
        centres[row] = plate.x, plate.y
    return table, centres


def owner_tables(layouts: Sequence[Layout]) -> tuple[Tensor, Tensor]:
    """`owner_table` of several: int64[b, owners, labels] and float[b, owners, 2]."""
    tables, centres = zip(*(owner_table(layout) for layout in layouts), strict=True)
    return torch.as_tensor(np.stack(tables)), torch.as_tensor(np.stack(centres))


def centres_of(layouts: Sequence[Layout]) -> Tensor:
    """Where each owner's centre is, in pixels: float[b, owners, 2]; NaN where there is no owner."""
    found = []
    for layout in layouts:
        _, centres = owner_table(layout)
        centres[0] = centres[1 + len(layout.things) + len(layout.plates) :] = np.nan
        found.append(centres)
    return torch.as_tensor(np.stack(found))


def _digits(text: str) -> tuple[int, int]:
    return (int(text[0]) if len(text) > 1 else _NO_DIGIT), int(text[-1])


def image_labels(layouts: Sequence[Layout]) -> dict[str, Tensor]:
    """Labels of whole pictures: "present" float[b, PRESENT], "tens" and "ones" int64[b]."""
    present = np.zeros((len(layouts), PRESENT), np.float32)
    digits = []
    for row, layout in enumerate(layouts):
        for thing in layout.things:
            pair = tuple(words.COLOURS).index(thing.colour) * len(words.SHAPES)
            present[row, pair + words.SHAPES.index(thing.shape)] = 1
        for plate in layout.plates:
            if plate.kind == "letter":
                present[row, PRESENT - len(words.LETTERS) + words.LETTERS.index(plate.text)] = 1
            else:
                digits.append(_digits(plate.text))
    tens, ones = torch.as_tensor(np.array(digits, np.int64)).T
    return {"present": torch.as_tensor(present), "tens": tens, "ones": ones}


def patch_owners(owners: Tensor, grid: int) -> Tensor:
    """Which owner shows most in each patch, 0 below an eighth of it: int64[b, grid * grid].

    Args:
        owners: uint8[b, s, s].
        grid: patches per side after the picture was resized to `grid * 8` pixels.
    """
    return cell_owners(owners, grid * PATCH, PATCH, PATCH * PATCH // 8)


def cell_owners(owners: Tensor, size: int, side: int, least: int) -> Tensor:
    """Which owner shows most in each cell, 0 where none shows enough: int64[b, cells].

    Args:
        owners: uint8[b, s, s].
        size: what the picture is resized to first, in pixels.
        side: a cell's, in pixels; it divides the size.
        least: pixels that an owner must show.
    """
    if owners.shape[-1] != size:
        pixels = F.interpolate(owners[:, None].float(), size=size, mode="nearest-exact")
        owners = pixels[:, 0].to(torch.uint8)
    cells = owners.unfold(1, side, side).unfold(2, side, side).flatten(3)
    counts = torch.stack([(cells == owner).sum(-1) for owner in range(1, MOST_OWNERS)], dim=-1)
    most, which = counts.max(dim=-1)
    return torch.where(most >= least, which + 1, 0).flatten(1)


def patch_labels(
    layouts: Sequence[Layout], owners: Tensor, grid: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Labels of every patch: name -> int64[b, grid * grid] (-100: none), and offsets.

    The offsets float[b, grid * grid, 2] point from a patch's middle to its owner's centre, in
    units of 16 pixels of the full picture; NaN in the background.
    """
    return labels_of(*owner_tables(layouts), patch_owners(owners, grid), grid, SIDE)


def labels_of(
    tables: Tensor, centres: Tensor, which: Tensor, grid: int, side: int
) -> tuple[dict[str, Tensor], Tensor]:
    """`patch_labels` from what is known about every owner.

    Args:
        tables: int64[b, owners, labels], as `owner_table` gives them.
        centres: float[b, owners, 2], in pixels of a picture of `side` x `side`.
        which: int64[b, grid * grid], the owner of each patch.
        grid: patches a side.
        side: of the picture, in pixels; offsets are counted in eighths of it.
    """
    rows = torch.arange(len(which))[:, None]
    labels = tables[rows, which]
    middles = (torch.arange(grid) + 0.5) * side / grid
    here = torch.stack([middles.repeat(grid), middles.repeat_interleave(grid)], dim=-1)
    offsets = (centres[rows, which] - here) / (side / 8)
    offsets[which == 0] = torch.nan
    return {name: labels[..., index] for index, name in enumerate(PATCH_CLASSES)}, offsets
