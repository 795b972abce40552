"""FastV: after a few decoder layers keep the visual tokens that the last token looks at.

What it does:
    The first decoder layers run on everything. Then the visual tokens that the prompt's last token
    attends to most stay, and the others leave the hidden states and the caches of all later layers.

The mapping:
    A is the attention of layer K - 1, s the tokens of the prompt.
    (1) released code: score_j = mean over heads of A[last, j];
        the paper's text (`rows="all"`): mean over heads and over all tokens i of A[i, j];
    (2) P = one-hot rows of the highest scores, in raster order, before layer K.

Needs:
    The attention of one decoder layer: one row of it, or the sum of its rows in chunks. No eager
    attention and no second pass of the layer.

Differs from the paper's code:
    Position ids stay as they are, as there. Ties go to the lower slot. The released KV-cache
    variant runs layer K - 1 twice and doubles its cache; here it runs once. Its K = 0 variant
    (random tokens) is `random`. Newline tokens stay and do not compete.

When it fails:
    Small budgets: K layers run on all tokens, so an average of 64 of 576 leaves 30 at K = 2. The
    last token's attention in early layers is partly positional. Grounding suffers.

Reference:
    arXiv 2403.06764 (ECCV 2024); pkunlp-icler/FastV at d165972 (no licence, nothing copied).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import DecoderMethod, Preset, Reads, VisualTokens, scaled_layers
from foveate.errors import BudgetError
from foveate.mapping import Mapping

_RELEASE = "pkunlp-icler/FastV at d165972"
_METACOMPRESS = "arXiv 2603.21701: attention of the first layer, pruning before the second"
_RELEVANCE = "arXiv 2506.01097"
_TH = {2: "nd", 4: "th"}


def _cut(source: str, layer: int, percent: int) -> Preset:
    return Preset(
        f"{source}: K={layer}, {percent} % pruned",
        {"layer": layer, "schedule": ((100 - percent) / 100,)},
    )


@dataclasses.dataclass(frozen=True)
class FastV(DecoderMethod):
    """Keep the visual tokens that the last token looks at in an early decoder layer.

    Attributes:
        layer: K, the decoder layer before which tokens are dropped, from 1 on; its predecessor's
            attention decides. None: 2 of 32, at the same depth of any other model.
        rows: ``"last"`` as released, ``"all"`` as the paper writes it.
    """

    layer: int | None = None
    rows: str = "last"
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.BEFORE})
    presets: ClassVar[dict[str, Preset]] = {
        **{f"authors-k2-r{cut}": _cut(_RELEASE, 2, cut) for cut in (25, 50, 75)},
        **{f"authors-k3-r{cut}": _cut(_RELEASE, 3, cut) for cut in (50, 75)},
        "authors-k2-72": Preset(f"{_RELEASE}: K=2, rank 72", {"layer": 2, "schedule": (72,)}),
        **{f"metacompress-{cut}": _cut(_METACOMPRESS, 1, cut) for cut in (50, 70, 90)},
        # At the "2nd" and "4th" layer: the FLOPs of its Table 9 (3.5 and 4.2 of 12.9 T for a
        # quarter of 1728 tokens, 28 layers) are those of one and three full layers.
        **{
            f"explainability-{at}{name}": Preset(
                f"{_RELEVANCE}: {share:.0%} kept, at the {at}{_TH[at]} layer",
                {"layer": at - 1, "schedule": (share,)},
            )
            for at, name, share in (
                *((2, "", 0.5), (2, "-25", 0.25), (2, "-10", 0.1)),
                *((4, "", 0.5), (4, "-25", 0.25)),
            )
        },
    }

    def __post_init__(self) -> None:
        if (self.layer is not None and self.layer < 1) or self.rows not in ("last", "all"):
            raise BudgetError(
                f"FastV needs layer >= 1 and rows 'last' or 'all'; got layer={self.layer}, "
                f"rows={self.rows!r}.\nLayer K is decided by the attention of layer K - 1."
            )

    def layers_in(self, total: int) -> tuple[int, ...]:
        """K."""
        return scaled_layers((2,), 32, total) if self.layer is None else (self.layer,)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        assert tokens.before is not None
        seen = tokens.before
        if self.rows == "last":
            score = seen.rows(seen.everyone.new_tensor([seen.last])).mean(0)[0]  # (1)
        else:
            score = seen.received(seen.everyone)
        m = tokens.n if keep is None else keep
        return Mapping.select(ops.top(score, m).sort().values, tokens.n)  # (2)
