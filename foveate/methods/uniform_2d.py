"""Uniform-2D: keep tokens on an even lattice over the picture.

What it does:
    Cuts every raster into cells of like size, as square as the budget allows, and keeps the
    token in the middle of each. The fair form of uniform sampling: it does not alias with the
    raster's width.

The mapping:
    P = one-hot rows of the slots nearest the centres of m cells. Rasters (base view, tile mosaic)
    and frames share m in proportion to their size, by largest remainder; a raster of h x w is cut
    into r ~ sqrt(m h / w) bands of rows and band b into its own number of columns, so that the
    counts sum to m exactly.

Needs:
    The rasters (`grids`).

Differs from the paper's code:
    There is no paper; most tables only hold 1-D sampling.

When it fails:
    Details smaller than a cell. Below one cell a frame, whole frames have no token.

Reference:
    None.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Uniform2D(Compressor):
    """Keep tokens on an even lattice over the picture."""

    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        m = tokens.n if keep is None else keep
        cells = ops.lattice(tokens.rasters, m)  # (n,) cell of each slot, -1 in rasters without any
        centres = ops.centres_of(cells, tokens.rasters, m)  # (m,)
        return Mapping.select(centres.to(tokens.features.device), tokens.n)
