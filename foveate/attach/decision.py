"""Asking a method for P: what it may look at, the call, and the tokens that P makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.adapters.base import Adapter
from foveate.attach.forward import Live, Pass
from foveate.attach.prompt import Placed, Prompt, Template
from foveate.compressor import Compressor, Reads, Stage, VisualTokens, check_keep, resolve_keep
from foveate.errors import AttachError, MappingError, StageNotAvailable
from foveate.mapping import Mapping


class Decision:
    """One method with its budget, on one model.

    Attributes:
        method, keep, positions: as attached.
        layers: decoder layers before which the method acts; empty for all other stages.
        reads_text: whether the question must be found.
    """

    def __init__(
        self,
        adapter: Adapter,
        method: Compressor,
        *,
        keep: int | float | None,
        positions: str,
        template: Template | None,
    ) -> None:
        self.adapter, self.method = adapter, method
        self.keep, self.positions, self.template = keep, positions, template
        self.layers = tuple(sorted(method.layers)) if method.stage == Stage.DECODER else ()
        self.reads_text = bool(method.reads & {Reads.QUESTION, Reads.QUESTION_TEXT})
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

    def count(self, n: int) -> int | None:
        """Rows that P must have for n tokens; None: the method's own fields decide."""
        return None if self.keep is None else resolve_keep(self.keep, n)

    def budgets(self, n: int) -> tuple[int | None, ...]:
        """The same for each of `layers`, so that the average over all layers is the budget."""
        if self.keep is None:
            return (None,) * len(self.layers)
        total = len(self.adapter.decoder_layers)
        return self.method.decoder_budget(n, resolve_keep(self.keep, n), total)

    def act(
        self, p: Placed, tokens: VisualTokens, keep: int | None, embeds: Tensor
    ) -> tuple[Mapping, Tensor | None]:
        """P in the order in which its rows will live, and the tokens to write (None: none)."""
        mapping = self.call(tokens, keep)
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

    def call(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P from the method, checked for its shape."""
        with torch.set_grad_enabled(self.method.trainable and torch.is_grad_enabled()):
            mapping = self.method(tokens, keep)
        if mapping.n != tokens.n or (keep is not None and mapping.m != keep):
            raise MappingError(
                f"{type(self.method).__name__} returned {mapping.m} rows over {mapping.n} "
                f"sources; {keep} rows over {tokens.n} were asked for."
            )
        return mapping

    def tokens(
        self, p: Placed, embeds: Tensor, question: list[int], prompt: Prompt
    ) -> VisualTokens:
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
            text = self._text(p.row, question, embeds, prompt)
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
            tiles=layout.tile.to(embeds.device),
            cells=cells,
            **text,
        )

    def states(self, live: Live, now: Pass, states: Tensor, layer: int) -> VisualTokens:
        """What a method may look at inside the language model: the states entering a layer."""
        text: dict[str, Any] = {}
        if now.embeds is not None:
            text = self._text(live.placed.row, live.question, now.embeds, now.prompt)
        grids = live.item.grids if len(states) == live.item.n else ()
        return VisualTokens(
            features=states, grids=grids, is_video=live.item.is_video, layer=layer, **text
        )

    def _text(
        self, row: int, question: list[int], embeds: Tensor, prompt: Prompt | None
    ) -> dict[str, Any]:
        assert prompt is not None
        if not question:
            raise AttachError(
                f"{type(self.method).__name__} reads the question, but row {row} holds no text.\n"
                "Ask something, or use a method that does not read the prompt."
            )
        where = torch.tensor(question)
        ids = prompt.ids[row, where]
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
