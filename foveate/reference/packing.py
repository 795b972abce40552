"""Dialogues about one picture packed behind it: encoded once, asked about many times.

Each dialogue sees the picture and itself, at the positions it would have alone, so what is learned
is exactly the three-turn conversation that the chat template renders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    user, assistant, end = table[words.USER], table[words.ASSISTANT], table[words.EOS]
    rows, sources, meanings = [], [], []
    for dialogues in batch:
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        groups: list[int] = []
        about: list[tuple[int, ...]] = []
        named: list[tuple[int, ...]] = []
        for group, turns in enumerate(dialogues):
            mine: list[int] = []
            wanted: list[int] = []
            for turn, question in enumerate(turns):
                # The first "user:" stands before the picture and belongs to all dialogues.
                asked = [*([user] if turn else []), *encode(question.text), assistant]
                answer = [*encode(question.answer), end]
                mine += asked + answer
                wanted += [IGNORE] * (len(asked) - 1) + answer + [IGNORE]
                said = question.about * (1 if len(question.about) > 1 else len(answer) - 1)
                about += [()] * (len(asked) - 1) + [*said, (), ()]
                meant = dict(question.named)
                first = 1 if turn else 0  # the place of the text's first word
                named += [meant.get(at - first, ()) for at in range(len(asked) + len(answer))]
            ids += mine
            labels += wanted
            positions += range(len(mine))
            groups += [group] * len(mine)
        rows.append((ids, labels, positions, groups))
        sources.append(about)
        meanings.append(named)
    longest = max(len(row[0]) for row in rows)
    filled = [
        torch.tensor([row[part] + [fill] * (longest - len(row[part])) for row in rows])
        for part, fill in enumerate((table[words.PAD], IGNORE, 0, -1))
    ]
    owners = (_owner_sets(each, longest) for each in (sources, meanings))
    return Packed(*filled, *owners)


def _owner_sets(rows: Sequence[Sequence[tuple[int, ...]]], longest: int) -> Tensor:
    """Owners per place as bool[b, longest, owners]."""
    found = torch.zeros(len(rows), longest, MOST_OWNERS, dtype=torch.bool)
    for row, each in enumerate(rows):
        for place, owners in enumerate(each):
            found[row, place, list(owners)] = True
    return found


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
