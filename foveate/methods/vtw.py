"""VTW: from one decoder layer on run without any visual token.

What it does:
    The first layers run on everything; then all visual tokens are withdrawn, on the view that the
    text has taken in what it needs.

The mapping:
    Before layer K, P has no rows. The average over L layers is n K / L, and with `keep` K is the
    greatest for which it is not above: n K / L <= keep + 1/2 (a count is whole).

Needs:
    Nothing.

Differs from the paper's code:
    Nothing where position ids are kept, its default. `foveate.fitting.withdrawal_layer` is its
    search: the first K >= 5 for which the next token's distribution stays within KL <= 0.003 of
    the full model's, on average over samples; K = L, no withdrawal, if there is none. `keep` is
    no part of it.

When it fails:
    Questions whose answer is looked up late, or in a later turn: the later layers hold no visual
    token any more. K is whole: what runs may lie up to n / L tokens below `keep`.

Reference:
    arXiv 2405.05803 (AAAI 2025); lzhxmu/VTW at a3d8cfc (no licence, nothing copied).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch

from foveate.compressor import Compressor, Preset, Stage, Step, VisualTokens
from foveate.errors import BudgetError
from foveate.mapping import Mapping

_RELEASE = "lzhxmu/VTW at a3d8cfc"


@dataclasses.dataclass(frozen=True)
class VTW(Compressor):
    """From one decoder layer on run without any visual token.

    Attributes:
        layer: K, up to the number of layers, which withdraws nothing; None: the last one whose
            average is not above `keep`.
    """

    layer: int | None = None
    stage: ClassVar[Stage] = Stage.DECODER
    presets: ClassVar[dict[str, Preset]] = {
        "authors-15": Preset(f"{_RELEASE}: LLaVA-1.5-7B, K=15", {"layer": 15}),
        "authors-16": Preset(f"{_RELEASE}: its default, K=16", {"layer": 16}),
    }

    @property
    def states_budget(self) -> bool:
        """Whether the layer is given."""
        return self.layer is not None

    def layers_in(self, total: int) -> tuple[int, ...]:
        """The layer, or every one that a budget may ask for."""
        if self.layer == total:
            return ()
        return tuple(range(1, total)) if self.layer is None else (self.layer,)

    def steps(self, n: int, keep: int | None, total: int) -> tuple[Step, ...]:
        """One withdrawal, or none behind the last layer.

        Raises:
            BudgetError: even one layer on all tokens is more than `keep` on average.
        """
        layer = self.layer
        if layer is None:
            assert keep is not None
            layer = (2 * keep + 1) * total // (2 * n)
        if self.layer is None and layer < 1:
            lowest = math.ceil((2 * n - total) / (2 * total))
            raise BudgetError(
                f"keep={keep} cannot be reached: layer 0 of {total} already runs on all {n} tokens."
                f"\nThe lowest average with a withdrawal at layer 1 is {lowest}; use that."
            )
        return (Step(layer, 0),) if layer < total else ()

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        none = torch.zeros(0, dtype=torch.long, device=tokens.features.device)
        return Mapping.select(none, tokens.n)
