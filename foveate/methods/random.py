"""Random: keep a seeded uniform sample of the tokens.

What it does:
    Draws m of the n tokens without replacement. The weakest honest baseline: a method that does
    not beat the mean of several seeds has found nothing.

The mapping:
    P = one-hot rows of a sample of {0..n-1}, in raster order. With a fixed seed a smaller budget
    is a subset of a larger one.

Needs:
    Nothing: the sample depends on the seed, n and m alone, not on the picture or its batch.

Differs from the paper's code:
    There is none. Papers report the mean of several seeds; so does `foveate compare`.

When it fails:
    Small details: a token is lost with probability 1 - m/n, however much hangs on it.

Reference:
    Used as a baseline throughout; e.g. MetaCompress, arXiv 2603.21701, Table 1.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Random(Compressor):
    """Keep a seeded uniform sample of the tokens.

    Attributes:
        seed: of the draw.
    """

    seed: int = 0

    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        m = tokens.n if keep is None else keep
        # On the host: every device draws the same sample.
        generator = torch.Generator().manual_seed(self.seed)
        sample = torch.randperm(tokens.n, generator=generator)[:m].sort().values
        return Mapping.select(sample.to(tokens.features.device), tokens.n)
