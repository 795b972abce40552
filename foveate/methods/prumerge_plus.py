"""PruMerge+: PruMerge, with evenly spread tokens beside the attended ones.

What it does:
    Attention outliers leave whole regions without a token. PruMerge+ adds tokens at even
    distances, then merges as PruMerge does.

The mapping:
    (1) a, k and I as in PruMerge: the k tokens of largest a;
    (2) S = every s-th place that is not in I, s = floor(floor(1/r) / 3) with r = k/n; with a
        budget, k = ceil((m - 1) / 2) and S is an equidistant choice of the other places;
    (3) X'_i = X_i + sum_{j in NN(i)} a_j X_j for i in I and S;
    (4) e = sum of a_j X_j over the rest.

Needs:
    The last tower block's unsplit q and k (`wide_attention`, `wide_keys`).

Differs from the paper's code:
    As PruMerge. The release's stride s is 1 for r > 1/6, which keeps nearly everything, and 0
    above 1/3, which crashes; here s >= 1. It samples without removing duplicates in training,
    which loses tokens; here places are distinct.

When it fails:
    As PruMerge; without a budget the count jumps with the share of outliers.

Reference:
    arXiv 2403.15388 (ICCV 2025), section 3.4; 42Shawn/LLaVA-PruMerge at 097c041 (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from foveate import ops
from foveate.compressor import Compressor, Preset, Reads, Stage, VisualTokens
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping

_RELEASE = "42Shawn/LLaVA-PruMerge at 097c041"


@dataclasses.dataclass(frozen=True)
class PruMergePlus(Compressor):
    """PruMerge, with evenly spread tokens beside the attended ones.

    Attributes:
        ratio: share of attended tokens when no budget is given; None counts outliers.
        neighbours: how many like tokens are added to each.
    """

    ratio: float | None = None
    neighbours: int = 32

    stage: ClassVar[Stage] = Stage.VISION
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.WIDE})
    presets: ClassVar[dict[str, Preset]] = {
        "authors": Preset(f"{_RELEASE}, adaptive", positions="reindex"),
    }

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        n, a, keys = tokens.n, tokens.wide_attention, tokens.wide_keys  # (1)
        if a is None or keys is None:
            raise StageNotAvailable("PruMerge+ reads the last tower block's queries and keys.")
        if keep is None:
            share = ops.outlier_share(a) if self.ratio is None else self.ratio
            attended = ops.top(a, min(max(1, int(n * share)), n - 1))
            step = max(1, int(n / len(attended)) // 3)  # (2) s
            even = torch.arange(0, n - 1, step, device=a.device)  # the last place is never taken
            even = even[~torch.isin(even, attended)]
            kept = torch.cat([attended, even[: n - 1 - len(attended)]])
        else:
            budget = max(1, keep - 1)
            attended = ops.top(a, -(-budget // 2))
            rest = ops.others(attended, n)
            even = rest[ops.equidistant(budget - len(attended), len(rest)).to(a.device)]
            kept = torch.cat([attended, even])
        extra = keep is None or keep > 1
        found = ops.enriched(kept, a, keys, self.neighbours, extra=extra)  # (3) (4)
        return found if keep is None else found.in_raster_order()
