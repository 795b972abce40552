"""Pool: average the tokens of each cell of an even lattice.

What it does:
    Cuts every raster into m cells of like size and shape and replaces each by the mean of its
    tokens: average pooling, to any m.

The mapping:
    P_kj = 1/|cell k| for slots j in cell k, else 0; cells as in `uniform-2d`. A row is anchored
    on the slot nearest its cell's centre.

Needs:
    The rasters (`grids`).

Differs from the paper's code:
    There is no paper. Frames or rasters too small for a cell of their own are dropped.

When it fails:
    The mean of unlike tokens is a token that the language model has never seen; large cells blur
    text and small objects away.

Reference:
    A common baseline, e.g. LLaVA-OneVision's pooling of video frames (2 x 2).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Pool(Compressor):
    """Average the tokens of each cell of an even lattice."""

    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        m = tokens.n if keep is None else keep
        cells = ops.lattice(tokens.rasters, m)
        centres = ops.centres_of(cells, tokens.rasters, m)
        device = tokens.features.device
        return Mapping.assign(cells.to(device), centres.to(device))
