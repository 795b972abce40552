"""What the tiled model's tower looks at: pictures of 64 x 64 pixels, with what each patch shows.

A view is the overview of a scene, one of its tiles, or a frame of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from foveate.reference import words
from foveate.reference.clips import Clip, moments
from foveate.reference.labels import (
    IMAGE_CLASSES,
    MOST_OWNERS,
    PATCH_CLASSES,
    PRESENT,
    labels_of,
    owner_table,
    patch_owners,
)
from foveate.reference.onevision import VIEW_GRID
from foveate.reference.scenes import Scene
from foveate.reference.tiled import TILE

_SIZE = list(PATCH_CLASSES).index("size")
_COLOUR, _SHAPE, _LETTER, _TENS, _ONES = (
    list(PATCH_CLASSES).index(name) for name in ("colour", "shape", "letter", "tens", "ones")
)
# CLS must name what shows this share of itself in the view, and read what shows this share of it.
_SEEN, _READABLE = 0.3, 0.9
_IGNORE = -100


@dataclass(frozen=True)
class Views:
    """Some views.

    Attributes:
        pixels: uint8[v, 64, 64, 3].
        owners: uint8[v, 64, 64]; 0 is background.
        tables: int64[v, owners, labels] what is known about each owner, as `labels.owner_table`.
        centres: float[v, owners, 2] where each owner's centre is, in pixels of the view.
        shown: float[v, owners] the share of each owner that lies in the view.
    """

    pixels: Tensor
    owners: Tensor
    tables: Tensor
    centres: Tensor
    shown: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, chosen: Tensor | slice) -> Views:
        return Views(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Views]) -> Views:
        """All views of several, in their order."""
        return Views(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Views))
        )

    def split(self, pictures: int) -> list[Views]:
        """The views of each of some pictures that have equally many: `joined` undone."""
        each = len(self) // pictures
        return [self[first : first + each] for first in range(0, len(self), each)]

    def patch_labels(self, grid: int = VIEW_GRID) -> tuple[dict[str, Tensor], Tensor]:
        """Labels int64[v, grid * grid] by name, and offsets float[v, grid * grid, 2].

        Args:
            grid: patches a side; fewer than 8 are those of resized views.
        """
        which = patch_owners(self.owners, grid)
        return labels_of(self.tables, self.centres, which, grid, TILE)

    def image_labels(self) -> dict[str, Tensor]:
        """What CLS must say: "present" float[v, PRESENT], "tens" and "ones" int64[v] or -100."""
        seen = self.shown >= _SEEN
        present = torch.zeros(len(self), PRESENT)
        colour, shape, letter = (self.tables[..., each] for each in (_COLOUR, _SHAPE, _LETTER))
        pairs, letters = colour * len(words.SHAPES) + shape, letter + PRESENT - len(words.LETTERS)
        for known, which in ((colour, pairs), (letter, letters)):
            view, owner = (seen & (known >= 0)).nonzero(as_tuple=True)
            present[view, which[view, owner]] = 1
        found = {"present": present}
        for name, column in (("tens", _TENS), ("ones", _ONES)):
            readable = (self.shown >= _READABLE) & (self.tables[..., column] >= 0)
            found[name] = torch.where(readable, self.tables[..., column], _IGNORE).amax(1)
        assert set(found) == set(IMAGE_CLASSES)
        return found


def scene_views(scene: Scene) -> Views:
    """The overview and then the tiles, row by row: what the model is shown of a scene."""
    height, width = scene.owners.shape
    pixels = torch.as_tensor(scene.pixels)
    owners = torch.as_tensor(scene.owners)
    table, centres = (torch.as_tensor(each) for each in owner_table(scene.layout))
    down, across = height // TILE, width // TILE
    count = 1 + down * across
    corners = torch.tensor([(x * TILE, y * TILE) for y in range(down) for x in range(across)])
    overview = centres * torch.tensor([TILE / width, TILE / height])
    cut = owners.unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1)
    parts = pixels.unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1).permute(0, 2, 3, 1)
    areas = torch.stack([(cut == owner).flatten(1).sum(1) for owner in range(MOST_OWNERS)], 1)
    shares = areas / areas.sum(0).clamp(min=1)
    there = (areas.sum(0) > 0).float()
    return Views(
        pixels=torch.cat([_overview(scene)[None], parts]),
        owners=torch.cat([_nearest(owners)[None], cut]),
        tables=table.expand(count, -1, -1),
        centres=torch.cat([overview[None], centres - corners[:, None]]),
        shown=torch.cat([there[None], shares]),
    )


def clip_views(clip: Clip) -> Views:
    """The frames."""
    tables, centres, shown = [], [], []
    for moment in moments(len(clip.pixels)):
        table, _ = owner_table(clip.script.cast)
        # Objects of a clip have one size, which is none of the two.
        table[:, _SIZE] = _IGNORE
        tables.append(table)
        places = np.zeros((MOST_OWNERS, 2), np.float32)
        there = np.zeros(MOST_OWNERS, np.float32)
        for owner, actor in enumerate(clip.actors, start=1):
            places[owner], there[owner] = actor.place(moment), actor.shown(moment)
        centres.append(places)
        shown.append(there)
    return Views(
        torch.as_tensor(clip.pixels),
        torch.as_tensor(clip.owners),
        torch.as_tensor(np.stack(tables)),
        torch.as_tensor(np.stack(centres)),
        torch.as_tensor(np.stack(shown)),
    )


def _overview(scene: Scene) -> Tensor:
    """The picture at 64 x 64 pixels, as the image processor resizes it: uint8[64, 64, 3]."""
    return torch.as_tensor(np.array(scene.image.resize((TILE, TILE), Image.Resampling.BICUBIC)))


def _nearest(owners: Tensor) -> Tensor:
    """Owners uint8[height, width] at 64 x 64 pixels."""
    small = F.interpolate(owners[None, None].float(), size=(TILE, TILE), mode="nearest-exact")
    return small[0, 0].to(torch.uint8)
