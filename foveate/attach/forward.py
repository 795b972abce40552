"""One forward pass of the language model: its pictures, and which of its tokens run where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from foveate.attach.prompt import Placed, Prompt
from foveate.attach.tables import Tables
from foveate.attention import Logits
from foveate.compressor import Grid
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
        answers: what each part of the method said, in the order in which they were asked.
    """

    row: int
    index: int
    is_video: bool
    grids: tuple[Grid, ...]
    slots: Int[Tensor, " n"]
    specials: int
    steps: list[tuple[int | None, Mapping]]
    mapping: Mapping
    answers: list[Mapping] = dataclasses.field(default_factory=list)

    @property
    def n(self) -> int:
        """Visual slots before any compression."""
        return len(self.slots)

    @property
    def entering(self) -> int:
        """Visual tokens that enter decoder layer 0."""
        return next((p.m for layer, p in reversed(self.steps) if not layer), self.n)

    def at(self, layer: int) -> Mapping:
        """P from the n slots to the tokens that a decoder layer runs on."""
        found: Mapping | None = None
        for before, p in self.steps:
            if before is None or before <= layer:
                found = p if found is None else p.to("cpu") @ found.to("cpu")
        return Mapping.identity(self.n) if found is None else found

    def average(self, layers: int) -> float:
        """Visual tokens averaged over the decoder layers that ran."""
        total, now, done = 0, self.entering, 0
        for layer, p in self.steps:
            if layer is not None:
                total, now, done = total + now * (layer - done), p.m, layer
        return (total + now * (layers - done)) / layers


@dataclasses.dataclass(eq=False)
class Live:
    """One picture during a forward pass: where its current tokens are."""

    placed: Placed
    item: Item
    alive: Int[Tensor, " m"]  # sequence positions of its current rows, ascending
    source: Int[Tensor, " m"]  # the slot whose position and DeepStack rows each row carries
    # Positions of the text after all pictures, and of the user's question, where they are read.
    text: list[int] = dataclasses.field(default_factory=list)
    question: list[int] = dataclasses.field(default_factory=list)
    last: int = 0  # position of its row's last token
    # What the method's parts said at an earlier time, taken instead of asking them; None to ask.
    recorded: Sequence[Mapping] | None = None
    # Decoder layer -> tokens to leave there; None where the method's own fields decide.
    steps: dict[int, int | None] = dataclasses.field(default_factory=dict)
    # Embeddings of its rows that replace those of their anchors before layer 0; None: none do.
    entered: Tensor | None = None

    @property
    def asking(self) -> list[int]:
        """The question in the text after it; all of that text where the question stands before."""
        asked = set(self.question)
        return [i for i in self.text if i in asked] or self.text

    @classmethod
    def all_of(cls, placed: Placed) -> Live:
        """A picture of which nothing has been dropped yet."""
        layout = placed.layout
        item = Item(
            row=placed.row,
            index=placed.index,
            is_video=placed.is_video,
            grids=layout.grids,
            slots=placed.slots,
            specials=layout.length - layout.n,
            steps=[],
            mapping=Mapping.identity(layout.n),
        )
        return cls(placed, item, alive=placed.slots, source=placed.slots)


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """Queries and keys of one decoder layer for the whole batch.

    Attributes:
        layer: which one.
        q: (b, h, s, d) after norm and RoPE.
        k: (b, g, p, d), those of earlier passes first.
        mask: what the layer's kernel got; None if causal.
        logits: how the kernel makes them.
        offset: the key of query 0.
        rotations: cos and sin with which its tokens were turned; None if the layer got none.
    """

    layer: int
    q: Tensor
    k: Tensor
    mask: Tensor | None
    logits: Logits
    offset: int
    rotations: tuple[Tensor, Tensor] | None


@dataclasses.dataclass(eq=False)
class Pass:
    """One forward pass of the inner language model.

    Attributes:
        batch, length: its shape, in original tokens.
        past: original tokens that the cache had seen.
        device: where the model's first layer is.
        tables: the cache's tables, None without a cache.
        live: the pictures in it.
        cache: the cache itself.
        kept: first layer -> (b, s') sequence positions of the rows that run from there on, -1
            for holes; right-aligned.
        holes: the same -> whether there is a hole.
        entry: the table of what was dropped before decoder layer 0, None if nothing was.
        ids: its position ids, where layers number their tokens anew; 3 rows with M-RoPE.
        shifts: segment's first layer -> how far later ids move down from this pass on.
        seen: what was read of the decoder layer that ran last, for methods that look at it.
        rotations: cos and sin of the decoder layer that is running.
        decided, alive: decoder layer -> what was decided there, and where each picture's tokens
            lived before it; a checkpoint's recomputation applies them again.
        embeds: the input embeddings, without merged tokens, for methods that read them later on.
        deepstack, deep_index: visual features that the first layers add, and (b, s) which of
            their rows belongs to each sequence position, -1 for none.
        prompt: the token ids, None for a pass without pictures.
        opened, decision_seconds, prefill_seconds: host clock.
        memo: tensors gathered for one stretch of layers, reused by all of them.
    """

    batch: int
    length: int
    past: int
    device: torch.device
    tables: Tables | None = None
    live: list[Live] = dataclasses.field(default_factory=list)
    cache: Any = None
    prompt: Prompt | None = None
    kept: dict[int, Int[Tensor, "b q"]] = dataclasses.field(default_factory=dict)
    holes: dict[int, bool] = dataclasses.field(default_factory=dict)
    decided: dict[int, list[Mapping]] = dataclasses.field(default_factory=dict)
    alive: dict[int, list[Int[Tensor, " m"]]] = dataclasses.field(default_factory=dict)
    entry: Int[Tensor, "b q"] | None = None
    ids: Tensor | None = None
    shifts: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    seen: Looked | None = None
    rotations: tuple[Tensor, Tensor] | None = None
    embeds: Tensor | None = None
    deepstack: list[Tensor] = dataclasses.field(default_factory=list)
    deep_index: Tensor | None = None
    memo: dict[tuple[Any, ...], Any] = dataclasses.field(default_factory=dict)
    opened: float = 0.0
    decision_seconds: float = 0.0
    prefill_seconds: float = 0.0

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which some picture of this pass loses tokens, ascending."""
        return tuple(sorted({layer for live in self.live for layer in live.steps}))

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


def fill(index: Int[Tensor, "b q"]) -> Int[Tensor, "b q"]:
    """Holes point at the row's first real entry, so that they compute something finite."""
    first = torch.where(index >= 0, index, torch.iinfo(index.dtype).max).min(1, keepdim=True)
    return torch.where(index >= 0, index, first.values)


def gather(x: Tensor, index: Int[Tensor, "b q"]) -> Tensor:
    """Entries of x (..., 1 or b, s, d) at `index` (b, q) along its second-last axis."""
    if x.shape[-3] == 1 and len(index) > 1:
        x = x.expand(*x.shape[:-3], len(index), *x.shape[-2:])
    where = index[..., None].expand(*x.shape[:-2], index.shape[1], x.shape[-1])
    return x.gather(-2, where)


def inverse(table: Int[Tensor, "b q"], length: int) -> Int[Tensor, "b s"]:
    """(b, s) for each sequence position the physical slot of the last kept token up to it."""
    rows = []
    for row in table:
        kept = row[row >= 0]
        slot = torch.searchsorted(kept, torch.arange(length), right=True) - 1
        rows.append(slot.clamp(min=0) + len(row) - len(kept))
    return torch.stack(rows)
