"""Before and after one decoder layer: hidden states, cos and sin, and masks made short.

Masks arrive in original coordinates. Every layer gathers its rows and columns through the table
of which original token each physical slot holds; what one layer gathered, the next of equal
length reuses.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask

from foveate.adapters.base import Adapter, first_tensor
from foveate.attach import faults, positions
from foveate.attach.forward import Looked, Pass, fill, gather
from foveate.attach.probe import check, logits_of, peek
from foveate.attach.tables import Segment
from foveate.errors import AttachError

# Forward passes whose backward pass may still come; only where layer hooks run again there.
PASSES_REMEMBERED = 16


@runtime_checkable
class Owner(Protocol):
    """What a layer's hooks need of the decoder they belong to."""

    now: Pass | None
    adapter: Adapter
    recompute: dict[int, tuple[weakref.ref[Tensor], Pass]]

    def drop(
        self, now: Pass, layer: int, hidden: Tensor, ahead: Callable[[Tensor | None], Looked]
    ) -> Tensor:
        """Hidden states after the method dropped tokens before `layer`."""

    def trains(self) -> bool:
        """Whether a backward pass may run the layers again."""


class LayerHook:
    """What happens before and after one decoder layer."""

    def __init__(self, decoder: Owner, layer: int) -> None:
        self.decoder, self.layer = decoder, layer
        # The pass that `enter` found: its arguments, by which a recomputation is known, are other
        # ones by the time the layer is left.
        self._running: Pass | None = None

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Pre-hook: drop tokens if this layer does, and make its arguments short."""
        now = self._running = self.decoder.now or self._recomputed(kwargs)
        if now is None:
            return None
        layer = self.layer
        hidden = first_tensor(args, kwargs)
        self._remember(now, kwargs, hidden)
        short = hidden
        if layer in now.layers:

            def ahead(table: Tensor | None) -> Looked:
                states = hidden
                if layer == 0 and table is not None:
                    states = gather(hidden, fill(table).to(hidden.device))
                return self._ahead(module, now, table, kwargs, states)

            short = self.decoder.drop(now, layer, hidden, ahead)
        elif layer in now.kept:
            short = gather(hidden, fill(now.kept[layer]).to(hidden.device))
        first = now.start_of(layer)
        segment = None if now.tables is None else now.tables.segment(layer)
        held = self._cache_layer(now)
        anew = now.ids is not None and (
            first in now.decided or (segment is not None and segment.shift is not None)
        )
        masked = self._needs_mask(first, segment, now, kwargs, held)
        now.rotations = kwargs.get("position_embeddings")
        if first is None and not masked and not anew:
            return None
        kwargs = dict(kwargs)
        if anew:
            self._renumber(now, first, segment, kwargs, short)
        elif first is not None:
            self._gather_positions(now, first, kwargs)
        now.rotations = kwargs.get("position_embeddings")
        if masked:
            self._gather_mask(now, first, segment, kwargs, short, held)
        if short is hidden:
            return args, kwargs
        if args and args[0] is hidden:
            return (short, *args[1:]), kwargs
        return args, {k: short if v is hidden else v for k, v in kwargs.items()}

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Post-hook: add this layer's DeepStack features to the kept tokens."""
        now, self._running = self._running, None
        if now is None or self.layer >= len(now.deepstack) or now.deep_index is None:
            return None
        states = output[0] if isinstance(output, tuple) else output
        index = now.deep_index
        first = now.start_of(self.layer)
        if first is not None:
            kept = now.kept[first]
            index = torch.where(kept >= 0, index.gather(1, kept.clamp(min=0)), -1)
        rows, slots = (index >= 0).nonzero(as_tuple=True)
        which = index[rows, slots].to(states.device)
        rows, slots = rows.to(states.device), slots.to(states.device)
        features = now.deepstack[self.layer].to(states.device, states.dtype)
        states = states.clone()
        states[rows, slots] = states[rows, slots] + features[which]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    # ------------------------------------------------------------------ looking ahead

    @torch.no_grad()
    def _ahead(
        self,
        module: nn.Module,
        now: Pass,
        table: Tensor | None,
        kwargs: dict[str, Any],
        hidden: Tensor,
    ) -> Looked:
        """Queries and keys that this layer would have if nothing were dropped before it.

        Args:
            module: the layer.
            now: the pass.
            table: (b, s) which tokens `hidden` holds; None for all of them.
            kwargs: the layer's arguments, in original length.
            hidden: (b, s, d) the states entering it.
        """
        adapter = self.decoder.adapter
        held = self._cache_layer(now)
        segment = None if now.tables is None else now.tables.segment(self.layer)
        past = _physical_past(held, segment, now)
        static = getattr(held, "is_compileable", False)
        mask = kwargs.get("attention_mask")
        if mask is not None or now.tables is not None or table is not None:
            # A static cache's spare columns hold no keys yet: only what has been seen counts.
            query, keys = self._tables(now, table, segment, None, past, hidden.device)
            mask = _short_mask(mask, query, keys, now, self._by_keys())
        rotations = kwargs.get("position_embeddings")
        before = now.start_of(self.layer - 1) if self.layer else None
        shift = None if segment is None else segment.shift
        if now.ids is not None and (before in now.decided or shift is not None):
            ids, _ = positions.renumbered(now, before, shift)
            rotations = adapter.rotations(self.layer, hidden, ids)
        elif rotations is not None and table is not None:
            index = fill(table).to(hidden.device)
            rotations = tuple(gather(part, index) for part in rotations)
        found: list[Looked] = []

        def note(q: Tensor, k: Tensor, _: Tensor | None, call: dict[str, Any]) -> None:
            if past:
                cached = held.keys[:, :, :past] if static else held.keys[:, :, -past:]
                k = torch.cat([cached.to(k.device, k.dtype), k], 2)
            found.append(Looked(self.layer, q, k, mask, logits_of(q, mask, call), past, rotations))

        dropped = ("past_key_values", "position_ids", "attention_mask", "use_cache")
        rest = {name: value for name, value in kwargs.items() if name not in dropped}
        rest |= {"position_embeddings": rotations, "attention_mask": None}
        rest = {name: value for name, value in rest.items() if value is not hidden}
        rest.pop("hidden_states", None)
        peek(
            adapter.decoder_attention(self.layer),
            note,
            adapter.decoder_output(self.layer),
            hidden_states=adapter.decoder_norm(self.layer)(hidden),
            **rest,
        )
        return found[0]

    # ------------------------------------------------------------------ gradient checkpointing

    def _remember(self, now: Pass, kwargs: dict[str, Any], hidden: Tensor) -> None:
        """Where layer hooks run again in a checkpoint's recomputation, find the same pass."""
        if not (torch.is_grad_enabled() and self.decoder.trains()):
            return
        known = self.decoder.recompute
        cos = kwargs["position_embeddings"][0]
        if id(cos) not in known:
            for dead in [key for key, (ref, _) in known.items() if ref() is None]:
                del known[dead]
            while len(known) >= PASSES_REMEMBERED:
                del known[next(iter(known))]
            known[id(cos)] = (weakref.ref(cos), now)

    def _recomputed(self, kwargs: dict[str, Any]) -> Pass | None:
        if not self.decoder.recompute or "position_embeddings" not in kwargs:
            return None
        cos = kwargs["position_embeddings"][0]
        found = self.decoder.recompute.get(id(cos))
        return found[1] if found is not None and found[0]() is cos else None

    # ------------------------------------------------------------------ gathering

    def _gather_positions(self, now: Pass, first: int, kwargs: dict[str, Any]) -> None:
        """The cos and sin at the kept places; no position ids, whose gaps kernels misread."""
        pair = kwargs.get("position_embeddings")
        if pair is not None:
            key = (first, "rope", id(pair[0]))
            if key not in now.memo:
                index = fill(now.kept[first]).to(pair[0].device)
                if faults.is_on("anchor_ignored"):
                    index = torch.arange(index.shape[1]).expand_as(index).to(index.device)
                now.memo[key] = (tuple(gather(part, index) for part in pair), pair)
            kwargs["position_embeddings"] = now.memo[key][0]
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = None

    def _renumber(
        self,
        now: Pass,
        first: int | None,
        segment: Segment | None,
        kwargs: dict[str, Any],
        hidden: Tensor,
    ) -> None:
        """Cos and sin of contiguous positions, as if what was dropped had never been there."""
        pair = kwargs["position_embeddings"]
        key = (first, segment and segment.first_layer, "anew", id(pair[0]))
        if key not in now.memo:
            shift = None if segment is None else segment.shift
            if faults.is_on("stale_position_shift"):
                shift = None
            ids, moved = positions.renumbered(now, first, shift)
            if segment is not None and moved is not None:
                now.shifts[segment.first_layer] = moved
            now.memo[key] = (self.decoder.adapter.rotations(self.layer, hidden, ids), pair)
        kwargs["position_embeddings"] = now.memo[key][0]
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = None

    def _cache_layer(self, now: Pass) -> Any:
        """This layer's own cache; None if there is none yet."""
        layers = () if now.tables is None or now.cache is None else now.cache.layers
        return layers[self.layer] if self.layer < len(layers) else None

    def _needs_mask(
        self, first: int | None, segment: Segment | None, now: Pass, kwargs: Any, held: Any
    ) -> bool:
        """Whether this layer's mask must be made short; known without asking the device."""
        holes = first is not None and now.holes[first]
        holes |= segment is not None and segment.holes
        if holes:
            return True
        # A sliding window holds fewer keys than the mask has columns, a static cache more.
        other = getattr(held, "is_sliding", False) or getattr(held, "is_compileable", False)
        short = first is not None or segment is not None or other
        return short and kwargs.get("attention_mask") is not None

    def _gather_mask(
        self,
        now: Pass,
        first: int | None,
        segment: Segment | None,
        kwargs: dict[str, Any],
        hidden: Tensor,
        layer_cache: Any,
    ) -> None:
        mask = kwargs.get("attention_mask")
        width = _physical_past(layer_cache, segment, now)
        key = (first, segment and segment.first_layer, width, "mask", id(mask))
        if key not in now.memo:
            here = None if first is None else now.kept[first]
            query, keys = self._tables(now, here, segment, layer_cache, width, hidden.device)
            made = _short_mask(mask, query, keys, now, self._by_keys())
            now.memo[key] = (made, mask)  # the original is held, so that its id stays its own
        kwargs["attention_mask"] = now.memo[key][0]

    def _by_keys(self) -> bool:
        """Whether the kernel is causal by itself and is only told which keys there are."""
        name = self.decoder.adapter.language.config._attn_implementation
        return ALL_MASK_ATTENTION_FUNCTIONS.get(name) is flash_attention_mask

    def _tables(
        self,
        now: Pass,
        here: Tensor | None,
        segment: Segment | None,
        layer_cache: Any,
        width: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """(b, q) queries and (b, k) keys of this layer by original index, -1 for holes."""
        if here is None:
            here = torch.arange(now.length).expand(now.batch, -1)
        here = here.to(device)
        query = torch.where(here >= 0, here + now.past, -1)
        keys = query
        if now.tables is not None:
            if segment is None:
                past = torch.arange(now.past, device=device).expand(now.batch, -1)
            else:
                past = segment.table(now.past).to(device)
            past = past[:, past.shape[1] - width :] if width else past[:, :0]
            keys = torch.cat([past, query], 1)
        if layer_cache is not None and getattr(layer_cache, "is_compileable", False):
            spare = layer_cache.max_cache_len - keys.shape[1]
            if spare < 0:
                raise AttachError(
                    f"The static cache holds {layer_cache.max_cache_len} tokens, "
                    f"{keys.shape[1]} are needed.\nMake it larger (max_cache_len)."
                )
            keys = torch.cat([keys, keys.new_full((now.batch, spare), -1)], 1)
        return query, keys


def _physical_past(layer_cache: Any, segment: Segment | None, now: Pass) -> int:
    """Slots that this layer's cache holds now; a sliding window may have cut them."""
    if now.tables is None:
        return 0
    length = now.past if segment is None else segment.length(now.past)
    if getattr(layer_cache, "is_sliding", False):
        held = layer_cache.keys.shape[-2] if layer_cache.is_initialized else 0
        # A window that records its past holds more than it hands over.
        return min(length, held, layer_cache.sliding_window - 1)
    return length


def _short_mask(
    mask: Tensor | None, query: Tensor, keys: Tensor, now: Pass, by_keys: bool = False
) -> Tensor:
    """The mask of a short layer.

    Args:
        mask: the full one: None (causal), (b, k) of keys, or (b, h, q, k) boolean or additive.
        query: (b, q') original indices of the queries, -1 for holes.
        keys: (b, k') those of the keys, -1 for holes.
        by_keys: whether a mask is made of keys where there was none, as flash kernels take it.
    """
    hole = keys < 0
    filled = fill(query)
    if mask is None and by_keys:
        return ~hole
    if mask is None:
        return (keys[:, None, None, :] <= filled[:, None, :, None]) & ~hole[:, None, None, :]
    check(mask)
    total = now.past + now.length
    # A sliding cache that was not compressed hands over only its last columns.
    offset = max(0, total - mask.shape[-1])
    columns = (keys - offset).clamp(0, mask.shape[-1] - 1)
    outside = hole | (keys < offset)
    if mask.ndim == 2:
        return mask.gather(1, columns).masked_fill(outside, 0)
    rows = (filled - now.past).clamp(min=0)
    if faults.is_on("mask_not_gathered"):
        return mask[..., : rows.shape[1], : columns.shape[1]]
    b, h = len(rows), mask.shape[1]
    short = mask.expand(b, -1, -1, -1)[
        torch.arange(b, device=mask.device)[:, None, None, None],
        torch.arange(h, device=mask.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return short.masked_fill(outside[:, None, None, :], blocked)
