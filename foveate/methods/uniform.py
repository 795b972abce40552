"""Uniform: keep every (n/m)-th token in raster order.

What it does:
    Cuts the sequence of tokens into m equal stretches and keeps the middle one of each. It looks
    at nothing, costs nothing, and beats many methods that do look.

The mapping:
    P = one-hot rows of i_k = floor((k + 1/2) n / m), k = 0..m-1.

Needs:
    Nothing.

Differs from the paper's code:
    Papers call it "Sample" or "equidistant" and start at index 0; the middle of each stretch
    treats both ends of the picture alike.

When it fails:
    It aliases with the raster's width: where n/m divides the width, whole columns are never
    kept (stride 4 on 12 columns hits 3 of them). `uniform-2d` does not.

Reference:
    "Sample" in MetaCompress, arXiv 2603.21701, Tables 1 and 5.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Uniform(Compressor):
    """Keep every (n/m)-th token in raster order."""

    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        m = tokens.n if keep is None else keep
        return Mapping.select(ops.equidistant(m, tokens.n).to(tokens.features.device), tokens.n)
