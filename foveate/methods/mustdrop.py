"""MustDrop: protect what the vision tower looks at, drop what the text as a whole ignores.

What it does:
    In the vision tower windows of alike patches become one token each. The tower's most-attended
    tokens are a key set that stays to the end. At four depths of the decoder the tokens that all
    text together, and every single text token, pays little attention to are dropped. After the
    prefill the caches of the layers before the last drop are cut to what is left. By default only
    the decoder's stage acts: `alike` and `settle` add the other two, and so do the presets.

The mapping:
    (0) `alike`: after the tower's first block, windows of 3 x 3 slots whose mean cosine between two
        tokens is `alike` or more are averaged, with `keep` no more of them than leave that many
        tokens. Each lives on its middle slot; P = one-hot rows, and X~ = P f(x).
    A: attention of the layer before, mean over heads, rows of all text after the picture.
    (1) key set: the ceil(0.08 n) tokens of highest attention in the vision tower, n those that
        enter the decoder;
    (2) g_j = sum over text i of A[i, j], m_j = max over text i;
    (3) presets: j goes if g_j < global * sum(g) and m_j < individual, unless in the key set;
        with `keep`: the key set first, then the highest g_j, up to the count;
    (4) P = one-hot rows of what stays, in raster order.
    (5) `settle`: after the prefill, layers from the one before the first drop on (2 of 32) hold in
        their caches, of each picture, the tokens that (4) left at its last step.

Needs:
    Attention of the layers before 3, 7, 11 and 15 of 32, text rows; the tower's attention. `alike`
    a tower with one patch a slot and one rectangular sequence a tile; `settle` a dynamic cache
    without sliding windows. Models that lack them are refused.

Differs from the paper's code:
    Each tile merges as many windows as are alike in it, whatever is in its batch; there all merge
    as many as the one with fewest. Merged tokens stay where their windows were; there they go to
    the front. Position ids stay; the presets number deeper layers' tokens anew, as there, and what
    is decoded counts on from the layer's own prompt; there from the cut cache's length, below the
    positions of the prompt's end. The key set is read in the block that feeds the projector, not
    in the last. Without a cache there is nothing to cut.

When it fails:
    Thresholds were published for TextVQA and one VizWiz case only, and the count then depends on
    the picture. A key set of 8 % fills most of a small budget. A cut cache is all that a later
    question can look at.

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
    Compressor,
    DecoderMethod,
    Preset,
    Reads,
    Stage,
    TowerMethod,
    TowerPlan,
    VisualTokens,
    Windows,
    scaled_layers,
    solve_schedule,
)
from foveate.errors import BudgetError, StageNotAvailable
from foveate.mapping import Mapping

_RELEASE = "liuting20/MustDrop at 909afa5"
_LAYERS, _OF = (3, 7, 11, 15), 32
_SIDE, _ALIKE = 3, 0.8


def _thresholds(source: str, together: float, single: float) -> Preset:
    fields = {"together": together, "single": single, "alike": _ALIKE, "settle": True}
    return Preset(f"{_RELEASE}: {source}", fields, positions="reindex")


@dataclasses.dataclass(frozen=True)
class Merge(TowerMethod):
    """The stage in the vision tower: windows of alike slots become one token each.

    Attributes:
        alike: the mean cosine between a window's tokens from which on it is merged.
    """

    alike: float = _ALIKE
    stage: ClassVar[Stage] = Stage.ENCODER
    at_least: ClassVar[bool] = True

    def tower_plan(self, height: int, width: int, target: int, blocks: int) -> TowerPlan:
        """As many windows as are alike, and `target` tokens at least."""
        if blocks < 1:
            raise StageNotAvailable(
                "MustDrop merges after the vision tower's first block, which the projector reads "
                "here.\nUse it with alike=None."
            )
        most = (height * width - target) // (_SIDE**2 - 1)
        return TowerPlan(windows=Windows(_SIDE, self.alike, most))

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        if tokens.cells is None:
            raise StageNotAvailable(
                "MustDrop merges inside the vision tower; attach it to a model."
            )
        m = max(keep or 1, len(tokens.cells.unique()))
        index, cover = ops.one_slot_per_cell(tokens.cells, m)
        return Mapping.select(index, tokens.n, cover=cover)  # (0)


@dataclasses.dataclass(frozen=True)
class MustDrop(DecoderMethod):
    """Protect what the vision tower looks at, drop what the text as a whole ignores.

    Attributes:
        together, single: thresholds on g_j and m_j; both None where `keep` decides.
        key_share: share of the picture's tokens in the key set.
        at: layers before which tokens are dropped; None: 3, 7, 11, 15 of 32.
        alike: the mean cosine from which on a window merges in the tower (0.8 as published); None:
            none does.
        settle: whether caches are cut after the prefill.
    """

    together: float | None = None
    single: float | None = None
    key_share: float = 0.08
    at: tuple[int, ...] | None = None
    alike: float | None = None
    settle: bool = False
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
    def parts(self) -> tuple[Compressor, ...]:
        """The stage in the tower, if windows merge there, and that between decoder layers."""
        if self.alike is None:
            return (self,)
        return Merge(self.alike), dataclasses.replace(self, alike=None)

    def budgets(self, n: int, keep: int | None, total: int) -> tuple[int | None, ...]:
        """The budget is the average, and the fewest that the stage in the tower may leave."""
        return (1 if keep is None else keep, keep)[2 - len(self.parts) :]

    def settles_from(self, total: int) -> int | None:
        """The layer before the first drop."""
        layers = self.layers_in(total)
        return layers[0] - 1 if self.settle and layers else None

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
        assert seen is not None and tokens.entering is not None
        if tokens.attention is None:
            raise StageNotAvailable("MustDrop reads the vision tower's attention; there is none.")
        # (1) the key set was drawn once, from all of the picture's tokens that came in
        key = torch.zeros(n, dtype=torch.bool, device=tokens.attention.device)
        size = min(n, math.ceil(self.key_share * tokens.entering))
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
