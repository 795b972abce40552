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
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapters.base import Adapter
from foveate.attach import faults, positions
from foveate.attach.decision import Decision
from foveate.attach.encoder import Encoder
from foveate.attach.forward import Item, Live, Pass, fill, gather, inverse
from foveate.attach.layers import LayerHook
from foveate.attach.prompt import Placed, Prompt
from foveate.attach.tables import Segment, Tables, compress, tables_of, widen_static_windows
from foveate.errors import AttachError
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
        self.layers = decision.layers
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
            if not self.layers and not now.kept and tables is None:
                self.on_prefill(now)  # every token is kept: the stock path serves it
                return None
        if now.kept or self.layers:
            now.tables = self._tables(now, kwargs, module)
            now.cache = kwargs.get("past_key_values")
        positions.rewrite(now, kwargs, self.decision.positions)
        if now.kept or (self.layers and now.live):
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
        changed = self.force
        visual: dict[int, list[int]] = {}
        for p in placed:
            visual.setdefault(p.row, []).extend(p.slots.tolist())
        now.embeds = embeds if self.layers and decision.reads_text else None
        for p in placed:
            question: list[int] = []
            if decision.reads_text:
                question = prompt.question(p.row, sorted(visual[p.row]), decision.template)
            live = Live.all_of(p, question)
            now.live.append(live)
            self.items.append(live.item)
            if self.layers:
                live.budget = decision.budgets(p.layout.n)
                continue
            tokens = decision.tokens(p, embeds, question, prompt)
            mapping, new = decision.act(p, tokens, decision.count(p.layout.n), embeds)
            live.item.steps.append((None, mapping))
            live.item.mapping = mapping
            live.source = p.slots[mapping.anchors.cpu()]
            reindex = decision.positions == "reindex"
            live.alive = p.slots[: mapping.m] if reindex else live.source
            changed |= not mapping.is_identity
            if new is not None:
                writes.append((live, new))
        if self.layers or not changed:
            return embeds
        now.keep_rows(0)
        if writes:
            embeds = embeds.clone()
            for live, new in writes:
                embeds[live.placed.row, live.alive.to(embeds.device)] = new.to(embeds.dtype)
        return embeds

    def _tables(self, now: Pass, kwargs: dict[str, Any], language: nn.Module) -> Tables | None:
        """The cache's tables, made now if tokens will be dropped for the first time."""
        if now.tables is not None:
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
        firsts = self.layers or (0,)
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

    def drop(self, now: Pass, layer: int, hidden: Tensor) -> Tensor:
        """Let the method drop tokens before decoder layer `layer`; returns the short states."""
        before = now.start_of(layer - 1) if layer else None
        table = None if before is None else now.kept[before]
        again = now.decided.get(layer)
        decided: list[Mapping] = []
        step = self.layers.index(layer)
        # (row, sequence position) -> physical slot of the current hidden states
        where = inverse(table, now.length) if table is not None else None
        began = time.perf_counter()
        writes = []
        if again is None:
            now.alive[layer] = [live.alive for live in now.live]
        for number, live in enumerate(now.live):
            row, alive = live.placed.row, now.alive[layer][number]
            at = alive if where is None else where[row][alive]
            at = at.to(hidden.device)
            states = hidden[row, at]
            if again is None:
                tokens = self.decision.states(live, now, states.detach(), layer)
                keep = live.budget[step]
                keep = None if keep is None else min(keep, len(states))
                mapping = self.decision.call(tokens, keep).in_raster_order()
                live.item.steps.append((layer, mapping))
                live.item.mapping = mapping.to("cpu") @ live.item.mapping.to("cpu")
            else:
                mapping = again[number]
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
            now.decision_seconds += time.perf_counter() - began
        index = now.kept[layer]
        if where is not None:
            index = torch.where(index >= 0, where.gather(1, index.clamp(min=0)), -1)
        return gather(hidden, fill(index).to(hidden.device))

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
            tables.seen = total
        if now.live:
            now.prefill_seconds = time.perf_counter() - now.opened
            self.on_prefill(now)
        return output
