"""Dialogues about one picture packed behind it: encoded once, asked about many times.

Each dialogue sees the picture and itself, at the positions it would have alone, so what is learned
is exactly the three-turn conversation that the chat template renders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from foveate.reference import words
from foveate.reference.labels import MOST_OWNERS
from foveate.reference.questions import Question

Encode = Callable[[str], list[int]]
IGNORE = -100


@dataclass(frozen=True)
class Packed:
    """A batch of pictures with their dialogues, without the picture's own tokens.

    Attributes:
        ids: int64[b, t] text tokens, padded.
        labels: int64[b, t] what the token *at* this place must predict next; -100: nothing.
        positions: int64[b, t] position counted from the first text token of each dialogue.
        groups: int64[b, t] which dialogue a token belongs to; -1 is padding.
        about: bool[b, t, owners] which owners the next word is read from.
        named: bool[b, t, owners] which owners are meant by the name that ends at this word.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    groups: Tensor
    about: Tensor
    named: Tensor


def text_encoder() -> Encode:
    """Text to ids by table: what the tokenizer gives for these words, ten times faster."""
    table = words.vocabulary()
    return lambda text: [table[word] for word in text.split()]


def pack(batch: Sequence[Sequence[Sequence[Question]]], encode: Encode) -> Packed:
    """Pack `batch[picture][dialogue][turn]`; every answer and its </s> is supervised."""
    table = words.vocabulary()
    rows = [_row(dialogues, encode, table) for dialogues in batch]
    longest = max(len(row.ids) for row in rows)
    return Packed(
        ids=_filled([row.ids for row in rows], longest, table[words.PAD]),
        labels=_filled([row.labels for row in rows], longest, IGNORE),
        positions=_filled([row.positions for row in rows], longest, 0),
        groups=_filled([row.groups for row in rows], longest, -1),
        about=_owner_sets([row.about for row in rows], longest),
        named=_owner_sets([row.named for row in rows], longest),
    )


@dataclass
class _Row:
    """What `Packed` holds of one picture; owners as pairs of a place and an owner."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    about: list[tuple[int, int]] = field(default_factory=list)
    named: list[tuple[int, int]] = field(default_factory=list)


def _row(dialogues: Sequence[Sequence[Question]], encode: Encode, table: Mapping[str, int]) -> _Row:
    user, assistant, end = table[words.USER], table[words.ASSISTANT], table[words.EOS]
    row = _Row()
    for group, turns in enumerate(dialogues):
        start = len(row.ids)
        for turn, question in enumerate(turns):
            # The first "user:" stands before the picture and belongs to all dialogues.
            opening = [user] if turn else []
            asked = [*opening, *encode(question.text), assistant]
            answer = [*encode(question.answer), end]
            first = len(row.ids) + len(opening)  # the place of the text's first word
            said = len(row.ids) + len(asked) - 1  # where the answer's first word is told
            row.ids += asked + answer
            row.labels += [IGNORE] * (len(asked) - 1) + answer + [IGNORE]
            about = question.about * (1 if len(question.about) > 1 else len(answer) - 1)
            row.about += [(said + at, each) for at, owners in enumerate(about) for each in owners]
            row.named += [(first + at, each) for at, owners in question.named for each in owners]
        row.positions += range(len(row.ids) - start)
        row.groups += [group] * (len(row.ids) - start)
    return row


def _filled(rows: Sequence[Sequence[int]], longest: int, fill: int) -> Tensor:
    """Rows of unequal length as int64[b, longest]."""
    found = np.full((len(rows), longest), fill, np.int64)
    for values, row in zip(rows, found, strict=True):
        row[: len(values)] = values
    return torch.as_tensor(found)


def _owner_sets(rows: Sequence[Sequence[tuple[int, int]]], longest: int) -> Tensor:
    """Pairs of a place and an owner as bool[b, longest, owners], written in one go."""
    found = np.zeros((len(rows), longest, MOST_OWNERS), bool)
    pairs = [(row, *pair) for row, each in enumerate(rows) for pair in each]
    if pairs:
        found[tuple(np.array(pairs).T)] = True
    return torch.as_tensor(found)


def attention_mask(groups: Tensor, prefix: int) -> Tensor:
    """Causal within the picture and within each dialogue: float[b, 1, p + t, p + t], 0 or lowest.

    Args:
        groups: int64[b, t] as in `Packed`.
        prefix: p, the tokens before the dialogues, seen by all of them.
    """
    head = torch.full((len(groups), prefix), -2)
    every = torch.cat([head, groups], dim=1)
    same = (every[:, :, None] == every[:, None, :]) | (every == -2)[:, None, :]
    allowed = same & torch.ones(every.shape[1], every.shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    return mask[:, None]
