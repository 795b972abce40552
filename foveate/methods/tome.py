"""ToMe: merge similar tokens little by little, between the blocks of the vision tower.

What it does:
    Before each tower block the r most similar pairs of tokens - one at an even, one at an odd
    place - are averaged. Later blocks run on fewer tokens, and attend to a merged token as often
    as it has patches behind it.

The mapping:
    (1) s_ab = cos(k_a, k_b) for a in A (even places), b in B (odd); k the keys of the block that
        ran last, mean over heads; every a proposes its best b;
    (2) the r best proposals merge: x <- sum(x size)/sum(size), size <- sum(size);
    (3) attention logits of a token gain log(size) (proportional attention).
    P has one row for each final token, anchored on the middle one of its patches (`cover` shows
    all of them). X~ = P f(x): the tower itself is changed.

Needs:
    A tower with one patch a slot and one rectangular sequence a tile.

Differs from the paper's code:
    Merging stands between two blocks, where the paper merges between attention and MLP: the keys
    are the same, the MLP runs on the longer sequence once. Survivors keep their order, which the
    released code loses. r is constant with the remainder on the first blocks, so that m is exact;
    where so few blocks cannot merge down to m, an equidistant choice of what they leave is kept
    (to merge more in the first blocks instead was far worse in a trial). Tiles merge one by
    one, all alike. The CLS token neither merges nor receives.

When it fails:
    Under 1/4 of the tokens unlike patches must merge; at 5 % little but averages is left.

Reference:
    arXiv 2210.09461 (ICLR 2023), section 3; facebookresearch/ToMe (CC BY-NC 4.0, nothing copied).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import Stage, TowerMethod, TowerPlan, VisualTokens
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class ToMe(TowerMethod):
    """Merge similar tokens little by little, between the blocks of the vision tower.

    Attributes:
        proportional: attend to a merged token as often as it has patches (recommended by the
            paper for towers that were not trained with merging).
    """

    proportional: bool = True

    stage: ClassVar[Stage] = Stage.ENCODER

    def tower_plan(self, height: int, width: int, target: int, blocks: int) -> TowerPlan:
        """The same r before each of `blocks` blocks, the remainder on the first ones.

        No block may merge more than half of its tokens; what does not fit moves to later blocks,
        and what fits nowhere is left to the call, which keeps exactly m anyway.
        """
        tokens, left = height * width, height * width - target
        merges = []
        for done in range(blocks):
            r = min(-(-left // (blocks - done)), tokens // 2)
            merges.append(r)
            tokens, left = tokens - r, left - r
        return TowerPlan(merges=tuple(merges), proportional=self.proportional)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        if tokens.cells is None:
            raise StageNotAvailable("ToMe acts inside the vision tower; attach it to a model.")
        m = tokens.n if keep is None else keep
        index, cover = ops.one_slot_per_cell(tokens.cells, m)
        return Mapping.select(index, tokens.n, cover=cover)
