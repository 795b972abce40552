"""What must survive between forward passes: which original token each cached slot holds.

Outside the decoder layers everything keeps counting original tokens. The cache therefore gets a
subclass of its own class that answers length queries in original tokens, and a `Tables` that
knows the difference. Tables follow whatever happens to the cache: reorder, crop, repeat, select,
reset.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from foveate.attach import faults
from foveate.errors import AttachError, StageNotAvailable


@dataclasses.dataclass
class Segment:
    """The slots of all decoder layers from `first_layer` up to the next segment's first layer.

    Attributes:
        first_layer: the first layer whose cache has this length.
        slots: (b, p) the original index of each physical slot, -1 for a hole.
        holes: whether any slot is a hole (known on the host, so that decoding never asks).
        tail_from: every original token from this one on follows `slots` without a gap; the tail
            is never stored, so a decoded token costs nothing here.
        shift: (b, 1) how far these layers' own numbering moved later position ids down; None
            where they keep their ids.
    """

    first_layer: int
    slots: Int[Tensor, "b p"]
    holes: bool
    tail_from: int
    shift: Int[Tensor, "b 1"] | None = None

    def table(self, seen: int) -> Int[Tensor, "b q"]:
        """(b, p + tail) the original index of every slot when `seen` tokens have gone by."""
        tail = torch.arange(self.tail_from, seen, device=self.slots.device)
        return (
            torch.cat([self.slots, tail.expand(len(self.slots), -1)], 1)
            if len(tail)
            else (self.slots)
        )

    def length(self, seen: int) -> int:
        """Physical slots when `seen` original tokens have gone by."""
        return self.slots.shape[1] + seen - self.tail_from


@dataclasses.dataclass
class Tables:
    """All that a compressed cache remembers.

    Attributes:
        seen: original tokens that have gone by.
        segments: one for each length that layers' caches have, ascending by first layer.
        shift: (b, 1) how far re-indexing moved later position ids down; None for original ids.
        run_id: identity of the attached run that owns the cache.
    """

    seen: int
    segments: list[Segment]
    shift: Int[Tensor, "b 1"] | None = None
    run_id: int = 0

    def segment(self, layer: int) -> Segment | None:
        """The segment that decoder layer `layer` belongs to; None if it holds every token."""
        found = None
        for segment in self.segments:
            if segment.first_layer <= layer:
                found = segment
        return found

    def split(self, firsts: Sequence[int]) -> None:
        """See to it that a segment begins at each of these layers."""
        known = {segment.first_layer for segment in self.segments}
        for first in sorted(set(firsts) - known):
            before = self.segment(first)
            if before is None:
                like = self.segments[0].slots
                slots = torch.arange(self.seen, device=like.device).expand(len(like), -1)
                self.segments.append(Segment(first, slots, False, self.seen))
            else:
                self.segments.append(dataclasses.replace(before, first_layer=first))
            self.segments.sort(key=lambda segment: segment.first_layer)

    def rows(self, index: Int[Tensor, " k"]) -> None:
        """Reorder, repeat or select batch rows."""
        if faults.is_on("tables_not_reordered"):
            index = torch.arange(len(index)) % len(index)
        for segment in self.segments:
            segment.slots = segment.slots.index_select(0, index.to(segment.slots.device))
            if segment.shift is not None:
                segment.shift = segment.shift.index_select(0, index.to(segment.shift.device))
        if self.shift is not None:
            self.shift = self.shift.index_select(0, index.to(self.shift.device))


def tables_of(cache: Any) -> Tables | None:
    """The tables of a compressed cache; None for any other cache."""
    return getattr(cache, "foveate_tables", None)


def compress(cache: Any, tables: Tables) -> None:
    """Give this cache instance its tables, and the subclass that answers in original lengths."""
    cache.foveate_tables = tables
    cache.__class__ = _compressed(type(cache))


def _compressed(cls: type) -> type:
    made = _classes.get(cls)
    if made is None:
        made = _classes[cls] = type(f"Compressed{cls.__name__}", (CompressedCache, cls), {})
    return made


_classes: dict[type, type] = {}


class CompressedCache:
    """Mixed in before a cache's own class: original lengths outside, short tensors inside."""

    foveate_tables: Tables
    layers: list[Any]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Original tokens seen, the same for every layer."""
        return self.foveate_tables.seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Original index of the next token."""
        return self.foveate_tables.seen

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        """(keys, offset) of the mask in original tokens; layers gather their columns from it."""
        query = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.foveate_tables.seen + query, 0

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """The cache's own update; refuses models that no compressor is attached to."""
        if self.foveate_tables.run_id == 0:
            raise AttachError(
                "This cache was compressed, but no compressor is attached any more.\n"
                "Attach the same compressor again to go on with it, or start with a new cache."
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: rows of keys, values and tables move together."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.foveate_tables.rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        for segment in self.foveate_tables.segments[:1]:
            b = len(segment.slots)
            index = torch.arange(b, device=segment.slots.device).repeat_interleave(repeats)
            self.foveate_tables.rows(index)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.foveate_tables.rows(indices)

    def reset(self) -> None:
        """Empty: the next prefill decides anew, with the cache's own class restored."""
        super().reset()  # type: ignore[misc]
        release(self)

    def crop(self, tokens: int) -> None:
        """Forget the last tokens, counted in original ones.

        Takes transformers' both meanings: a negative count to remove, or (before 5.22) the
        length to keep.
        """
        tables = self.foveate_tables
        remove = -tokens if tokens <= 0 else tables.seen - tokens
        if remove <= 0:
            return
        left = tables.seen - remove
        for index, layer in enumerate(self.layers):
            segment = tables.segment(index)
            gone = remove if segment is None else _physical_tail(segment, tables.seen, left)
            _crop_layer(layer, gone)
        for segment in tables.segments:
            if left < segment.tail_from:
                gone = int((segment.slots[0] >= left).sum())
                segment.slots = segment.slots[:, : segment.slots.shape[1] - gone]
                segment.tail_from = left
        tables.seen = left


def widen_static_windows(cache: Any) -> None:
    """Let a static cache's sliding layers hold all tokens; the mask keeps their window.

    A static window rolls over its slots, which leaves no order to keep tables of. The window is
    measured in original distances, so it is the mask's business anyway.
    """
    rolling = [
        index
        for index, layer in enumerate(getattr(cache, "layers", ()))
        if getattr(layer, "is_sliding", False) and getattr(layer, "is_compileable", False)
    ]
    if not rolling:
        return
    from transformers.cache_utils import StaticLayer

    length = max(layer.max_cache_len for layer in cache.layers)
    used = any(cache.layers[index].is_initialized for index in rolling)
    if used or len(rolling) == len(cache.layers):
        raise AttachError(
            "A static cache whose sliding windows are in use, or that has nothing else, cannot "
            "take a compressed prompt.\nUse cache_implementation='dynamic' (the default)."
        )
    for index in rolling:
        cache.layers[index] = StaticLayer(max_cache_len=length)


def check_settles(cache: Any, first: int) -> None:
    """Raise a StageNotAvailable unless the caches of layers from `first` on can be cut."""
    from transformers.cache_utils import DynamicLayer

    for index, layer in enumerate(cache.layers):
        if index >= first and type(layer) is not DynamicLayer:
            raise StageNotAvailable(
                f"The {type(layer).__name__} of decoder layer {index} cannot be cut after the "
                "prefill.\nUse a dynamic cache and a model without sliding windows, or a method "
                "that leaves caches alone."
            )


def settle(cache: Any, first: int) -> None:
    """Cut the caches of layers from `first` on to the tokens that the last layer holds."""
    tables: Tables = cache.foveate_tables
    tables.split([first])
    last = tables.segments[-1]
    left = last.table(tables.seen)
    for index, layer in enumerate(cache.layers):
        segment = tables.segment(index)
        if index < first or segment is None or segment is last:
            continue
        # Every token that is left at the end is held by the layers before.
        held, order = segment.table(tables.seen).sort(1)
        place = torch.searchsorted(held, left).clamp(max=held.shape[1] - 1)
        where = order.gather(1, place).to(layer.keys.device)[:, None, :, None]
        layer.keys = layer.keys.gather(
            2, where.expand(*layer.keys.shape[:2], -1, layer.keys.shape[3])
        )
        layer.values = layer.values.gather(
            2, where.expand(*layer.values.shape[:2], -1, layer.values.shape[3])
        )
    for segment in tables.segments:
        if segment.first_layer >= first and segment is not last:
            segment.slots, segment.holes, segment.tail_from = left, last.holes, tables.seen


def release(cache: Any) -> None:
    """Give a cache instance its own class back."""
    cache.__class__ = type(cache).__mro__[2]
    del cache.foveate_tables


def _physical_tail(segment: Segment, seen: int, left: int) -> int:
    """Slots of `segment` whose original index is `left` or later; the same in every row."""
    if left >= segment.tail_from:
        return seen - left
    counts = (segment.slots >= left).sum(1)
    if int(counts.min()) != int(counts.max()):
        raise AttachError(
            "Cannot crop this cache into its compressed part: rows keep different numbers of "
            "tokens there.\nCrop to a point after the prompt, or start with a new cache."
        )
    return int(counts[0]) + seen - segment.tail_from


def _crop_layer(layer: Any, gone: int) -> None:
    if gone <= 0:
        return
    if "tokens_to_remove" in inspect.signature(layer.crop).parameters:
        layer.crop(-gone)
    else:
        layer.crop(layer.get_seq_length() - gone)
