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
import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from foveate.adapters.base import Adapter, first_tensor
from foveate.attach import faults
from foveate.attach.encoder import Encoder
from foveate.attach.prompt import Placed, Prompt, Template
from foveate.attach.tables import (
    Segment,
    Tables,
    compress,
    tables_of,
    widen_static_windows,
)
from foveate.compressor import (
    Compressor,
    Grid,
    Reads,
    Stage,
    VisualTokens,
    check_keep,
    resolve_keep,
)
from foveate.errors import AttachError, MappingError, StageNotAvailable
from foveate.mapping import Mapping


@dataclasses.dataclass(eq=False)
class Item:
    """What happened to one picture or video in the last prefill.

    Attributes:
        row: batch row.
        index: how manieth picture of its row it is.
        is_video: whether it is a video.
        grids: the rasters of its slots.
        slots: (n,) positions of its visual slots in the prompt part that was run.
        specials: newline, separator and CLS placeholders, which always stay.
        steps: (layer, P) for each place where tokens were dropped; layer None is before the LLM.
        mapping: their product, from the n slots to the tokens that reach the last layer.
    """

    row: int
    index: int
    is_video: bool
    grids: tuple[Grid, ...]
    slots: Int[Tensor, " n"]
    specials: int
    steps: list[tuple[int | None, Mapping]]
    mapping: Mapping

    @property
    def n(self) -> int:
        """Visual slots before any compression."""
        return len(self.slots)

    @property
    def entering(self) -> int:
        """Visual tokens that enter decoder layer 0."""
        return next((p.m for layer, p in self.steps if layer is None), self.n)

    def average(self, layers: int) -> float:
        """Visual tokens averaged over the decoder layers that ran."""
        total, now, done = 0, self.entering, 0
        for layer, p in self.steps:
            if layer is not None:
                total, now, done = total + now * (layer - done), p.m, layer
        return (total + now * (layers - done)) / layers


@dataclasses.dataclass(eq=False)
class _Live:
    """One picture during a forward pass: where its current tokens are."""

    placed: Placed
    item: Item
    alive: Int[Tensor, " m"]  # sequence positions of its current rows, ascending
    source: Int[Tensor, " m"]  # the slot whose position and DeepStack rows each row carries
    question: list[int]  # positions of the user's text, where the method reads it
    budget: tuple[int, ...] = ()


@dataclasses.dataclass(eq=False)
class Pass:
    """One forward pass of the inner language model.

    Attributes:
        batch, length: its shape, in original tokens.
        past: original tokens that the cache had seen.
        device: where the model's first layer is.
        tables: the cache's tables, None without a cache.
        live: the pictures in it.
        kept: first layer -> (b, s') sequence positions of the rows that run from there on, -1
            for holes; right-aligned.
        holes: the same -> whether there is a hole.
        decided, alive: decoder layer -> what was decided there, and where each picture's tokens
            lived before it; a checkpoint's recomputation applies them again.
        embeds: the input embeddings, for methods that read the question later on.
        deepstack, deep_index: visual features that the first layers add, and (b, s) which of
            their rows belongs to each sequence position, -1 for none.
        memo: tensors gathered for one stretch of layers, reused by all of them.
    """

    batch: int
    length: int
    past: int
    device: torch.device
    tables: Tables | None
    live: list[_Live]
    cache: Any = None
    kept: dict[int, Int[Tensor, "b q"]] = dataclasses.field(default_factory=dict)
    holes: dict[int, bool] = dataclasses.field(default_factory=dict)
    decided: dict[int, list[Mapping]] = dataclasses.field(default_factory=dict)
    alive: dict[int, list[Int[Tensor, " m"]]] = dataclasses.field(default_factory=dict)
    embeds: Tensor | None = None
    deepstack: list[Tensor] = dataclasses.field(default_factory=list)
    deep_index: Tensor | None = None
    memo: dict[tuple[Any, ...], Any] = dataclasses.field(default_factory=dict)
    opened: float = 0.0
    decision_seconds: float = 0.0

    def start_of(self, layer: int) -> int | None:
        """First layer of the stretch of equal length that `layer` is in; None: nothing dropped."""
        below = [first for first in self.kept if first <= layer]
        return max(below) if below else None

    def keep_rows(self, first: int) -> None:
        """Set the table from decoder layer `first` on, from where the pictures' tokens live."""
        gone = [torch.zeros(self.length, dtype=torch.bool) for _ in range(self.batch)]
        for live in self.live:
            gone[live.placed.row][live.placed.slots] = True
        for live in self.live:
            gone[live.placed.row][live.alive] = False
        rows = [(~lost).nonzero().flatten() for lost in gone]
        width = max(len(row) for row in rows)
        table = torch.full((self.batch, width), -1)
        for i, row in enumerate(rows):
            table[i, width - len(row) :] = row
        self.kept[first] = table
        self.holes[first] = any(len(row) < width for row in rows)


