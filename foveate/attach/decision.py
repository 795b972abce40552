"""Asking a method for P: what it may look at, the call, and the tokens that P makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.adapters.base import Adapter
from foveate.attach.forward import Live, Looked, Pass
from foveate.attach.prompt import Placed, Prompt, Template
from foveate.attention import LayerAttention
from foveate.compressor import Compressor, Reads, Stage, VisualTokens, check_keep, resolve_keep
from foveate.errors import AttachError, MappingError, StageNotAvailable
from foveate.mapping import Mapping

_TEXT = frozenset({Reads.QUESTION, Reads.QUESTION_TEXT, Reads.TEXT, Reads.TEXT_STATES})
_LOOKS = frozenset({Reads.BEFORE, Reads.AHEAD})


class Decision:
    """One method with its budget, on one model.

    Attributes:
        method, keep, positions: as attached.
        outside: its parts that act before the decoder, in order.
        inside: its part that acts between decoder layers; None if it has none.
        layers: decoder layers before which that part may ever act.
        settled: first decoder layer whose cache is cut after a prefill; None: none is.
        reads: what any of the parts looks at.
        reads_text: whether text must be found.
        recorded: for each picture of a prefill what the parts said earlier (`Item.answers`), which
            is taken instead of asking them; None to ask.
    """

    def __init__(
        self,
        adapter: Adapter,
        method: Compressor,
        *,
        keep: int | float | None,
        positions: str,
        template: Template | None,
        recorded: Sequence[Sequence[Mapping]] | None = None,
    ) -> None:
        self.adapter, self.method, self.recorded = adapter, method, recorded
        self.keep, self.positions, self.template = keep, positions, template
        self.total = len(adapter.decoder_layers)
        *front, last = method.parts
        within = last.stage == Stage.DECODER
        self.inside = last if within else None
        self.outside = tuple(front) if within else method.parts
        self.layers = tuple(sorted(last.layers_in(self.total))) if within else ()
        self.settled = last.settles_from(self.total)
        self.reads = frozenset().union(*(part.reads for part in method.parts))
        self.reads_text = bool(self.reads & (_TEXT | _LOOKS | {Reads.NORMED}))
        self._check()
        if keep is not None:
            check_keep(keep)

    def _check(self) -> None:
        name = type(self.method).__name__
        if any(part.stage == Stage.DECODER for part in self.outside):
            raise StageNotAvailable(
                f"{name} has several parts that act between decoder layers, or one before others."
                "\nOnly the last part may act there."
            )
        if any(part.stage != Stage.INPUT for part in self.outside[1:]):
            raise StageNotAvailable(
                f"{name} has a part that acts on the vision side after another one.\n"
                "Put it first; what follows must act on projected tokens or between layers."
            )
        if self.layers and not 0 <= self.layers[0] <= self.layers[-1] < self.total:
            raise StageNotAvailable(
                f"{name} drops tokens at decoder layers {self.layers}; this model "
                f"has layers 0..{self.total - 1}."
            )

    def budgets(self, n: int) -> tuple[int | None, ...]:
        """The budget of each part for a picture of n tokens; None: its own fields decide."""
        keep = None if self.keep is None else resolve_keep(self.keep, n)
        return self.method.budgets(n, keep, self.total)

    def first_count(self, n: int) -> int:
        """Tokens that the first part leaves of a picture of n; all if its own fields decide."""
        count = self.budgets(n)[0]
        return n if count is None else count

    def steps(self, n: int, m: int) -> dict[int, int | None]:
        """Decoder layer -> tokens to leave there.

        Args:
            n: the picture's tokens before anything was dropped.
            m: those that are left when the decoder starts.
        """
        if self.inside is None:
            return {}
        steps = self.inside.steps(m, self.budgets(n)[-1], self.total)
        return {step.layer: step.keep for step in steps}

    # ------------------------------------------------------------------ before the decoder

    def outside_of(
        self, p: Placed, embeds: Tensor, live: Live, prompt: Prompt
    ) -> tuple[Mapping, Tensor | None]:
        """P of the parts before the decoder, and the tokens to write into slots (None: none)."""
        if not self.outside:
            return Mapping.identity(p.layout.n), None
        first, *rest = self.outside
        counts = self.budgets(p.layout.n)

        look = partial(self.tokens, p=p, embeds=embeds, question=live.question, prompt=prompt)
        mapping = self.ask(first, live, partial(look, first), counts[0])
        mapping, new = self.act(first, p, mapping, embeds)
        for part, count in zip(rest, counts[1:], strict=False):
            states = new
            if states is None:
                states = embeds[p.row, p.slots[mapping.anchors.cpu()].to(embeds.device)]
            after = self.ask(
                part, live, partial(_left, partial(look, part), mapping, states), count
            )
            if self.positions == "original":
                after = after.in_raster_order()
            mapping = after.to("cpu") @ mapping.to("cpu")
            new = None if new is None and after.is_selection else after.apply(states)
        return mapping, new

    def act(
        self, part: Compressor, p: Placed, mapping: Mapping, embeds: Tensor
    ) -> tuple[Mapping, Tensor | None]:
        """P in the order in which its rows will live, and the tokens to write (None: none)."""
        if self.positions == "original":
            mapping = mapping.in_raster_order()
            if mapping.is_selection:
                return mapping, None
        slots = embeds[p.row, p.slots.to(embeds.device)]
        if mapping.is_selection:
            return mapping, mapping.apply(slots)
        rows = p.layout.rows
        if part.stage != Stage.VISION or rows is None:
            if mapping.virtual:
                raise StageNotAvailable(
                    f"{type(part).__name__} passes the CLS token on, which needs tokens "
                    "that are projected one by one;\nhere they are interpolated after the "
                    "projector. Use it without CLS."
                )
            return mapping, mapping.apply(slots)
        captured = p.capture.rows
        assert captured is not None
        x = captured[rows.to(captured.device)]
        if mapping.virtual:
            cls = self._cls(p)
            assert cls is not None
            x = torch.cat([x, cls[:, None].expand(-1, x.shape[1], -1)])
        return mapping, self.adapter.project(mapping.apply(x)).to(embeds.device)

    def ask(
        self,
        part: Compressor,
        live: Live,
        look: Callable[[], VisualTokens],
        keep: int | None,
    ) -> Mapping:
        """What a part says about a picture, or what was recorded of it.

        Args:
            part: who is asked.
            live: the picture.
            look: makes what the part may look at.
            keep: rows that P must have; None lets the part decide.
        """
        answers = live.item.answers
        if live.recorded is None:
            answers.append(self.call(part, look(), keep))
        else:
            answers.append(live.recorded[len(answers)])
        return answers[-1]

    def recorded_of(self, placed: Sequence[Placed]) -> Sequence[Sequence[Mapping] | None]:
        """What was recorded of each of these pictures.

        Raises:
            AttachError: it was recorded of other pictures.
        """
        if self.recorded is None:
            return [None] * len(placed)
        there = [p.layout.n for p in placed]
        known = [answers[0].n if answers else None for answers in self.recorded]
        fit = [k in (None, n) for k, n in zip(known, there, strict=False)]
        if len(there) != len(known) or not all(fit):
            raise AttachError(
                f"Mappings of pictures with {known} tokens were recorded; this prompt has pictures "
                f"with {there}.\nGive them back to the pictures that they were made for."
            )
        return self.recorded

    def call(self, part: Compressor, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P from a part, checked for its shape."""
        with torch.set_grad_enabled(part.trainable and torch.is_grad_enabled()):
            mapping = part(tokens, keep)
        fits = mapping.m >= (keep or 0) if part.at_least else keep in (None, mapping.m)
        if mapping.n != tokens.n or not fits:
            raise MappingError(
                f"{type(part).__name__} returned {mapping.m} rows over {mapping.n} "
                f"sources; {keep} rows over {tokens.n} were asked for."
            )
        return mapping

    def tokens(
        self, part: Compressor, p: Placed, embeds: Tensor, question: list[int], prompt: Prompt
    ) -> VisualTokens:
        """What a part may look at before the decoder, for one picture."""
        reads, capture, layout = part.reads, p.capture, p.layout
        slots = embeds[p.row, p.slots.to(embeds.device)]
        captured = capture.rows
        assert captured is not None
        encoder = None
        if part.stage == Stage.VISION or Reads.ENCODER in reads:
            if layout.rows is not None:
                picked = captured[layout.rows.to(captured.device)]
                encoder = picked[:, 0] if picked.shape[1] == 1 else picked.mean(1)
            else:
                encoder = layout.pool(captured)
        vision = part.stage == Stage.VISION and layout.rows is not None
        features = encoder if vision and encoder is not None else slots
        cls = self._cls(p) if Reads.CLS in reads else None

        def pooled(values: Tensor | None, read: Reads) -> Tensor | None:
            return None if values is None or read not in reads else layout.pool(values)

        text: dict[str, Any] = {}
        if reads & {Reads.QUESTION, Reads.QUESTION_TEXT}:
            text = self._question(part, p.row, question, embeds, prompt)
        cells = None
        if capture.cells is not None:
            cells = capture.cells[layout.patches[:, 0]].to(embeds.device)

        def given(values: Tensor | None) -> Tensor | None:
            # Training-free methods decide on values; only learned ones differentiate.
            return values if values is None or part.trainable else values.detach()

        return VisualTokens(
            features=features if part.trainable else features.detach(),
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

    @staticmethod
    def _cls(p: Placed) -> Tensor | None:
        """The tower's CLS outputs of a picture's tiles, where they were read."""
        found = p.capture.cls
        return None if found is None else found[p.layout.tile.unique().to(found.device)]

    # ------------------------------------------------------------------ between decoder layers

    def states(
        self,
        live: Live,
        now: Pass,
        layer: int,
        states: Tensor,
        text_states: Tensor,
        looked: dict[Reads, LayerAttention],
    ) -> VisualTokens:
        """What the part inside the language model may look at before a decoder layer.

        Args:
            live: the picture.
            now: the pass.
            layer: the layer about to run.
            states: (n, d) states of its tokens.
            text_states: (t, d) states of the text after it.
            looked: attention of the layers that the part reads.
        """
        part, item = self.inside, live.item
        assert part is not None
        reads, so_far = part.reads, item.mapping
        found: dict[str, Any] = {}
        if now.embeds is not None:
            embeds, row = now.embeds, live.placed.row
            if reads & {Reads.QUESTION, Reads.QUESTION_TEXT}:
                found |= self._question(part, row, live.question, embeds, now.prompt)
            if reads & (_TEXT | _LOOKS):
                asked = torch.isin(torch.tensor(live.text), torch.tensor(live.asking))
                found["asked"] = asked.to(states.device)
            if Reads.TEXT in reads:
                found["text"] = embeds[row, torch.tensor(live.text).to(embeds.device)].detach()
            if Reads.START in reads:
                start = embeds[row, item.slots.to(embeds.device)].detach()
                if live.entered is not None:
                    # By anchors, wherever the rows run: positions may count them anew.
                    (_, first), *_ = item.steps
                    start[first.anchors.to(start.device)] = live.entered.detach().to(start)
                found["start"] = start
        if Reads.TEXT_STATES in reads:
            found["text_states"] = text_states
        if Reads.NORMED in reads:
            norm = self.adapter.language.norm
            found |= {"normed": norm(states), "text_normed": norm(text_states)}
        capture, layout = live.placed.capture, live.placed.layout
        for read, values in (
            (Reads.ATTENTION, capture.attention),
            (Reads.KEYS, capture.keys),
        ):
            if read in reads and values is not None:
                found[str(read)] = so_far.carry(layout.pool(values)).to(states.device)
        return VisualTokens(
            features=states,
            grids=item.grids if len(states) == item.n else (),
            is_video=item.is_video,
            layer=layer,
            total=item.n,
            entering=item.entering,
            so_far=so_far,
            before=looked.get(Reads.BEFORE),
            ahead=looked.get(Reads.AHEAD),
            **found,
        )

    def looks_of(
        self,
        live: Live,
        now: Pass,
        looked: Looked,
        table: Tensor | None,
        where: Tensor | None,
    ) -> LayerAttention:
        """One picture's part of what was read of a layer.

        Args:
            live: the picture.
            now: the pass.
            looked: the batch's queries and keys.
            table: (b, s') which tokens they are of, -1 for holes; None for all of them.
            where: (b, s) sequence position -> place among them; None if they are equal.
        """
        row, device = live.placed.row, looked.q.device
        assert now.prompt is not None
        real = now.prompt.real[row]
        if table is not None:
            real = (table[row] >= 0) & real[table[row].clamp(min=0)]

        def places(positions: Tensor | list[int]) -> Tensor:
            at = torch.as_tensor(positions)
            return (at if where is None else where[row][at]).to(device)

        mask = looked.mask
        if mask is not None:
            mask = mask[row if len(mask) > 1 else 0]

        def ones() -> Tensor:
            if looked.rotations is None:
                raise StageNotAvailable(
                    f"{type(self.inside).__name__} reads the position encoding of decoder layer "
                    f"{looked.layer}, which this model does not show."
                )
            turned = self.adapter.turned_ones(looked.rotations)
            return turned[row if len(turned) > 1 else 0]

        return LayerAttention(
            q=looked.q[row].detach(),
            k=looked.k[row].detach(),
            logits=looked.logits,
            offset=looked.offset,
            mask=mask,
            visual=places(live.alive),
            text=places(live.text),
            question=places(live.asking),
            everyone=real.nonzero().flatten().to(device),
            last=int(places([live.last])[0]),
            ones=ones,
        )

    def _question(
        self,
        part: Compressor,
        row: int,
        question: list[int],
        embeds: Tensor,
        prompt: Prompt | None,
    ) -> dict[str, Any]:
        assert prompt is not None
        where = torch.tensor(question)
        ids = prompt.ids[row, where]
        found: dict[str, Any] = {
            "question": embeds[row, where.to(embeds.device)].detach(),
            "question_ids": None if bool((ids < 0).any()) else ids,
        }
        if Reads.QUESTION_TEXT in part.reads:
            if self.template is None:
                raise StageNotAvailable(
                    f"{type(part).__name__} reads the question as a string.\n"
                    "Pass the processor: foveate.attach(model, ..., processor=processor)."
                )
            found["question_text"] = self.template.decode(ids.tolist())
        return found

    def check_text(self, live: Live) -> None:
        """Raise an AttachError if the row of a picture holds no text, where text is read."""
        if self.reads_text and not live.text:
            raise AttachError(
                f"{type(self.method).__name__} reads the question, but row {live.placed.row} "
                "holds no text.\nAsk something, or use a method that does not read the prompt."
            )


def _left(look: Callable[[], VisualTokens], mapping: Mapping, states: Tensor) -> VisualTokens:
    """What a part sees behind another one whose P was `mapping` and whose tokens are `states`."""
    return look().left(mapping, states)
