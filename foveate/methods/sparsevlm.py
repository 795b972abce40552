"""SparseVLM: let the words that the picture matches vote, and recycle what they turn down.

What it does:
    Text tokens close to the picture are raters. At three depths the visual tokens that raters
    attend to stay; the best of the others are clustered, and one token per cluster stays as well.

The mapping:
    V, T: input embeddings of the picture and of all text after it. A: attention of the layer
    before, mean over heads.
    (1) raters: text tokens whose share of softmax(V T^T), mean over the picture, is above average;
    (2) p_j = mean over raters of A[rater, j]; the k highest stay;
    (3) of the r others the int(0.3 r) + 1 best are candidates, in int(candidates / 10) + 1
        clusters by density peaks, as many neighbours as clusters;
    (4) P = one-hot rows of the k, and the mean of each cluster; k + clusters is the count, and a
        count too small for both is all k.
    v2 ("SparseVLM+", presets authors-v2-..) merges nothing (`recycle=False`), and in (2)
    (5) `gravity`: A_ij is divided by w_ij = <R_i 1, R_j 1> / |R_i 1|^2, what the layer's position
        encoding R alone makes of a vector of ones at both places;
    (6) `heads`: of the heads only the 14 of 32 are averaged whose p, summed over j, is largest.

Needs:
    The attention of the layers before 3, 7 and 16 of 32: the raters' rows. Input embeddings. v2 the
    position encoding of those layers as well.

Differs from the paper's code:
    By default this is v1.5: fixed counts. (The ICML text's rank rule decides the count itself and
    is left out.) A merged token lives where its cluster's centre was; there it goes to the end of
    the picture. Position ids stay; v1.5's presets number deeper layers' tokens anew, as there. A
    tie goes to the lower slot, where released code adds noise. With no rater at all every text
    token rates (NaN there).
    Preset counts include merged tokens: 309/204/113, 312/117/39, 249/55/27, 82/32/18. Averaged
    over executed layers they are 206.5, 145.4, 114.1 and 82.2: the authors' accounting ("192",
    "128", "96", "64") takes the deciding layer as already reduced. v2's are 206.8, 144.1, 113.9
    and 81.8.
    v2 divides by <R_i 1, R_j 1> / sqrt(d) as it is, which orders alike; here w counts as 0.1 at
    least. In LLaVA-1.5 it is above that up to a distance of 650, so nothing changes there; where
    it falls to 0 or below, the division would blow up or turn the sign. v2's `keep` falls as
    v1.5's counts do. Other numbers of heads take the same share, 14/32.

When it fails:
    Questions of common words: V T^T of raw embeddings says little, and saturates for long ones.
    Three layers run on everything.

Reference:
    arXiv 2410.04417 (ICML 2025); Gumpest/SparseVLMs at 26a5f48, branches v1.5 and v2.0
    (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate import ops
from foveate.attention import LayerAttention
from foveate.compressor import (
    DecoderMethod,
    Preset,
    Reads,
    VisualTokens,
    scaled_layers,
    solve_schedule,
)
from foveate.errors import BudgetError
from foveate.mapping import Mapping

_RELEASE = "Gumpest/SparseVLMs at 26a5f48, v1.5"
_RELEASE_2 = "Gumpest/SparseVLMs at 26a5f48, v2.0"
_LAYERS, _OF = (3, 7, 16), 32
# Shares that the released tables fall by, at 192 tokens: the shape behind `keep`.
_SHAPE = (309, 204, 113)
_HEADS = 14 / 32
# The least that what position alone gives counts for, of what it gives at distance 0.
_LEAST = 0.1


def _released(kept: str, schedule: tuple[int, ...]) -> Preset:
    source = f"{_RELEASE}: {kept} + merged"
    return Preset(source, {"schedule": schedule}, positions="reindex")


def _released_2(schedule: tuple[int, ...]) -> Preset:
    fields = {"recycle": False, "gravity": True, "heads": _HEADS, "schedule": schedule}
    return Preset(_RELEASE_2, fields)


@dataclasses.dataclass(frozen=True)
class SparseVLM(DecoderMethod):
    """Let the words that the picture matches vote, and recycle what they turn down.

    Attributes:
        at: layers before which tokens are dropped; None: 3, 7, 16 of 32, at the same depth of
            any other model.
        recycle: whether turned-down tokens are merged; if not, all of the count are kept ones.
        gravity: whether attention is divided by what position alone gives (v2).
        heads: share of the heads that is averaged, those of largest sums; 14/32 in v2.
    """

    at: tuple[int, ...] | None = None
    recycle: bool = True
    gravity: bool = False
    heads: float = 1.0
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.BEFORE, Reads.START, Reads.TEXT})
    presets: ClassVar[dict[str, Preset]] = {
        "authors-192": _released("300/200/110", (309, 204, 113)),
        "authors-128": _released("303/110/36", (312, 117, 39)),
        "authors-96": _released("on branch main 238/48/26", (249, 55, 27)),
        "authors-64": _released("66/30/17", (82, 32, 18)),
        "authors-v2-192": _released_2((300, 200, 118)),
        "authors-v2-128": _released_2((238, 108, 60)),
        "authors-v2-96": _released_2((246, 54, 28)),
        "authors-v2-64": _released_2((66, 34, 20)),
    }

    def __post_init__(self) -> None:
        if not 0 < self.heads <= 1:
            raise BudgetError(
                f"SparseVLM's heads is the share of the heads that counts, above 0 and up to 1; "
                f"got {self.heads}."
            )

    def layers_in(self, total: int) -> tuple[int, ...]:
        """The three layers, or those asked for."""
        return scaled_layers(_LAYERS, _OF, total) if self.at is None else self.at

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        """Counts that fall as the released ones for 192 tokens do."""
        layers = self.layers_in(total)
        falling = [count / _SHAPE[-1] for count in (*_SHAPE, *_SHAPE[-1:] * 99)][: len(layers)]
        return solve_schedule(layers, n, keep, total, lambda size: [size * n * f for f in falling])

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        seen = tokens.before
        assert seen is not None and tokens.start is not None and tokens.text is not None
        n = tokens.n
        m = n if keep is None else keep
        chosen, _ = ops.raters(tokens.start, tokens.text)  # (1)
        score = self._votes(seen, seen.text[chosen.to(seen.text.device)])  # (2)
        k, clusters = split(n, m) if self.recycle else (m, 0)
        order = ops.top(score, n)
        if clusters == 0:
            return Mapping.select(order[:k].sort().values, n)
        # (3) in slot order, so that ties in density go to the lower slot, not to the better score
        candidates = order[k : k + _candidates(n - k)].sort().values
        centres, member = ops.density_peaks(tokens.features[candidates], clusters, clusters)
        owner = torch.full((n,), -1, device=order.device)
        owner[order[:k]] = torch.arange(k, device=order.device)
        owner[candidates] = k + member
        return Mapping.assign(owner, torch.cat([order[:k], candidates[centres]]))  # (4)

    def _votes(self, seen: LayerAttention, raters: Int[Tensor, " r"]) -> Float[Tensor, " n"]:
        """p_j, but for a factor: attention of the raters, corrected, mean over the chosen heads."""
        if not self.gravity and self.heads == 1:
            return seen.received(raters)
        total = torch.zeros(seen.q.shape[0], len(seen.visual), device=seen.q.device)
        done = 0
        for block in seen.blocks(raters):
            if self.gravity:  # (5)
                near = seen.nearness(raters[done : done + block.shape[1]])
                block = block / near.clamp(min=_LEAST)
            total += block.sum(1)
            done += block.shape[1]
        count = max(1, round(self.heads * len(total)))
        return total[ops.top(total.sum(1), count)].mean(0)  # (6)


def _candidates(dropped: int) -> int:
    return min(dropped, int(0.3 * dropped) + 1)


def split(n: int, m: int) -> tuple[int, int]:
    """How m of n tokens divide into kept ones and clusters of turned-down ones.

    The largest k with k + clusters(n - k) = m; clusters shrink by at most one as k grows by one,
    so that every m above the most clusters has one. A smaller m is all kept ones.
    """
    if m >= n:
        return n, 0
    for k in range(m - 1, 0, -1):
        if k + int(_candidates(n - k) / 10) + 1 == m:
            return k, m - k
    return m, 0
