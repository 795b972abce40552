"""Position ids of kept tokens where they are re-indexed, and DeepStack's place among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.attach import faults
from foveate.attach.forward import Pass, fill


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
        moved = _reindex(now, rope, now.kept[0])
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


def note_ids(now: Pass, kwargs: dict[str, Any]) -> None:
    """Keep this pass's position ids, for layers that number their tokens anew."""
    ids = kwargs.get("position_ids")
    if ids is None:
        ids = torch.arange(now.past, now.past + now.length, device=now.device)[None]
    ids = ids.expand(*ids.shape[:-2], now.batch, -1)
    now.ids = ids[-3:] if ids.ndim == 3 else ids


def renumbered(now: Pass, first: int | None, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Contiguous position ids of the tokens that run in a stretch of layers.

    Args:
        now: the pass, with its ids.
        first: the stretch's first layer; None if this pass drops nothing there.
        shift: (b, 1) how far earlier passes moved later ids down there.

    Returns:
        The ids, and how far this pass and earlier ones move later ids down.
    """
    assert now.ids is not None
    ids = now.ids.clone()
    if shift is not None:
        ids -= shift.to(ids.device)
    if first is None:
        return ids, shift
    table = now.kept[first]
    moved = _reindex(now, ids if ids.ndim == 3 else ids[None], table)
    index = fill(table).to(ids.device)
    ids = ids.gather(-1, index.expand(*ids.shape[:-1], -1))
    return ids, moved if shift is None else moved + shift.to(moved.device)


def _reindex(now: Pass, rope: Tensor, table: Tensor) -> Tensor:
    """Dense-rank the kept tokens' position ids in place; returns how far later ones move."""
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
