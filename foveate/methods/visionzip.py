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
from jaxtyping import Float, Int
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
        if keep is not None:
            contextual = min(round(10 * keep / 64), keep - 1)
            everything = torch.arange(tokens.n, device=c.device)
            parts = [_zip(everything, c, keys, keep - contextual, contextual)]
            return _rows(parts, tokens, with_cls=False)
        tile = torch.zeros_like(c, dtype=torch.long) if tokens.tiles is None else tokens.tiles
        dominant = self.dominant - self.cls
        parts = []
        for number in tile.unique().tolist():
            here = (tile == number).nonzero().flatten()
            if len(here) < dominant + self.contextual or dominant < 1:
                raise BudgetError(
                    f"VisionZip's {self.dominant}+{self.contextual} asks for more than the "
                    f"{len(here)} tokens of a tile.\nUse keep= or another preset."
                )
            parts.append(_zip(here, c, keys, dominant, self.contextual))
        return _rows(parts, tokens, with_cls=self.cls)


_Part = tuple[Int[Tensor, " d"], Int[Tensor, " c"], Int[Tensor, " k"], Int[Tensor, " k"]]


def _zip(
    here: Int[Tensor, " p"],
    c: Float[Tensor, " n"],
    keys: Float[Tensor, "n h"],
    dominant: int,
    contextual: int,
) -> _Part:
    """Dominant slots, targets, and members with the target each joins, among slots `here`."""
    top = ops.top(c[here], dominant)  # (2)
    rest = here[ops.others(top, len(here))]
    stride = max(1, len(rest) // max(1, contextual))
    is_target = torch.zeros(len(rest), dtype=torch.bool, device=c.device)
    is_target[torch.arange(contextual, device=c.device) * stride] = True  # (3)
    targets, members = rest[is_target], rest[~is_target]
    joined = members[:0]
    if contextual and len(members):
        joined = targets[ops.cosine(keys[members], keys[targets]).argmax(1)]  # (4)
    else:
        members = members[:0]
    return here[top.sort().values], targets, members, joined


def _rows(parts: list[_Part], tokens: VisualTokens, *, with_cls: bool) -> Mapping:
    """P in the released order: base view (CLS, dominant, contextual), then all other tiles."""
    n, device = tokens.n, tokens.features.device
    anchors = torch.cat([torch.cat(part[:2]) for part in parts])
    free = ops.others(anchors, n)  # slots that CLS rows may claim for attribution
    if with_cls and (tokens.cls is None or len(free) < len(parts)):
        raise StageNotAvailable("VisionZip's presets pass the CLS token, which this tower lacks.")
    sentinel = torch.arange(n, n + len(parts), device=device)  # CLS of tile i is column n + i
    order, later = [], []
    for number, (dominant, targets, _, _) in enumerate(parts):
        cls = sentinel[number : number + 1] if with_cls else sentinel[:0]
        if number == 0:
            order += [cls, dominant, targets]
        else:
            order.append(dominant)
            later += [(1, cls), (2, targets)]
    mosaic = torch.cat([order.pop() for _ in parts[1:]] + [anchors[:0]]).sort().values
    order += [mosaic, *(x for _, x in sorted(later, key=lambda pair: pair[0]))]
    first = torch.cat(order)  # (m,) the source that each row starts from
    rows = torch.arange(len(first), device=device)
    slot = torch.where(first < n, first, free[(first - n).clamp(min=0)] if with_cls else first)
    row_of = torch.full((n,), -1, device=device)
    row_of[slot] = rows
    members, joined = (torch.cat([part[i] for part in parts]) for i in (2, 3))
    count = torch.bincount(joined, minlength=n).clamp(min=1)
    return Mapping.sparse(
        torch.cat([rows, row_of[joined]]),
        torch.cat([first, members]),
        torch.cat([torch.ones(len(first), device=device), 1 / count[joined]]),  # (5)
        n=n,
        anchors=slot,
        virtual=len(parts) if with_cls else 0,
    )
