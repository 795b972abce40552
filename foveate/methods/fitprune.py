"""FitPrune: in every layer remove the few visual tokens that neither picture nor text looks at.

What it does:
    Each decoder layer has a quota. The tokens that get least attention from the picture itself
    and from the text, taken together, leave after that layer's attention.

The mapping:
    A: attention of layer l, maximum over heads; n tokens left before it.
    (1) self_j = mean over visual i of A[i, j]; cross_j = sum over text i after the picture;
    (2) the quota_l tokens of smallest self_j cross_j go; P = one-hot rows of the others.
    Quotas are fitted once (`foveate.fitting.quotas`); the published ones for LLaVA-1.5-7B are the
    presets, and `keep` takes the fall between the two nearest of them, at the depth of any model.

Needs:
    Attention of every layer that has a quota: all visual and text rows, summed in chunks.

Differs from the paper's code:
    Tokens leave before the next layer; there they leave between attention and MLP of layer l. What
    stays computes the same, and the average counts tokens entering a layer, as there. The rule for
    choosing is the released one (a product); the paper describes the one that the fitting uses (an
    intersection). A quota of the last layer changes nothing and is dropped.

When it fails:
    Its score reads whole columns of attention in most layers, which costs more than it saves on
    small models. Quotas of another model are a guess about this one.

Reference:
    arXiv 2409.10197 (AAAI 2025); ywh187/FitPrune at d28e418 (no licence, nothing copied).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

from foveate import ops
from foveate.compressor import (
    Compressor,
    Preset,
    Reads,
    Stage,
    Step,
    VisualTokens,
    solve_schedule,
)
from foveate.errors import BudgetError
from foveate.mapping import Mapping

_RELEASE = "ywh187/FitPrune at d28e418"
_TOKENS = 576
# FLOPs cut (%) -> tokens removed in layers 0..31 of LLaVA-1.5-7B.
_QUOTAS: dict[int, tuple[int, ...]] = {
    10: (
        *(0, 0, 1, 2, 1, 0, 1, 4, 5, 5, 11, 4, 2, 2, 0, 0),
        *(1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1, 1, 0, 1, 0, 0),
    ),
    20: (
        *(0, 0, 3, 3, 1, 1, 4, 16, 14, 15, 24, 4, 2, 3, 2, 0),
        *(6, 0, 5, 13, 4, 19, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0),
    ),
    30: (
        *(0, 0, 7, 6, 4, 5, 16, 40, 24, 21, 24, 4, 2, 3, 4, 0),
        *(16, 0, 11, 26, 6, 32, 3, 1, 0, 1, 2, 2, 4, 0, 0, 0),
    ),
    40: (
        *(0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1),
        *(26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    ),
    50: (
        *(3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2),
        *(30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    ),
    55: (
        *(6, 17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2),
        *(29, 4, 12, 25, 4, 19, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    ),
    60: (
        *(14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4),
        *(26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    ),
    70: (
        *(48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8),
        *(18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    ),
    80: (
        *(128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8),
        *(7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0),
    ),
    90: (
        *(262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1),
        *(1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0),
    ),
}


@dataclasses.dataclass(frozen=True)
class FitPrune(Compressor):
    """In every layer remove the few visual tokens that neither picture nor text looks at.

    Attributes:
        quotas: tokens removed after the attention of each decoder layer; shares of n if below 1.
            None: the published fall that meets `keep`.
    """

    quotas: tuple[int | float, ...] | None = None
    stage: ClassVar[Stage] = Stage.DECODER
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.BEFORE})
    presets: ClassVar[dict[str, Preset]] = {
        f"authors-{cut}": Preset(f"{_RELEASE}: {cut} % of FLOPs, LLaVA-1.5-7B", {"quotas": quotas})
        for cut, quotas in _QUOTAS.items()
    }

    def __post_init__(self) -> None:
        if self.quotas is not None and not all(quota >= 0 for quota in self.quotas):
            raise BudgetError(
                f"FitPrune needs quotas of tokens (or shares, if below 1) to remove; got "
                f"{min(self.quotas)} among them.\nUse 0 for a layer that removes none."
            )

    @property
    def states_budget(self) -> bool:
        """Whether quotas are given."""
        return self.quotas is not None

    def layers_in(self, total: int) -> tuple[int, ...]:
        """Every layer but the first: what layer l - 1 removes is gone before layer l."""
        return tuple(range(1, total))

    def steps(self, n: int, keep: int | None, total: int) -> tuple[Step, ...]:
        """One step for each layer after which tokens are removed."""
        if self.quotas is None:
            assert keep is not None
            counts = self.decoder_budget(n, keep, total)
        elif len(self.quotas) != total:
            raise BudgetError(
                f"There are {len(self.quotas)} quotas; this model has {total} decoder layers.\n"
                "Fit quotas for it with foveate.fitting.quotas, or give keep=."
            )
        else:
            # Shares add up before they are rounded: many a quota is less than a token of a small n.
            gone = itertools.accumulate(q * n if q < 1 else q for q in self.quotas[:-1])
            counts = tuple(max(0, round(n - lost)) for lost in gone)
        before = (n, *counts)
        return tuple(
            Step(layer, count)
            for layer, count in enumerate(counts, start=1)
            if count < before[layer - 1]
        )

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        """Counts before layers 1 .. total - 1, between the two nearest published falls."""
        curves = [[1.0] * total, *(_left(quotas, total) for quotas in _QUOTAS.values())]
        curves.append([1.0] + [0.0] * (total - 1))

        def shape(size: float) -> list[float]:
            place = (1 - size) * (len(curves) - 1)
            index = min(int(place), len(curves) - 2)
            mix = place - index
            return [
                n * ((1 - mix) * above + mix * below)
                for above, below in zip(curves[index][1:], curves[index + 1][1:], strict=True)
            ]

        return solve_schedule(self.layers_in(total), n, keep, total, shape)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        seen = tokens.before
        assert seen is not None
        own = seen.received(seen.visual, heads="max") / tokens.n  # (1)
        cross = seen.received(seen.text, heads="max")
        m = tokens.n if keep is None else keep
        return Mapping.select(ops.top(own * cross, m).sort().values, tokens.n)  # (2)


def _left(quotas: tuple[int, ...], total: int) -> list[float]:
    """Share of tokens entering each of `total` layers, by depth."""
    gone = [0, *itertools.accumulate(quotas)]
    places = [layer * len(quotas) / total for layer in range(total)]
    return [
        1 - (gone[int(at)] + (at % 1) * (gone[int(at) + 1] - gone[int(at)])) / _TOKENS
        for at in places
    ]