class Decoder:
    """Hooks on the language-model side of one model, for one method."""

    def __init__(
        self,
        adapter: Adapter,
        method: Compressor,
        encoder: Encoder,
        *,
        keep: int | float | None,
        positions: str,
        template: Template | None,
        force: bool,
    ) -> None:
        self.adapter, self.method, self.encoder = adapter, method, encoder
        self.keep, self.positions, self.template, self.force = keep, positions, template, force
        self.items: list[Item] = []
        self.prompt: Prompt | None = None
        self.now: Pass | None = None
        self.on_prefill: Callable[[Pass, float, float], None] | None = None
        self._recompute: dict[int, tuple[weakref.ref[Tensor], Pass]] = {}
        self._caches: weakref.WeakSet[Any] = weakref.WeakSet()
        self.layers = tuple(sorted(method.layers)) if method.stage == Stage.DECODER else ()
        count = len(adapter.decoder_layers)
        if self.layers and not 0 <= self.layers[0] <= self.layers[-1] < count:
            raise StageNotAvailable(
                f"{type(method).__name__} drops tokens at decoder layers {self.layers}; this model "
                f"has layers 0..{count - 1}."
            )
        if self.layers and positions == "reindex":
            raise StageNotAvailable(
                "positions='reindex' is not available for methods that drop tokens between "
                "decoder layers.\nUse positions='original'."
            )
        if keep is not None:
            check_keep(keep)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put the hooks on; take them off on leaving, and close the caches that were made."""
        hooks = [
            self.adapter.base.register_forward_pre_hook(self._note_prompt, with_kwargs=True),
            self.adapter.language.register_forward_pre_hook(self._open, with_kwargs=True),
            self.adapter.language.register_forward_hook(self._close, with_kwargs=True),
        ]
        for index, layer in enumerate(self.adapter.decoder_layers):
            before = _LayerHook(self, index)
            hooks.append(layer.register_forward_pre_hook(before.enter, with_kwargs=True))
            hooks.append(layer.register_forward_hook(before.leave, with_kwargs=True))
        try:
            yield
        finally:
            if faults.is_on("hook_left_behind"):
                hooks.pop()
            for hook in hooks:
                hook.remove()
            for cache in list(self._caches):
                if (tables := tables_of(cache)) is not None:
                    tables.run_id = 0
            self.now = self.prompt = None
            self._recompute.clear()

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
        began = time.perf_counter()
        if tables is not None:
            if tables.run_id not in (0, id(self)):
                raise AttachError(
                    "This cache was compressed by another attached compressor.\n"
                    "Use one compressor for a whole conversation, or start with a new cache."
                )
            tables.run_id = id(self)
            self._caches.add(cache)
        past = 0
        if tables is not None:
            past = tables.seen
        elif cache is not None:
            past = int(cache.get_seq_length())
        kwargs = dict(kwargs)
        now = Pass(embeds.shape[0], embeds.shape[1], past, embeds.device, tables, [], cache=cache)
        now.opened = began
        if placed:
            self.items = []
            embeds = self._decide(now, placed, embeds)
            kwargs["inputs_embeds"] = embeds
            dropping = self.layers or now.kept
            if not dropping and tables is None:
                return None
        if now.kept or self.layers:
            now.tables = self._tables(now, kwargs, module)
            now.cache = kwargs.get("past_key_values")
        self._positions(now, kwargs)
        if now.kept or (self.layers and now.live):
            self._take_deepstack(now, kwargs)
        self.now = now
        now.decision_seconds += time.perf_counter() - began
        return args, kwargs

    def _decide(self, now: Pass, placed: list[Placed], embeds: Tensor) -> Tensor:
        """Ask the method for every picture's P; returns embeddings with merged tokens in place."""
        values: list[tuple[_Live, Tensor | None]] = []
        changed = False
        visual_of: dict[int, list[int]] = {}
        for p in placed:
            visual_of.setdefault(p.row, []).extend(p.slots.tolist())
        reads_text = bool(self.method.reads & {Reads.QUESTION, Reads.QUESTION_TEXT})
        now.embeds = embeds if self.layers and reads_text else None
        for p in placed:
            question = self._question(p.row, sorted(visual_of[p.row])) if reads_text else []
            live = self._live(p, question)
            now.live.append(live)
            self.items.append(live.item)
            if self.layers:
                live.budget = self._decoder_budget(live)
                continue
            tokens = self._tokens(p, embeds, question)
            keep = None if self.keep is None else resolve_keep(self.keep, p.layout.n)
            mapping, new = self._act(p, tokens, keep, embeds)
            live.item.steps.append((None, mapping))
            live.item.mapping = mapping
            anchors = mapping.anchors.cpu()
            live.source = p.slots[anchors]
            live.alive = p.slots[: mapping.m] if self.positions == "reindex" else live.source
            whole = mapping.is_identity
            changed |= not whole
            values.append((live, new))
        if self.layers or not (changed or self.force):
            return embeds
        now.keep_rows(0)
        writes = [(live, new) for live, new in values if new is not None]
        if writes:
            embeds = embeds.clone()
            for live, new in writes:
                embeds[live.placed.row, live.alive.to(embeds.device)] = new.to(embeds.dtype)
        return embeds

    def _live(self, p: Placed, question: list[int]) -> _Live:
        item = Item(
            row=p.row,
            index=p.index,
            is_video=p.is_video,
            grids=p.layout.grids,
            slots=p.slots,
            specials=p.layout.length - p.layout.n,
            steps=[],
            mapping=Mapping.identity(p.layout.n),
        )
        return _Live(p, item, alive=p.slots, source=p.slots, question=question)

    def _question(self, row: int, visual: list[int]) -> list[int]:
        assert self.prompt is not None
        return self.prompt.question(row, visual, self.template)

    def _act(
        self, p: Placed, tokens: VisualTokens, keep: int | None, embeds: Tensor
    ) -> tuple[Mapping, Tensor | None]:
        """P in the order in which its rows will live, and the tokens to write (None: none)."""
        mapping = self._call(tokens, keep)
        if self.positions == "original":
            mapping = mapping.in_raster_order()
            if mapping.is_selection:
                return mapping, None
        slots = embeds[p.row, p.slots.to(embeds.device)]
        if mapping.is_selection:
            return mapping, mapping.apply(slots)
        rows = p.layout.rows
        if self.method.stage != Stage.VISION or rows is None:
            if mapping.virtual:
                raise StageNotAvailable(
                    f"{type(self.method).__name__} passes the CLS token on, which needs tokens "
                    "that are projected one by one;\nhere they are interpolated after the "
                    "projector. Use it without CLS."
                )
            return mapping, mapping.apply(slots)
        captured = p.capture.rows
        assert captured is not None
        x = captured[rows.to(captured.device)]
        if mapping.virtual:
            assert tokens.cls is not None
            x = torch.cat([x, tokens.cls[:, None].expand(-1, x.shape[1], -1)])
        return mapping, self.adapter.project(mapping.apply(x)).to(embeds.device)

    def _call(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        with torch.set_grad_enabled(self.method.trainable and torch.is_grad_enabled()):
            mapping = self.method(tokens, keep)
        if mapping.n != tokens.n or (keep is not None and mapping.m != keep):
            raise MappingError(
                f"{type(self.method).__name__} returned {mapping.m} rows over {mapping.n} "
                f"sources; {keep} rows over {tokens.n} were asked for."
            )
        return mapping

    def _tokens(self, p: Placed, embeds: Tensor, question: list[int]) -> VisualTokens:
        """What the method may look at, for one picture."""
        reads, capture, layout = self.method.reads, p.capture, p.layout
        slots = embeds[p.row, p.slots.to(embeds.device)]
        captured = capture.rows
        assert captured is not None
        encoder = None
        if self.method.stage == Stage.VISION or Reads.ENCODER in reads:
            if layout.rows is not None:
                picked = captured[layout.rows.to(captured.device)]
                encoder = picked[:, 0] if picked.shape[1] == 1 else picked.mean(1)
            else:
                encoder = layout.pool(captured)
        vision = self.method.stage == Stage.VISION and layout.rows is not None
        features = encoder if vision and encoder is not None else slots
        cls = None
        if Reads.CLS in reads and capture.cls is not None:
            cls = capture.cls[layout.tile.unique().to(capture.cls.device)]

        def pooled(values: Tensor | None, read: Reads) -> Tensor | None:
            return None if values is None or read not in reads else layout.pool(values)

        text: dict[str, Any] = {}
        if reads & {Reads.QUESTION, Reads.QUESTION_TEXT}:
            text = self._text(p.row, question, embeds)
        cells = None
        if capture.cells is not None:
            cells = capture.cells[layout.patches[:, 0]].to(embeds.device)

        def given(values: Tensor | None) -> Tensor | None:
            # Training-free methods decide on values; only learned ones differentiate.
            return values if values is None or self.method.trainable else values.detach()

        return VisualTokens(
            features=features if self.method.trainable else features.detach(),
            grids=layout.grids,
            is_video=p.is_video,
            encoder=given(encoder) if Reads.ENCODER in reads else None,
            embeddings=given(slots) if Reads.EMBEDDINGS in reads else None,
            attention=pooled(capture.attention, Reads.ATTENTION),
            keys=pooled(capture.keys, Reads.KEYS),
            wide_attention=pooled(capture.wide_attention, Reads.WIDE),
            wide_keys=pooled(capture.wide_keys, Reads.WIDE),
            cls=given(cls),
            cells=cells,
            **text,
        )

    def _states(self, live: _Live, now: Pass, states: Tensor, layer: int) -> VisualTokens:
        """What a method may look at inside the language model: the states entering a layer."""
        text: dict[str, Any] = {}
        if now.embeds is not None:
            text = self._text(live.placed.row, live.question, now.embeds)
        grids = live.item.grids if len(states) == live.item.n else ()
        return VisualTokens(
            features=states, grids=grids, is_video=live.item.is_video, layer=layer, **text
        )

    def _text(self, row: int, question: list[int], embeds: Tensor) -> dict[str, Any]:
        assert self.prompt is not None
        if not question:
            raise AttachError(
                f"{type(self.method).__name__} reads the question, but row {row} holds no text.\n"
                "Ask something, or use a method that does not read the prompt."
            )
        where = torch.tensor(question)
        ids = self.prompt.ids[row, where]
        found: dict[str, Any] = {
            "question": embeds[row, where.to(embeds.device)].detach(),
            "question_ids": None if bool((ids < 0).any()) else ids,
        }
        if Reads.QUESTION_TEXT in self.method.reads:
            if self.template is None:
                raise StageNotAvailable(
                    f"{type(self.method).__name__} reads the question as a string.\n"
                    "Pass the processor: foveate.attach(model, ..., processor=processor)."
                )
            found["question_text"] = self.template.decode(ids.tolist())
        return found

    def _decoder_budget(self, live: _Live) -> tuple[int, ...]:
        n = live.item.n
        if self.keep is None:
            return tuple(-1 for _ in self.layers)
        total = len(self.adapter.decoder_layers)
        return self.method.decoder_budget(n, resolve_keep(self.keep, n), total)

    # ------------------------------------------------------------------ cache and positions

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

    def _positions(self, now: Pass, kwargs: dict[str, Any]) -> None:
        """Rewrite position ids where they are re-indexed, in this pass or in an earlier one."""
        shift = None if now.tables is None else now.tables.shift
        reindex = self.positions == "reindex" and bool(now.kept)
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
            moved = self._reindex(now, rope)
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

    def _reindex(self, now: Pass, rope: Tensor) -> Tensor:
        """Dense-rank the kept tokens' position ids in place; returns how far later ones move."""
        table = now.kept[0]
        shifts = []
        for row in range(now.batch):
            kept = table[row][table[row] >= 0]
            everything = torch.arange(now.length)
            if self.prompt is not None:
                everything = everything[self.prompt.real[row]]
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

    def _take_deepstack(self, now: Pass, kwargs: dict[str, Any]) -> None:
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

    # ------------------------------------------------------------------ 3: inside the layers

    def drop(self, now: Pass, layer: int, hidden: Tensor) -> Tensor:
        """Let the method drop tokens before decoder layer `layer`; returns the short states."""
        before = now.start_of(layer - 1) if layer else None
        table = None if before is None else now.kept[before]
        again = now.decided.get(layer)
        decided: list[Mapping] = []
        step = self.layers.index(layer)
        # (row, sequence position) -> physical slot of the current hidden states
        where = _inverse(table, now.length) if table is not None else None
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
                tokens = self._states(live, now, states.detach(), layer)
                keep = None if live.budget[step] < 0 else live.budget[step]
                keep = None if keep is None else min(keep, len(states))
                mapping = self._call(tokens, keep).in_raster_order()
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
        return _gather(hidden, _fill(index).to(hidden.device))

    # ------------------------------------------------------------------ 4: back to full length

    def _close(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        now, self.now = self.now, None
        if now is None:
            return None
        last = now.start_of(len(self.adapter.decoder_layers) - 1)
        if last is not None:
            spread = _inverse(now.kept[last], now.length).to(output[0].device)
            states = _gather(output[0], spread)
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
        if now.live and self.on_prefill is not None:
            self.on_prefill(now, now.decision_seconds, time.perf_counter() - now.opened)
        return output


class _LayerHook:
    """What happens before and after one decoder layer."""

    def __init__(self, decoder: Decoder, layer: int) -> None:
        self.decoder, self.layer = decoder, layer

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        now = self.decoder.now
        if now is None:
            now = self._recomputed(kwargs)
            if now is None:
                return None
        layer = self.layer
        hidden = first_tensor(args, kwargs)
        self._remember(now, kwargs, hidden)
        short = hidden
        if layer in self.decoder.layers and now.live:
            short = self.decoder.drop(now, layer, hidden)
        elif layer in now.kept:
            short = _gather(hidden, _fill(now.kept[layer]).to(hidden.device))
        first = now.start_of(layer)
        segment = None if now.tables is None else now.tables.segment(layer)
        held = self._cache_layer(now)
        if first is None and not self._needs_mask(first, segment, now, kwargs, held):
            return None
        kwargs = dict(kwargs)
        if first is not None:
            self._gather_positions(now, first, kwargs)
        if self._needs_mask(first, segment, now, kwargs, held):
            self._gather_mask(now, first, segment, kwargs, short, held)
        if short is hidden:
            return args, kwargs
        if args and args[0] is hidden:
            return (short, *args[1:]), kwargs
        return args, {k: short if v is hidden else v for k, v in kwargs.items()}

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        now = self.decoder.now or self._recomputed(kwargs)
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

    # ------------------------------------------------------------------ gradient checkpointing

    def _remember(self, now: Pass, kwargs: dict[str, Any], hidden: Tensor) -> None:
        """Where layer hooks run again in a checkpoint's recomputation, find the same pass."""
        if not (torch.is_grad_enabled() and self.decoder.adapter.language.training):
            return
        cos = kwargs["position_embeddings"][0]
        self.decoder._recompute[id(cos)] = (weakref.ref(cos), now)

    def _recomputed(self, kwargs: dict[str, Any]) -> Pass | None:
        if not self.decoder._recompute or "position_embeddings" not in kwargs:
            return None
        cos = kwargs["position_embeddings"][0]
        found = self.decoder._recompute.get(id(cos))
        return found[1] if found is not None and found[0]() is cos else None

    # ------------------------------------------------------------------ gathering

    def _gather_positions(self, now: Pass, first: int, kwargs: dict[str, Any]) -> None:
        """The cos and sin at the kept places; no position ids, whose gaps kernels misread."""
        pair = kwargs.get("position_embeddings")
        if pair is not None:
            key = (first, "rope", id(pair[0]))
            if key not in now.memo:
                index = _fill(now.kept[first]).to(pair[0].device)
                if faults.is_on("anchor_ignored"):
                    index = torch.arange(index.shape[1]).expand_as(index).to(index.device)
                now.memo[key] = (tuple(_gather(part, index) for part in pair), pair)
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
            query, keys = self._tables(now, first, segment, layer_cache, width, hidden.device)
            made = _short_mask(mask, query, keys, now)
            now.memo[key] = (made, mask)  # the original is held, so that its id stays its own
        kwargs["attention_mask"] = now.memo[key][0]

    def _tables(
        self,
        now: Pass,
        first: int | None,
        segment: Segment | None,
        layer_cache: Any,
        width: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """(b, q) queries and (b, k) keys of this layer by original index, -1 for holes."""
        if first is None:
            here = torch.arange(now.length, device=device).expand(now.batch, -1)
        else:
            here = now.kept[first].to(device)
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
        return min(length, held)
    return length


def _short_mask(mask: Tensor | None, query: Tensor, keys: Tensor, now: Pass) -> Tensor:
    """The mask of a short layer.

    Args:
        mask: the full one: None (causal), (b, k) of keys, or (b, h, q, k) boolean or additive.
        query: (b, q') original indices of the queries, -1 for holes.
        keys: (b, k') those of the keys, -1 for holes.
    """
    hole = keys < 0
    filled = _fill(query)
    if mask is None:
        return (keys[:, None, None, :] <= filled[:, None, :, None]) & ~hole[:, None, None, :]
    if not isinstance(mask, Tensor):
        raise AttachError(
            f"Attention masks of type {type(mask).__name__} cannot be gathered.\n"
            "Use attn_implementation 'sdpa', 'eager' or a flash kernel."
        )
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


def _fill(index: Int[Tensor, "b q"]) -> Int[Tensor, "b q"]:
    """Holes point at the row's first real entry, so that they compute something finite."""
    first = torch.where(index >= 0, index, torch.iinfo(index.dtype).max).min(1, keepdim=True)
    return torch.where(index >= 0, index, first.values)


def _gather(x: Tensor, index: Int[Tensor, "b q"]) -> Tensor:
    """Entries of x (..., 1 or b, s, d) at `index` (b, q) along its second-last axis."""
    if x.shape[-3] == 1 and len(index) > 1:
        x = x.expand(*x.shape[:-3], len(index), *x.shape[-2:])
    where = index[..., None].expand(*x.shape[:-2], index.shape[1], x.shape[-1])
    return x.gather(-2, where)


def _inverse(table: Int[Tensor, "b q"], length: int) -> Int[Tensor, "b s"]:
    """(b, s) for each sequence position the physical slot of the last kept token up to it."""
    rows = []
    for row in table:
        kept = row[row >= 0]
        slot = torch.searchsorted(kept, torch.arange(length), right=True) - 1
        rows.append(slot.clamp(min=0) + len(row) - len(kept))
    return torch.stack(rows)
