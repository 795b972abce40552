"""Position ids of kept tokens where they are re-indexed, and DeepStack's place among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.attach import faults
from foveate.attach.forward import Pass


def rewrite(now: Pass, kwargs: dict[str, Any], positions: str) -> None:
    """Rewrite position ids where they are re-indexed, in this pass or in an earlier one."""
    shift = None if now.tables is None else now.tables.shift
    reindex = positions == "reindex" and bool(now.kept)
    if shift is None and not reindex:
        return
    if faults.is_on("stale_position_shift"):
        shift = None
    ids = kwargs.get("position_ids")
    if ids is None:
        ids = torch.arange(now.past, now.past + now.length, device=now.device)[None]
    ids = ids.expand(*ids.shape[:-2], now.batch, -1).clone()
    rope = ids[-3:] if ids.ndim == 3 else ids[None]  # 3 M-RoPE rows; a fourth counts text
    if shift is not None:
        rope -= shift.to(rope.device)[None]
    if reindex:
        moved = _reindex(now, rope)
        old = torch.zeros_like(moved) if shift is None else shift.to(moved.device)
        if now.tables is not None:
            now.tables.shift = moved + old
    kwargs["position_ids"] = ids
    if faults.is_on("packed_positions"):
        return
    if kwargs.get("attention_mask") is None and now.past == 0:
        # Gapped ids with no mask would be read as several packed sequences.
        kwargs["attention_mask"] = torch.ones(
            now.batch, now.length, dtype=torch.long, device=now.device
        )


def _reindex(now: Pass, rope: Tensor) -> Tensor:
    """Dense-rank the kept tokens' position ids in place; returns how far later ones move."""
    table = now.kept[0]
    shifts = []
    for row in range(now.batch):
        kept = table[row][table[row] >= 0]
        everything = torch.arange(now.length)
        if now.prompt is not None:
            everything = everything[now.prompt.real[row]]
        real = kept[torch.isin(kept, everything)]
        source = torch.arange(now.length)
        for live in now.live:
            if live.placed.row == row and len(rope) == 3:
                source[live.alive] = live.source
        values = rope[:, row][:, source[real].to(rope.device)]
        levels = values.unique()
        last = int(rope[:, row, everything.to(rope.device)].max())
        if len(rope) == 1:
            # One axis: tokens keep their order, so contiguous ids from the first one on.
            new = values[0, 0] + torch.arange(len(real), device=rope.device)[None]
        else:
            new = torch.searchsorted(levels, values.contiguous()) + levels[0]
        rope[:, row] = rope[:, row].clamp(max=int(new.max()))
        rope[:, row, real.to(rope.device)] = new
        shifts.append(last - int(new.max()))
    return torch.tensor(shifts, device=rope.device)[:, None]


def take_deepstack(now: Pass, kwargs: dict[str, Any]) -> None:
    """Qwen3-VL adds visual features inside the first layers through a full-length mask."""
    features = kwargs.pop("deepstack_visual_embeds", None)
    mask = kwargs.pop("visual_pos_masks", None)
    if features is None or mask is None:
        return
    now.deepstack = list(features)
    flat = mask.cpu().flatten()
    index = torch.where(flat, flat.long().cumsum(0) - 1, -1).reshape(mask.shape)
    for live in now.live:
        row = live.placed.row
        index[row, live.alive] = index[row, live.source].clone()
    now.deep_index = index
