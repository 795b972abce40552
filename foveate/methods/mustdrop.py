"""MustDrop: protect what the vision tower looks at, drop what the text as a whole ignores.

What it does:
    The tower's most-attended tokens are a key set that stays to the end. At four depths of the
    decoder the tokens that all text together, and every single text token, pays little attention
    to are dropped.

The mapping:
    A: attention of the layer before, mean over heads, rows of all text after the picture.
    (1) key set: the ceil(0.08 n) tokens of highest attention in the vision tower;
    (2) g_j = sum over text i of A[i, j], m_j = max over text i;
    (3) presets: j goes if g_j < global * sum(g) and m_j < individual, unless in the key set;
        with `keep`: the key set first, then the highest g_j, up to the count;
    (4) P = one-hot rows of what stays, in raster order.

Needs:
    Attention of the layers before 3, 7, 11 and 15 of 32, text rows; the tower's attention.

Differs from the paper's code:
    Two of its three stages differ. The merging of alike 3 x 3 windows after the tower's first
    block is left out. After prefill there, caches of layers 2 to 14 are cut down to the tokens
    that survived to the end; here every layer keeps what ran in it. Position ids stay; the presets
    number deeper layers' tokens anew, as there. The key set is read in the block that
    feeds the projector, not in the last.

When it fails:
    Thresholds were published for TextVQA and one VizWiz case only, and the count then depends on
    the picture. A key set of 8 % fills most of a small budget.

Reference:
    arXiv 2411.10803; liuting20/MustDrop at 909afa5 (Apache-2.0 by its README).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch

from foveate import ops
from foveate.compressor import (
    DecoderMethod,
    Preset,
    Reads,
    VisualTokens,
    scaled_layers,
    solve_schedule,
)
from foveate.errors import BudgetError, StageNotAvailable
from foveate.mapping import Mapping

_RELEASE = "liuting20/MustDrop at 909afa5"
_LAYERS, _OF = (3, 7, 11, 15), 32


def _thresholds(source: str, together: float, single: float) -> Preset:
    fields = {"together": together, "single": single}
    return Preset(f"{_RELEASE}: {source}", fields, positions="reindex")


@dataclasses.dataclass(frozen=True)
class MustDrop(DecoderMethod):
    """Protect what the vision tower looks at, drop what the text as a whole ignores.

    Attributes:
        together, single: thresholds on g_j and m_j; both None where `keep` decides.
        key_share: share of the picture's tokens in the key set.
        at: layers before which tokens are dropped; None: 3, 7, 11, 15 of 32.
    """

    together: float | None = None
    single: float | None = None
    key_share: float = 0.08
    at: tuple[int, ...] | None = None
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.BEFORE, Reads.ATTENTION})
    presets: ClassVar[dict[str, Preset]] = {
        "authors-192": _thresholds("TextVQA, 192 tokens", 0.001, 0.001),
        "authors-128": _thresholds("TextVQA, 128 tokens", 0.0012, 0.001),
        "authors-64": _thresholds("TextVQA, 64 tokens", 0.011, 0.01),
        "authors-vizwiz-64": _thresholds("VizWiz, 64 tokens", 0.005, 0.001),
    }

    def __post_init__(self) -> None:
        stated = (self.together is not None, self.single is not None)
        if stated[0] != stated[1] or (stated[0] and self.schedule is not None):
            raise BudgetError(
                f"MustDrop takes both thresholds, or a schedule, or keep; got together="
                f"{self.together}, single={self.single}, schedule={self.schedule}."
            )

    @property
    def states_budget(self) -> bool:
        """Whether thresholds or a schedule are given."""
        return self.together is not None or self.schedule is not None

    def layers_in(self, total: int) -> tuple[int, ...]:
        """The four layers, or those asked for."""
        return scaled_layers(_LAYERS, _OF, total) if self.at is None else self.at

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        """The same share of what is left goes at every step."""
        layers = self.layers_in(total)
        return solve_schedule(
            layers, n, keep, total, lambda size: [n * size ** (i + 1) for i in range(len(layers))]
        )

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        seen, n = tokens.before, tokens.n
        assert seen is not None and tokens.total is not None
        if tokens.attention is None:
            raise StageNotAvailable("MustDrop reads the vision tower's attention; there is none.")
        # (1) the key set was drawn once, from all of the picture's tokens
        key = torch.zeros(n, dtype=torch.bool, device=tokens.attention.device)
        size = min(n, math.ceil(self.key_share * tokens.total))
        key[ops.top(tokens.attention, size)] = True
        # (2)
        together = torch.zeros(n, device=seen.q.device)
        single = torch.zeros(n, device=seen.q.device)
        for block in seen.blocks(seen.text):
            rows = block.mean(0)
            together += rows.sum(0)
            single = torch.maximum(single, rows.amax(0))
        key = key.to(together.device)
        if keep is not None:
            order = ops.top(together, n)
            order = torch.cat([order[key[order]], order[~key[order]]])[:keep]
            return Mapping.select(order.sort().values, n)
        if self.together is None or self.single is None:
            return Mapping.identity(n, together.device)
        stays = (together >= self.together * together.sum()) | (single >= self.single) | key  # (3)
        return Mapping.select(stays.nonzero().flatten(), n)  # (4)
