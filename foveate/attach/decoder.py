"""The language-model side: original lengths outside the decoder layers, short ones inside.

1. a pre-hook on the multimodal base model notes the prompt;
2. a pre-hook on the inner language model finds the pictures, asks the method for P, writes
   merged tokens into their slots and opens a `Pass`;
3. a pre-hook on every decoder layer gathers hidden states where tokens are dropped, and masks,
   cos and sin wherever they are short, through a table *slot -> original index*;
4. a post-hook on the inner model spreads the last hidden state back to the original length;
5. what must survive lives on the cache (tables.py).
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapters.base import Adapter
from foveate.attach import faults, positions
from foveate.attach.decision import Decision
from foveate.attach.encoder import Encoder
from foveate.attach.forward import Item, Live, Looked, Pass, fill, gather, inverse
from foveate.attach.layers import LayerHook
from foveate.attach.probe import logits_of, probed
from foveate.attach.prompt import Placed, Prompt
from foveate.attach.tables import (
    Segment,
    Tables,
    check_settles,
    compress,
    settle,
    tables_of,
    widen_static_windows,
)
from foveate.compressor import Reads, VisualTokens
from foveate.errors import AttachError, StageNotAvailable
from foveate.mapping import Mapping


class Decoder:
    """Hooks on the language-model side of one model.

    Args:
        adapter: the model's adapter.
        decision: the method and its budget.
        encoder: where the pictures' captures are.
        on_prefill: called after each pass that held pictures.
        force: run everything through the tables even if nothing is dropped.
    """

    def __init__(
        self,
        adapter: Adapter,
        decision: Decision,
        encoder: Encoder,
        *,
        on_prefill: Callable[[Pass], None],
        force: bool,
    ) -> None:
        self.adapter, self.decision, self.encoder = adapter, decision, encoder
        self.on_prefill, self.force = on_prefill, force
        self.items: list[Item] = []
        self.prompt: Prompt | None = None
        self.now: Pass | None = None
        self.recompute: dict[int, tuple[weakref.ref[Tensor], Pass]] = {}
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put the hooks on; take them off on leaving, and close the caches that were made."""
        hooks = [
            self.adapter.base.register_forward_pre_hook(self._note_prompt, with_kwargs=True),
            self.adapter.language.register_forward_pre_hook(self._open, with_kwargs=True),
            self.adapter.language.register_forward_hook(self._close, with_kwargs=True),
        ]
        for index, layer in enumerate(self.adapter.decoder_layers):
            hook = LayerHook(self, index)
            hooks.append(layer.register_forward_pre_hook(hook.enter, with_kwargs=True))
            hooks.append(layer.register_forward_hook(hook.leave, with_kwargs=True))
        try:
            with probed(self._readers()):
                yield
        finally:
            if faults.is_on("hook_left_behind"):
                hooks.pop()
            for handle in hooks:
                handle.remove()
            for cache in list(self._caches):
                if (tables := tables_of(cache)) is not None:
                    tables.run_id = 0
            self.now = self.prompt = None
            self.recompute.clear()

    def _readers(self) -> dict[nn.Module, Any]:
        """Readers of the attention that the method asks for between layers."""
        inside = self.decision.inside
        recorded = self.decision.recorded is not None
        if inside is None or recorded or Reads.BEFORE not in inside.reads:
            return {}
        return {
            self.adapter.decoder_attention(layer - 1): partial(self._note_attention, layer - 1)
            for layer in self.decision.layers
            if layer
        }

    @torch.no_grad()
    def _note_attention(
        self, layer: int, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> None:
        now = self.now
        if now is None or layer + 1 in now.decided or layer + 1 not in now.layers:
            return
        offset = k.shape[2] - q.shape[2]
        held = None if now.tables is None or now.cache is None else now.cache.layers[layer]
        if getattr(held, "is_compileable", False):
            segment = None if now.tables is None else now.tables.segment(layer)
            offset = now.past if segment is None else segment.length(now.past)
        logits = logits_of(q, mask, kwargs)
        now.seen = Looked(layer, q.detach(), k.detach(), mask, logits, offset, now.rotations)

    def trains(self) -> bool:
        """Whether a backward pass may run the layers again."""
        return bool(self.adapter.language.training)

    # ------------------------------------------------------------------ 1: the prompt

    def _note_prompt(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeds = kwargs.get("inputs_embeds")
        self.prompt = None
        if ids is None and embeds is not None and embeds.shape[1] > 1:
            ids = self._ids_from(embeds)
        if ids is None or ids.shape[1] == 1:
            return
        mask = kwargs.get("attention_mask")
        ids = ids.cpu()
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -ids.shape[1] :].bool().cpu()
        else:
            pad = getattr(self.adapter.config.get_text_config(), "pad_token_id", None)
            real = torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad
        self.prompt = Prompt(ids, real)

    def _ids_from(self, embeds: Tensor) -> Tensor:
        """Placeholder ids where an embedded prompt holds their embedding, -1 elsewhere."""
        ids = torch.full(embeds.shape[:2], -1, device=embeds.device)
        table = self.adapter.model.get_input_embeddings()  # type: ignore[operator]
        for token in self.adapter.placeholder_ids.values():
            one = table(torch.tensor(token, device=embeds.device))
            ids[(embeds == one).all(-1)] = token
        return ids

    # ------------------------------------------------------------------ 2: the decision

    def _open(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self.now = None
        embeds = kwargs.get("inputs_embeds")
        if embeds is None:
            return None
        cache = kwargs.get("past_key_values")
        tables = tables_of(cache)
        placed = []
        if self.prompt is not None and self.prompt.ids.shape == embeds.shape[:2]:
            placed = self.prompt.place(self.adapter, self.encoder.captures)
        if tables is None and not placed:
            return None
        now = Pass(
            batch=embeds.shape[0],
            length=embeds.shape[1],
            past=self._adopt(cache, tables),
            device=embeds.device,
            tables=tables,
            cache=cache,
            prompt=self.prompt,
            opened=time.perf_counter(),
        )
        kwargs = dict(kwargs)
        if placed:
            self.items = []
            kwargs["inputs_embeds"] = self._decide(now, placed, embeds)
            if not now.layers and not now.kept and tables is None:
                self.on_prefill(now)  # every token is kept: the stock path serves it
                return None
        if now.kept or now.layers:
            now.tables = self._tables(now, kwargs, module)
            now.cache = kwargs.get("past_key_values")
            if self.decision.settled is not None and now.tables is not None:
                check_settles(now.cache, self.decision.settled)
        positions.rewrite(now, kwargs, self.decision.positions)
        if self.decision.inside is not None and self.decision.positions == "reindex":
            positions.note_ids(now, kwargs)
        if now.kept or now.layers:
            positions.take_deepstack(now, kwargs)
        self.now = now
        now.decision_seconds += time.perf_counter() - now.opened
        return args, kwargs

    def _adopt(self, cache: Any, tables: Tables | None) -> int:
        """Original tokens that the cache has seen; a compressed one becomes this run's."""
        if tables is None:
            return 0 if cache is None else int(cache.get_seq_length())
        if tables.run_id not in (0, id(self)):
            raise AttachError(
                "This cache was compressed by another attached compressor.\n"
                "Use one compressor for a whole conversation, or start with a new cache."
            )
        tables.run_id = id(self)
        self._caches.add(cache)
        return tables.seen

    def _decide(self, now: Pass, placed: list[Placed], embeds: Tensor) -> Tensor:
        """Ask the method for every picture's P; returns embeddings with merged tokens in place."""
        decision, prompt = self.decision, self.prompt
        assert prompt is not None
        writes: list[tuple[Live, Tensor]] = []
        changed = self.force and bool(decision.outside)
        for p, recorded in zip(placed, decision.recorded_of(placed), strict=True):
            live = Live.all_of(p)
            live.recorded = recorded
            live.last = prompt.last(p.row)
            if decision.reads_text:
                filled = prompt.filled(p.row, self.adapter)
                live.text = prompt.text(p.row, filled)
                live.question = prompt.question(p.row, filled, decision.template)
                decision.check_text(live)
            now.live.append(live)
            self.items.append(live.item)
            if decision.outside:
                mapping, new = decision.outside_of(p, embeds, live, prompt)
                live.item.steps.append((None, mapping))
                live.item.mapping = mapping
                live.source = p.slots[mapping.anchors.cpu()]
                reindex = decision.positions == "reindex"
                live.alive = p.slots[: mapping.m] if reindex else live.source
                changed |= not mapping.is_identity
                if new is not None:
                    writes.append((live, new))
                    live.entered = new
            live.steps = decision.steps(p.layout.n, live.item.mapping.m)
        if changed:
            now.keep_rows(0)
            now.entry = now.kept[0]
        now.embeds = embeds if decision.inside is not None else None
        if changed and writes:
            embeds = embeds.clone()
            for live, new in writes:
                embeds[live.placed.row, live.alive.to(embeds.device)] = new.to(embeds.dtype)
        return embeds

    def _tables(self, now: Pass, kwargs: dict[str, Any], language: nn.Module) -> Tables | None:
        """The cache's tables, made now if tokens will be dropped for the first time."""
        firsts = sorted({*now.kept, *now.layers})
        if now.tables is not None:
            now.tables.split(firsts)
            return now.tables
        cache = kwargs.get("past_key_values")
        if cache is None:
            use = kwargs.get("use_cache")
            use = language.config.use_cache if use is None else use  # type: ignore[union-attr]
            if not use or (
                language.training and getattr(language, "gradient_checkpointing", False)
            ):
                return None
            from transformers import DynamicCache

            cache = kwargs["past_key_values"] = DynamicCache(config=language.config)
        widen_static_windows(cache)
        before = torch.arange(now.past, device=now.device).expand(now.batch, -1)
        tables = Tables(
            seen=now.past,
            segments=[Segment(first, before, False, now.past) for first in firsts],
            run_id=id(self),
        )
        compress(cache, tables)
        self._caches.add(cache)
        return tables

    # ------------------------------------------------------------------ 3: inside the layers

    def drop(
        self, now: Pass, layer: int, hidden: Tensor, ahead: Callable[[Tensor | None], Looked]
    ) -> Tensor:
        """Let the method drop tokens before decoder layer `layer`; returns the short states.

        Args:
            now: the pass.
            layer: the layer about to run.
            hidden: (b, s, d) the states entering it.
            ahead: what the layer would compute on all of them, given their table.
        """
        before = now.start_of(layer - 1) if layer else None
        table = now.entry if before is None else now.kept[before]
        if layer == 0 and table is not None:
            hidden = gather(hidden, fill(table).to(hidden.device))
        again = now.decided.get(layer)
        decided: list[Mapping] = []
        # (row, sequence position) -> physical slot of the current hidden states
        where = inverse(table, now.length) if table is not None else None
        began = time.perf_counter()
        writes = []
        looked: dict[Reads, Looked] = {}
        if again is None:
            now.alive[layer] = [live.alive for live in now.live]
            looked = self._looked(now, layer, lambda: ahead(table))
        for number, live in enumerate(now.live):
            row, alive = live.placed.row, now.alive[layer][number]
            at = alive if where is None else where[row][alive]
            at = at.to(hidden.device)
            states = hidden[row, at]
            if again is not None:
                mapping = again[number]
            elif layer not in live.steps:
                mapping = Mapping.identity(len(states))
            else:
                mapping = self._ask(now, live, layer, hidden[row], at, table, where, looked)
            decided.append(mapping)
            if not mapping.is_selection:
                anchors = mapping.anchors.to(at.device)
                writes.append((row, at[anchors], mapping.apply(states)))
            if again is None:
                live.alive = live.source = alive[mapping.anchors.cpu()]
        for row, at, new in writes:
            hidden = hidden.index_put((torch.full_like(at, row), at), new.to(hidden.dtype))
        if again is None:
            now.decided[layer] = decided
            now.keep_rows(layer)
            now.seen = None
            now.decision_seconds += time.perf_counter() - began
        index = now.kept[layer]
        if where is not None:
            index = torch.where(index >= 0, where.gather(1, index.clamp(min=0)), -1)
        return gather(hidden, fill(index).to(hidden.device))

    def _ask(
        self,
        now: Pass,
        live: Live,
        layer: int,
        hidden: Tensor,
        at: Tensor,
        table: Tensor | None,
        where: Tensor | None,
        looked: dict[Reads, Looked],
    ) -> Mapping:
        """P of one picture before `layer`; `hidden` (s, d) are its row's states, its own `at`."""
        decision, row = self.decision, live.placed.row
        assert decision.inside is not None

        # Nothing is kept for a backward pass: where layer hooks run again in a checkpoint's
        # recomputation, which asks no method, the counts of kept tensors would differ.
        @torch.no_grad()
        def look() -> VisualTokens:
            text = torch.tensor(live.text, dtype=torch.long)
            text = text if where is None else where[row][text]
            return decision.states(
                live,
                now,
                layer,
                hidden[at],
                hidden[text.to(hidden.device)],
                {
                    read: decision.looks_of(live, now, each, table, where)
                    for read, each in looked.items()
                },
            )

        keep = live.steps[layer]
        keep = None if keep is None else min(keep, len(at))
        mapping = decision.ask(decision.inside, live, look, keep).in_raster_order()
        live.item.steps.append((layer, mapping))
        live.item.mapping = mapping.to("cpu") @ live.item.mapping.to("cpu")
        return mapping

    def _looked(self, now: Pass, layer: int, ahead: Callable[[], Looked]) -> dict[Reads, Looked]:
        """The attention that the method reads before `layer`."""
        inside = self.decision.inside
        assert inside is not None
        found: dict[Reads, Looked] = {}
        if self.decision.recorded is not None:
            return found
        if Reads.BEFORE in inside.reads:
            if now.seen is None or now.seen.layer != layer - 1:
                raise StageNotAvailable(
                    f"{type(inside).__name__} reads the attention of decoder layer {layer - 1}, "
                    "which this model does not show.\nUse a method that reads no attention."
                )
            found[Reads.BEFORE] = now.seen
        if Reads.AHEAD in inside.reads:
            found[Reads.AHEAD] = ahead()
        return found

    # ------------------------------------------------------------------ 4: back to full length

    def _close(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        now, self.now = self.now, None
        if now is None:
            return None
        now.memo.clear()  # its tensors would keep the whole pass alive through `recompute`
        last = now.start_of(len(self.adapter.decoder_layers) - 1)
        if last is not None:
            spread = inverse(now.kept[last], now.length).to(output[0].device)
            states = gather(output[0], spread)
            if hasattr(output, "last_hidden_state"):
                output.last_hidden_state = states
            else:
                output = (states, *output[1:])
        tables = now.tables
        if tables is not None:
            total = tables.seen + now.length
            for segment in tables.segments:
                first = now.start_of(segment.first_layer)
                if first is None:
                    continue  # nothing new was dropped: the tail grows by itself
                new = now.kept[first].to(segment.slots.device)
                new = torch.where(new >= 0, new + now.past, -1)
                segment.slots = torch.cat([segment.table(tables.seen), new], 1)
                segment.holes |= now.holes[first]
                segment.tail_from = total
            for segment in tables.segments:
                segment.shift = now.shifts.get(segment.first_layer, segment.shift)
            tables.seen = total
            first = self.decision.settled
            if now.live and first is not None and not faults.is_on("cache_not_cut"):
                settle(now.cache, first)
        if now.live:
            now.prefill_seconds = time.perf_counter() - now.opened
            self.on_prefill(now)
        return output
