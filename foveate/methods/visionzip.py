"""VisionZip: keep the most attended tokens, merge the rest into a few contextual ones.

What it does:
    Dominant tokens are the patches that the CLS attends to most. Of the others a few evenly
    spaced ones become targets; every remaining token joins the target whose key is most like its
    own, and a contextual token is the target plus the mean of its members.

The mapping:
    (1) c_j = attention of the CLS to patch j in the tower's selected layer, mean over heads;
    (2) dominant = the D patches of largest c;
    (3) of the M = n - D others in raster order, targets are places 0, s, 2s .., s = floor(M / C);
    (4) every other token joins the target t of largest cos(k_j, k_t), k the layer's keys;
    (5) X~_t = X_t + 1/max(1, |members|) sum_{members} X_j.
    Rows of (5) with members sum to two, as released: not an average. A budget m is split
    C = round(10 m / 64), D = m - C.

Needs:
    Attention and keys of the tower's selected layer; CLS outputs with `cls`.

Differs from the paper's code:
    With a budget the CLS token is not passed on and rows stand in raster order. The presets pass
    it (D counts it), in the released order and positions; on LLaVA-NeXT for each tile: the base
    view, then the mosaic's dominant tokens in raster order, CLS tokens, contextual tokens. There
    newline tokens stay and patches cut off by unpadding take no part (the release drops newlines
    and keeps padding). Towers without a CLS use the mean attention received. The 162+30, 108+20
    and 27+5 splits are not in the repository; they follow 54+10.

When it fails:
    Attention sinks in flat background are dominant tokens too. In half precision assignments flip
    where keys are close.

Reference:
    arXiv 2412.04467 (CVPR 2025), section 3; dvlab-research/VisionZip at 3151f6d (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from foveate import ops
from foveate.compressor import Compressor, Preset, Reads, Stage, VisualTokens
from foveate.errors import BudgetError, StageNotAvailable
from foveate.mapping import Mapping


def _preset(model: str, dominant: int, contextual: int) -> Preset:
    fields = {"dominant": dominant, "contextual": contextual, "cls": True}
    source = f"dvlab-research/VisionZip, {dominant}+{contextual}, {model}"
    return Preset(source, fields, positions="reindex")


@dataclasses.dataclass(frozen=True)
class VisionZip(Compressor):
    """Keep the most attended tokens, merge the rest into a few contextual ones.

    Attributes:
        dominant: D of each tile when no budget is given, the CLS token included with `cls`.
        contextual: C of each tile when no budget is given.
        cls: pass the CLS token on to the language model; needs positions="reindex".
    """

    dominant: int = 54
    contextual: int = 10
    cls: bool = False

    stage: ClassVar[Stage] = Stage.VISION
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.ATTENTION, Reads.KEYS, Reads.CLS})
    presets: ClassVar[dict[str, Preset]] = {
        "authors-192": _preset("LLaVA-1.5", 162, 30),
        "authors-128": _preset("LLaVA-1.5", 108, 20),
        "authors-64": _preset("LLaVA-1.5", 54, 10),
        "authors-640": _preset("LLaVA-NeXT, 5 tiles", 108, 20),
        "authors-320": _preset("LLaVA-NeXT, 5 tiles", 54, 10),
        "authors-160": _preset("LLaVA-NeXT, 5 tiles", 27, 5),
    }

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        c, keys = tokens.attention, tokens.keys  # (1)
        if c is None or keys is None:
            raise StageNotAvailable("VisionZip reads the vision tower's attention and keys.")
        n, device, cls = tokens.n, c.device, self.cls and keep is None
        if keep is None:
            d, k, tile = self.dominant - self.cls, self.contextual, tokens.tiles
        else:
            k = min(round(10 * keep / 64), keep - 1)
            d, tile = keep - k, None
        tile = torch.zeros(n, dtype=torch.long, device=device) if tile is None else tile
        tops, targets, joined = [], [], torch.full((n,), -1, device=device)
        for number in tile.unique().tolist():
            here = (tile == number).nonzero().flatten()
            if d < 1 or len(here) < d + k:
                raise BudgetError(
                    f"VisionZip's {self.dominant}+{self.contextual} asks for more than the "
                    f"{len(here)} tokens of a tile.\nUse keep= or another preset."
                )
            top = ops.top(c[here], d)  # (2)
            rest = here[ops.others(top, len(here))]
            places = torch.arange(k, device=device) * (len(rest) // max(1, k))
            centres, members = rest[places], rest[ops.others(places, len(rest))]  # (3)
            if k and len(members):
                joined[members] = centres[ops.cosine(keys[members], keys[centres]).argmax(1)]  # (4)
            tops.append(here[top.sort().values])
            targets.append(centres)
        # Columns n, n + 1 .. are the CLS tokens of the tiles. The base view comes first.
        sentinels = torch.arange(n, n + cls * len(tops), device=device)
        mosaic = torch.cat([tops[0][:0], *tops[1:]]).sort().values
        columns = torch.cat(
            [sentinels[:1], tops[0], targets[0], mosaic, sentinels[1:], *targets[1:]]
        )
        found = self._mapping(columns, joined, tokens, len(sentinels))
        return found if keep is None else found.in_raster_order()

    @staticmethod
    def _mapping(
        columns: Int[Tensor, " m"], joined: Int[Tensor, " n"], tokens: VisualTokens, virtual: int
    ) -> Mapping:
        """P whose rows are sources `columns`, each plus the mean of what `joined` it (5)."""
        n, device = len(joined), joined.device
        # A CLS row lives on a slot that no other row needs, so that it has a place in pictures.
        free = ops.others(columns[columns < n], n)
        if virtual and (tokens.cls is None or len(free) < virtual):
            raise StageNotAvailable("VisionZip's presets pass the CLS token; this tower has none.")
        anchors = columns.clone()
        anchors[columns >= n] = free[:virtual]
        rows = torch.arange(len(columns), device=device)
        row_of = torch.zeros(n, dtype=torch.long, device=device)
        row_of[anchors] = rows
        members = (joined >= 0).nonzero().flatten()
        target = joined[members]
        share = 1 / torch.bincount(target, minlength=n)[target]
        return Mapping.sparse(
            torch.cat([rows, row_of[target]]),
            torch.cat([columns, members]),
            torch.cat([torch.ones(len(columns), device=device), share]),
            n=n,
            anchors=anchors,
            virtual=virtual,
        )
