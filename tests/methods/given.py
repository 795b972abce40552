"""Visual tokens made by hand."""

from __future__ import annotations

from typing import Any

import torch

from foveate.compressor import Grid, VisualTokens


def rows(*values: Any) -> torch.Tensor:
    """Numbers as a float32 tensor."""
    return torch.tensor(values, dtype=torch.float32)


def tokens(features: torch.Tensor, *grids: Grid, **fields: Any) -> VisualTokens:
    """Tokens in one row of slots, unless grids are given."""
    return VisualTokens(features, grids or (Grid(1, 1, len(features)),), **fields)


def raster(height: int, width: int, frames: int = 1) -> VisualTokens:
    """A raster whose slots hold their own number, 0, 1, 2 .."""
    n = frames * height * width
    return tokens(torch.arange(n, dtype=torch.float32)[:, None], Grid(frames, height, width))
