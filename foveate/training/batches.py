"""Dialogues side by side: what goes into one forward pass, and where its answers are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate.adapters import adapter_for
from foveate.attach import Encoded
from foveate.training.features import Packed, join
from foveate.training.losses import Distribution
from foveate.training.transcripts import Transcript


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """One dialogue to learn from.

    Attributes:
        text: its token ids and the places of its answers.
        full: what the full model says there; None before that is known.
        pictures: the features.
    """

    text: Transcript
    full: Distribution | None
    pictures: Packed


@dataclasses.dataclass(eq=False)
class Lessons:
    """Several dialogues as one batch.

    Attributes:
        inputs: what the model takes beside the pictures, padded on the left.
        packed: the pictures of each dialogue.
        rows, cols: (t,) where answers are predicted.
        full: what the full model says at these places; None before that is known.
        device: where `to` has put it.
    """

    inputs: dict[str, Tensor]
    packed: list[Packed]
    rows: Int[Tensor, " t"]
    cols: Int[Tensor, " t"]
    full: Distribution | None = None
    device: torch.device | None = None

    def __len__(self) -> int:
        """Dialogues."""
        return len(self.packed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Lessons:
        """The same with its tensors on a device."""
        del non_blocking
        return Lessons(
            {name: value.to(device) for name, value in self.inputs.items()},
            self.packed,
            self.rows.to(device),
            self.cols.to(device),
            None if self.full is None else self.full.to(device),
            torch.device(device),
        )

    def encoded(self, model: Any) -> Encoded:
        """The pictures of all dialogues, as `foveate.attach` takes them.

        Args:
            model: whose projector finishes what is stored before it.
        """
        return join(self.packed, self.device, adapter_for(model).project)

    def answer_logits(self, model: Any, encoded: Encoded | None = None) -> Float[Tensor, "t v"]:
        """What the model says where answers are predicted, in one forward pass.

        Args:
            model: with or without a compressor on it.
            encoded: the pictures, if they were made already for `foveate.attach`.
        """
        shared = self.encoded(model) if encoded is None else encoded
        inputs = {**self.inputs, **shared.inputs}
        # The head runs on the places of all rows together, which is little beside the sequence.
        wanted, index = torch.unique(self.cols, return_inverse=True)
        logits = model(**inputs, use_cache=False, logits_to_keep=wanted).logits
        found: Tensor = logits[self.rows, index]
        return found

    def rows_of(self, values: Float[Tensor, "t *v"]) -> list[Float[Tensor, "u *v"]]:
        """Values at the places, parted by dialogue."""
        counts = torch.bincount(self.rows, minlength=len(self)).tolist()
        return list(values.split(counts))


def collate(lessons: Sequence[Lesson], pad: int = 0) -> Lessons:
    """Dialogues as one batch.

    Args:
        lessons: of any lengths.
        pad: the id that fills up; nothing sees it.
    """
    length = max(len(each.text.ids) for each in lessons)
    fills = [length - len(each.text.ids) for each in lessons]

    def padded(values: Sequence[Tensor], filling: int) -> Tensor:
        return torch.stack(
            [
                torch.nn.functional.pad(value, (fill, 0), value=filling)
                for value, fill in zip(values, fills, strict=True)
            ]
        )

    ids = [each.text.ids for each in lessons]
    inputs = {
        "input_ids": padded(ids, pad),
        "attention_mask": padded([torch.ones_like(each) for each in ids], 0),
    }
    for name in lessons[0].text.types:
        inputs[name] = padded([each.text.types[name] for each in lessons], 0)
    places = [each.text.places + fill for each, fill in zip(lessons, fills, strict=True)]
    fulls = [each.full for each in lessons if each.full is not None]
    return Lessons(
        inputs,
        [each.pictures for each in lessons],
        torch.cat([torch.full_like(place, row) for row, place in enumerate(places)]),
        torch.cat(places),
        _joined(fulls) if len(fulls) == len(lessons) else None,
    )


def _joined(parts: Sequence[Distribution]) -> Distribution:
    tokens = [each.tokens for each in parts if each.tokens is not None]
    rest = [each.rest for each in parts if each.rest is not None]
    return Distribution(
        torch.cat([each.log_probs for each in parts]),
        torch.cat(tokens) if tokens else None,
        torch.cat(rest) if rest else None,
    )
