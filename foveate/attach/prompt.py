"""What in a prompt is the user's question, and which placeholders belong to which picture."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from foveate.adapters import adapter_for
from foveate.adapters.base import Adapter, Layout, join
from foveate.attach.capture import Capture
from foveate.errors import AttachError
from foveate.prompting import conversation

_PROBE, _REPLY = "zebra", "okapi"
_PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclasses.dataclass(eq=False)
class Placed:
    """One picture or video in the prompt that is being prefilled.

    Attributes:
        row: batch row.
        index: how manieth picture of its row it is.
        capture: the encoder call its features come from.
        layout: its placeholders.
        slots: (n,) where its visual slots are in this forward pass's sequence.
    """

    row: int
    index: int
    capture: Capture
    layout: Layout
    slots: Int[Tensor, " n"]

    @property
    def is_video(self) -> bool:
        """Whether this is a video."""
        return self.capture.modality == "video"


@dataclasses.dataclass(eq=False)
class Prompt:
    """The token ids of one forward pass, on the host.

    Attributes:
        ids: (b, s) token ids.
        real: (b, s) True where the token is no padding.
    """

    ids: Int[Tensor, "b s"]
    real: Tensor

    def place(self, adapter: Adapter, captures: list[Capture]) -> list[Placed]:
        """Every picture of this prompt with its slots, row by row.

        Raises:
            AttachError: placeholders and encoded features do not match, as in chunked prefill,
                or nothing was encoded at all.
        """
        placed: list[Placed] = []
        for modality, token in adapter.placeholder_ids.items():
            here = self.ids == token
            count = int(here.sum())
            known = [c for c in reversed(captures) if c.modality == modality]
            if count and not known:
                raise AttachError(
                    f"The prompt part being run has {count} {modality} placeholders, and no "
                    f"{modality} was encoded while attached.\nPass the {modality}s with the whole "
                    "prompt (chunked prefill cannot be compressed), or as encoded= what "
                    "foveate.attach.encode gave."
                )
            if count:
                placed += self._place(adapter, modality, here, count, known)
        return sorted(placed, key=lambda p: (p.row, int(p.slots[0])))

    def _place(
        self, adapter: Adapter, modality: str, here: Tensor, count: int, known: list[Capture]
    ) -> list[Placed]:
        rows = len(here)
        fitting = [
            c
            for c in known
            if count % c.placeholders == 0 and rows % (count // c.placeholders) == 0
        ]
        if not fitting:
            raise AttachError(
                f"The prompt part being run has {count} {modality} placeholders, the encoded "
                f"{modality}s fill {known[0].placeholders}.\n"
                "Chunked prefill cannot be compressed: pass the whole prompt at once "
                "(prefill_chunk_size=None),\nand encode the pictures while attached."
            )
        capture = fitting[0]
        # Beams and num_return_sequences repeat each row; its pictures repeat with it.
        copies = count // capture.placeholders
        placed: list[Placed] = []
        cursor = start = 0
        for row in range(rows):
            if row % copies == 0:
                start = cursor
            cursor = start
            positions = here[row].nonzero().flatten()
            tiles, starts, places, offset = [], [], [], 0
            while offset < len(positions):
                layout = capture.layouts[cursor] if cursor < len(capture.layouts) else None
                if layout is None or offset + layout.length > len(positions):
                    raise AttachError(
                        f"Row {row} has {len(positions)} {modality} placeholders, which is no "
                        f"whole number of encoded {modality}s.\nPass the prompt as its processor "
                        "made it, in one piece."
                    )
                here_now = positions[offset : offset + layout.length]
                tiles.append(layout)
                starts.append(int(here_now[0]))
                places.append(here_now[layout.visual])
                offset, cursor = offset + layout.length, cursor + 1
            ids = self.ids[row].tolist()
            images = adapter.group(ids, starts, [t.length for t in tiles])
            for image in sorted(set(images)):
                members = [i for i, owner in enumerate(images) if owner == image]
                placed.append(
                    Placed(
                        row=row,
                        index=image,
                        capture=capture,
                        layout=join([tiles[i] for i in members]),
                        slots=torch.cat([places[i] for i in members]),
                    )
                )
        return placed

    def filled(self, row: int, adapter: Adapter) -> list[int]:
        """Positions of row `row` that pictures fill: slots, and newlines or CLS among them."""
        tokens = torch.tensor([*adapter.placeholder_ids.values()])
        return torch.isin(self.ids[row], tokens).nonzero().flatten().tolist()

    def text(self, row: int, filled: list[int]) -> list[int]:
        """Positions of all text after the last picture of row `row`, else of all text before it.

        Never empty if there is any text.

        Args:
            row: which one.
            filled: what pictures fill of it, as `filled` gives it.
        """
        every = self._every(row, filled)
        return [i for i in every if not filled or i > filled[-1]] or every

    def question(self, row: int, filled: list[int], template: Template | None) -> list[int]:
        """Positions of the user's text in the turn being answered.

        Behind the last picture; where the template's own tokens alone stand there, before it.
        Without a template all text counts, as `text` gives it. Never empty if that is not.

        Args:
            row, filled: as `text` takes them.
            template: what is no one's question.
        """
        text = self.text(row, filled)
        if template is None or not text:
            return text
        ids = self.ids[row].tolist()
        return template.strip(ids, text) or template.strip(ids, self._every(row, filled)) or text

    def _every(self, row: int, filled: list[int]) -> list[int]:
        """Positions of all text of row `row`."""
        pictures = set(filled)
        return [i for i in self.real[row].nonzero().flatten().tolist() if i not in pictures]

    def last(self, row: int) -> int:
        """Position of the last token of row `row`."""
        return int(self.real[row].nonzero().max())


def placed(model: Any, inputs: dict[str, Any]) -> list[Placed]:
    """Every picture of these prompts and where its slots are, in the order of a run's `items`.

    Args:
        model: as loaded; it is not run.
        inputs: its inputs, pictures not yet encoded.
    """
    adapter = adapter_for(model)
    captures = [
        Capture(modality, adapter.layouts(modality, inputs))
        for modality in adapter.modalities
        if any(name in inputs for name in _PIXELS[modality])
    ]
    ids, mask = inputs["input_ids"].cpu(), inputs["attention_mask"].bool().cpu()
    return Prompt(ids, mask).place(adapter, captures)


class Template:
    """What a chat template writes around a question, found by rendering two turns.

    Tokens are compared by their text without white space: a tokenizer may join the same words in
    other ways where they stand by themselves.
    """

    def __init__(self, processor: Any) -> None:
        self.head = self.tail = ""
        tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {i for i, token in added.items() if token.special}
        render = getattr(processor, "apply_chat_template", None)
        if render is None or not getattr(processor, "chat_template", None):
            return
        first = _bare(conversation(processor, [_PROBE], pictures=0))
        later = _bare(conversation(processor, [_REPLY, _PROBE], [_REPLY], pictures=0))
        begin, found, self.tail = first.partition(_PROBE)
        again = later.rpartition(_REPLY)[2].partition(_PROBE)
        if found and again[1]:
            # A conversation begins with more than a turn does.
            self.head = _ending(begin, again[0])

    def decode(self, ids: list[int]) -> str:
        """The text of some token ids."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def strip(self, ids: list[int], text: list[int]) -> list[int]:
        """Of the positions `text` in `ids`, the question of the last turn.

        Empty if the template's own words are not there, or nothing is between them.
        """
        pieces = [_bare(self.tokenizer.decode([ids[i]])) for i in text]
        starts = list(itertools.accumulate(map(len, pieces), initial=0))
        whole = "".join(pieces)
        end = whole.rfind(self.tail) if self.tail else -1
        found = whole.rfind(self.head, 0, end) if self.head and end >= 0 else -1
        begin = found + len(self.head) if found >= 0 else 0
        inside = [
            k
            for k, i in enumerate(text)
            if starts[k] < end and starts[k + 1] > max(begin, starts[k])
            if ids[i] not in self._special
        ]
        return text[inside[0] : inside[-1] + 1] if inside else []


def _bare(text: str) -> str:
    return "".join(text.split())


def _ending(one: str, other: str) -> str:
    """What two texts end with alike."""
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(one[::-1], other[::-1], strict=False)
    )
    return "".join(letter for letter, _ in same)[::-1]
