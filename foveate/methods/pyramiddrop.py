"""PyramidDrop: halve the visual tokens three times on the way through the decoder.

What it does:
    All tokens run through the first quarter of the decoder; before each further quarter the half
    that the last instruction token looks at least is dropped.

The mapping:
    Before layer l (8, 16 and 24 of 32), with q and K as layer l itself would compute them:
    (1) a = softmax(q_last K^T / sqrt(d)) over all tokens, mean over heads;
    (2) P = one-hot rows of the highest a_j, in raster order; 1/2, 1/4, 1/8 of the n tokens stay.

Needs:
    Queries and keys of the layer about to run (its norm and projections run once more on the
    states; no attention map).

Differs from the paper's code:
    Position ids stay; the preset numbers deeper layers' tokens anew, as there. Counts are rounded
    half up instead of down. On LLaVA-NeXT newline tokens stay and do not compete, and every
    picture of a prompt is served, not the first. Grouped-query heads are served (there they fail).

When it fails:
    A quarter of the layers run on everything, so the average cannot fall below a quarter: for
    smaller budgets drop earlier (`at=`). The schedules behind published rows at 192, 128 and 64
    tokens were never released; here they are solved by scaling all three counts alike.

Reference:
    arXiv 2410.17247 (CVPR 2025); Cooperx521/PyramidDrop at 6444f30 (MIT).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import (
    DecoderMethod,
    Preset,
    Reads,
    VisualTokens,
    scaled_layers,
    solve_schedule,
)
from foveate.mapping import Mapping

_RELEASE = "Cooperx521/PyramidDrop at 6444f30: layers 8, 16, 24; 1/2, 1/4, 1/8"
_LAYERS, _OF = (8, 16, 24), 32


@dataclasses.dataclass(frozen=True)
class PyramidDrop(DecoderMethod):
    """Halve the visual tokens three times on the way through the decoder.

    Attributes:
        at: layers before which tokens are dropped; None: 8, 16, 24 of 32, at the same depth of
            any other model.
    """

    at: tuple[int, ...] | None = None
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.AHEAD})
    presets: ClassVar[dict[str, Preset]] = {
        "authors": Preset(_RELEASE, {"schedule": (0.5, 0.25, 0.125)}, positions="reindex"),
    }

    def layers_in(self, total: int) -> tuple[int, ...]:
        """The three layers, or those asked for."""
        return scaled_layers(_LAYERS, _OF, total) if self.at is None else self.at

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        """Each count half of the one before, cut to n."""
        layers = self.layers_in(total)
        falling = [2.0 ** (len(layers) - 1 - step) for step in range(len(layers))]
        return solve_schedule(layers, n, keep, total, lambda size: [size * n * f for f in falling])

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        assert tokens.ahead is not None
        seen = tokens.ahead
        score = seen.rows(seen.everyone.new_tensor([seen.last])).mean(0)[0]  # (1)
        m = tokens.n if keep is None else keep
        return Mapping.select(ops.top(score, m).sort().values, tokens.n)  # (2)
