"""PruMerge: keep the tokens that the CLS attends to most, each enriched by its likes.

What it does:
    Keeps the patches with outlying CLS attention and adds to each the patches whose keys are most
    like its own, weighted by their attention. One further token sums up all that was dropped.

The mapping:
    (1) a = softmax(q_CLS k^T / sqrt(c)), heads not split, last block;
    (2) I = the k largest a; k = n times the share of outliers a > Q3 + 1.5 (Q3 - Q1), or m - 1;
    (3) X'_i = X_i + sum_{j in NN(i)} a_j X_j, NN(i) the 32 nearest others by cos(k_i, k_j);
    (4) e = sum_{j not in I} a_j X_j, one more row.
    Rows of (3) are the identity plus small weights and do not sum to one. e lives on the dropped
    slot of highest attention. With a budget of 1 there is no e.

Needs:
    The last tower block's unsplit q and k (`wide_attention`, `wide_keys`).

Differs from the paper's code:
    The paper writes a weighted average; the released code, followed here, does not divide by the
    weights. Outliers are counted for each picture, not over the batch. With `keep` rows stand in
    raster order; the preset keeps the release's descending attention, e last. Towers without a
    CLS token use their mean query.

When it fails:
    Training-free, the added weights push tokens off the distribution that the model knows; the
    authors fine-tune. Outliers of attention are often registers in flat background.

Reference:
    arXiv 2403.15388 (ICCV 2025), Eq. 3-6; 42Shawn/LLaVA-PruMerge at 097c041 (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import Compressor, Preset, Reads, Stage, VisualTokens
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping

_RELEASE = "42Shawn/LLaVA-PruMerge at 097c041"


@dataclasses.dataclass(frozen=True)
class PruMerge(Compressor):
    """Keep the tokens that the CLS attends to most, each enriched by its likes.

    Attributes:
        ratio: share of tokens kept when no budget is given; None counts attention outliers.
        neighbours: how many like tokens are added to each.
    """

    ratio: float | None = None
    neighbours: int = 32

    stage: ClassVar[Stage] = Stage.VISION
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.WIDE})
    presets: ClassVar[dict[str, Preset]] = {
        "authors": Preset(f"{_RELEASE}, adaptive", positions="reindex"),
        "authors-fixed": Preset(f"{_RELEASE}, 1/8", {"ratio": 0.125}, positions="reindex"),
    }

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        n, a, keys = tokens.n, tokens.wide_attention, tokens.wide_keys  # (1)
        if a is None or keys is None:
            raise StageNotAvailable("PruMerge reads the last tower block's queries and keys.")
        if keep is None:
            share = ops.outlier_share(a) if self.ratio is None else self.ratio
            kept = ops.top(a, min(max(1, int(n * share)), n - 1))  # (2)
        else:
            kept = ops.top(a, max(1, keep - 1))
        extra = keep is None or keep > 1
        found = ops.enriched(kept, a, keys, self.neighbours, extra=extra)  # (3) (4)
        return found if keep is None else found.in_raster_order()
