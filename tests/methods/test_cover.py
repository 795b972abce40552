"""Cover by hand."""

from __future__ import annotations

import torch

from foveate.methods.cover import Cover
from tests.methods.given import rows, tokens

# On a line: the mean is 3.6, the farthest from it 10, then 0 (10 away), then 5 (5 from both).
LINE = rows([0], [1], [2], [5], [10])


def test_picks_by_hand() -> None:
    select = Cover(merge=False)
    assert select(tokens(LINE), 1).anchors.tolist() == [4]
    assert select(tokens(LINE), 2).anchors.tolist() == [0, 4]
    assert select(tokens(LINE), 3).anchors.tolist() == [0, 3, 4]
    assert select(tokens(LINE), 4).anchors.tolist() == [0, 2, 3, 4]


def test_merging_by_hand() -> None:
    # 1 and 2 are nearest to 0; 5 and 10 stand for themselves.
    found = Cover()(tokens(LINE), 3)
    assert found.anchors.tolist() == [0, 3, 4]
    assert found.apply(LINE).flatten().tolist() == [1.0, 5.0, 10.0]
    # 5 is as far from 0 as from 10: it goes to the pick that came first, which is 10.
    assert Cover()(tokens(LINE), 2).apply(LINE).flatten().tolist() == [1.0, 7.5]


def test_lengths_count_and_places_do_not() -> None:
    # One direction only: a cosine sees no difference at all.
    found = Cover(merge=False)(tokens(rows([1, 1], [9, 9], [2, 2], [5, 5])), 3)
    assert found.anchors.tolist() == [0, 1, 3]
    # Moving everything changes nothing: the mean is taken off. Far on the one side the longest
    # token would be another one than far on the other.
    for far in (100, -100):
        moved = Cover(merge=False)(tokens(rows([1, 1], [9, 9], [2, 2], [5, 5]) + far), 1)
        assert moved.anchors.tolist() == [1]


def test_equal_tokens_are_each_their_own() -> None:
    found = Cover()(tokens(torch.ones(4, 2)), 3)
    assert found.anchors.tolist() == [0, 1, 2]
    assert found.owner().tolist() == [0, 1, 2, 0]
    assert Cover()(tokens(LINE), 5).apply(LINE).flatten().tolist() == [0.0, 1.0, 2.0, 5.0, 10.0]
