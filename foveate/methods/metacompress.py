"""MetaCompress: a small learned attention writes P, from the picture alone.

What it does:
    Every kept token is a mixture of all visual tokens. The mixture's weights are attention from m
    queries, pooled along the sequence, to all n tokens, in a space of few dimensions that was
    learned so that the model answers as it does with all tokens. It does not read the prompt, so
    one P serves every turn.

The mapping:
    X (n, d) the projected tokens, E (n, d) their position embedding, s = n / m the stride.
    (6) q_i = mean of X + E over the `kernel` tokens around (i + 1/2) s, times W_q
    (7) k_j = (X + E)_j W_k
    (8) P = row softmax of q diag(omega) k^T / sqrt(d_c); dense.
    An m x n map, never an n x n one. Each row lives in its heaviest source that is free.

Needs:
    Weights trained for the model (`foveate train metacompress`). Nothing from the vision tower.

Differs from the paper's code:
    No code was released. Open in the paper and decided here: d_c is 64; E is a fixed 1-D
    sine-cosine embedding as wide as the token, times `position_scale`, and a learned offset that
    all places share, zero at first; the pooling's windows are centred and cut at the ends;
    `pool="2d"` averages over an even lattice of the picture instead, which fits tiles and frames.
    The paper calls the kernel s and the stride k in one place and the other way round in another.
    The paper puts the m rows one behind the other where the picture was, in the order of their
    queries, as `positions="reindex"` does; usually each has the place and the position of the slot
    it lives in. Every picture has a P of its own; newline tokens of tiled models stay outside it.
    The start "pca" (`foveate train`) begins with the directions in which a model's tokens vary,
    and with minus their mean as the offset, not with the published random numbers.

When it fails:
    Section 9 of the paper says that it starts as pooling. With the published start that depends on
    how long a model's tokens are: short ones give every row much the same mixture, long ones make
    each row pick a single token. keep=n is no identity, so use keep=1.0.

Reference:
    arXiv 2603.21701 (CVPR 2026), section 5; MArSha1147/MetaCompress at 70a620e is a README only.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate import ops
from foveate.compressor import Stage, VisualTokens
from foveate.errors import BudgetError
from foveate.learned import LearnedCompressor
from foveate.mapping import Mapping

POOLS = ("1d", "2d")


class Generator(nn.Module):
    """W_q, W_k and omega of Eq. 6-8.

    Args:
        width: d, of the tokens.
        dim: d_c, of the compression space.

    Attributes:
        query, key: (d, d_c) W_q and W_k.
        omega: (d_c,) the diagonal.
        offset: (d,) what is added to every token, the learned part of E.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        start = torch.randn(width, dim) / math.sqrt(dim)  # N(0, 1 / d_c), W_q = W_k: section 6.1
        self.query = nn.Parameter(start)
        self.key = nn.Parameter(start.clone())
        self.omega = nn.Parameter(torch.ones(dim))
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(
        self, pool: Float[Tensor, "m n"], tokens: Float[Tensor, "n d"]
    ) -> Float[Tensor, "m n"]:
        """P from the pooling, whose rows sum to one, and all tokens with their fixed embedding."""
        # The model's precision may be finer than the parameters'.
        query, key, omega = (each.to(tokens) for each in (self.query, self.key, self.omega))
        x = tokens + self.offset.to(tokens)
        queries = (pool @ x @ query) * omega  # (6)
        keys = x @ key  # (7)
        return (queries @ keys.T / math.sqrt(len(omega))).softmax(-1)  # (8)


@dataclasses.dataclass(frozen=True)
class MetaCompress(LearnedCompressor):
    """Learned, prompt-agnostic mixtures of all visual tokens.

    Attributes:
        dim: d_c, the width of the compression space.
        kernel: tokens that a query averages.
        pool: ``"1d"`` along the sequence, as published; ``"2d"`` over an even lattice.
        position_scale: of the position embedding, whose entries lie in -1..1; 0 for none.
    """

    dim: int = 64
    kernel: int = 3
    pool: str = "1d"
    position_scale: float = 1.0
    stage: ClassVar[Stage] = Stage.INPUT

    def __post_init__(self) -> None:
        if self.dim < 1 or self.kernel < 1 or self.pool not in POOLS:
            raise BudgetError(
                f"MetaCompress needs dim >= 1, kernel >= 1 and pool '1d' or '2d'; got "
                f"dim={self.dim}, kernel={self.kernel}, pool={self.pool!r}."
            )

    def build(self, width: int) -> nn.Module:
        """`Generator`."""
        return Generator(width, self.dim)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        m = tokens.n if keep is None else keep
        x = tokens.features
        x = x if x.dtype == torch.float64 else x.float()
        if self.position_scale:
            x = x + self.position_scale * ops.sine_positions(*x.shape, device=x.device)
        if self.pool == "1d":
            owners = ops.fractional_windows(tokens.n, m, self.kernel)
        else:
            cells = ops.lattice(tokens.rasters, m)
            # A raster too small for a cell of its own is in no query's mean, but among the keys.
            owners = (cells == torch.arange(m)[:, None]).float()
            owners = owners / owners.sum(1, keepdim=True)
        net = self.module(x.device)
        return Mapping.dense(net(owners.to(x), x))
