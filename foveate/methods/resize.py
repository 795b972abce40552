"""Resize: a smaller picture, so that the vision tower emits fewer tokens.

What it does:
    Shrinks the pixels before the tower until about m patches are left, and interpolates the
    tower's position embeddings. The baseline that makes the tower cheaper too, and that many
    pruning methods do not beat.

The mapping:
    f = the tower on the smaller picture; X~ = P f(x) with one row for each of its tokens. Such a
    token stands for a rectangle of slots (`cover`) and lives in the rectangle's middle one, so
    that positions span the picture as before.

Needs:
    A tower that takes other picture sizes.

Differs from the paper's code:
    Resizing alone reaches only counts h w. The raster with the least surplus and distortion, at
    least m tokens, is chosen and its surplus dropped equidistantly; for 64, 36, 16 ... of a square
    picture nothing is dropped. Tiles are shrunk one by one, all alike.

When it fails:
    Text and details below the new patch size. A tower that never saw small pictures in training
    suffers more than the budget explains.

Reference:
    VTC-Bench ("downsampling beats many methods").
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from foveate import ops
from foveate.compressor import Stage, TowerMethod, TowerPlan, VisualTokens
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Resize(TowerMethod):
    """A smaller picture, so that the vision tower emits fewer tokens."""

    stage: ClassVar[Stage] = Stage.IMAGE

    def tower_plan(self, height: int, width: int, target: int, blocks: int) -> TowerPlan:
        """The raster (h, w) with h w >= target of least surplus times distortion."""

        def cost(h: int) -> float:
            w = -(-target // h)
            # Rounded, so that equally good rasters tie whatever the last bit says.
            return round(math.log(h * w) + abs(math.log(h * width / (w * height))), 9)

        fitting = [h for h in range(1, height + 1) if -(-target // h) <= width]
        h = min(fitting, key=cost)
        return TowerPlan(size=(h, -(-target // h)))

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        if tokens.cells is None:
            raise StageNotAvailable("Resize acts before the vision tower; attach it to a model.")
        m = tokens.n if keep is None else keep
        index, cover = ops.one_slot_per_cell(tokens.cells, m)
        return Mapping.select(index, tokens.n, cover=cover)
