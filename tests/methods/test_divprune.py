"""DivPrune by hand."""

from __future__ import annotations

from foveate.methods.divprune import DivPrune
from tests.methods.given import rows, tokens

# Unit vectors, so 1 - cosine is 1 - dot:
#        0     1     2     3
#  0     -   0.04  1.00  2.00
#  1   0.04    -   0.72  1.96
#  2   1.00  0.72    -   1.00
#  3   2.00  1.96  1.00    -
FOUR = rows([1, 0], [0.96, 0.28], [0, 1], [-1, 0])


def test_by_hand() -> None:
    # Nearest others: 0.04, 0.04, 0.72, 1.00. The first pick is 3; farthest from it is 0 (2.00).
    assert DivPrune()(tokens(FOUR), 2).anchors.tolist() == [0, 3]
    # Distance to {0, 3}: 1 has min(0.04, 1.96), 2 has min(1, 1).
    assert DivPrune()(tokens(FOUR), 3).anchors.tolist() == [0, 2, 3]


def test_length_does_not_matter() -> None:
    scaled = FOUR * rows([9], [0.1], [3], [1])
    assert DivPrune()(tokens(scaled), 3).anchors.tolist() == [0, 2, 3]


def test_ties_go_to_the_lower_index() -> None:
    # Four directions at right angles: every nearest other is 1 away, so 0 is first; its opposite
    # 2 follows (distance 2), then 1 and 3 tie at 1.
    cross = rows([1, 0], [0, 1], [-1, 0], [0, -1])
    assert DivPrune()(tokens(cross), 1).anchors.tolist() == [0]
    assert DivPrune()(tokens(cross), 2).anchors.tolist() == [0, 2]
    assert DivPrune()(tokens(cross), 3).anchors.tolist() == [0, 1, 2]


def test_edge_budgets() -> None:
    assert DivPrune()(tokens(FOUR), 1).anchors.tolist() == [3]
    assert DivPrune()(tokens(FOUR), 4).is_identity


def test_equal_tokens_are_all_kept_in_the_end() -> None:
    assert DivPrune()(tokens(rows([1, 0], [1, 0], [1, 0])), 3).is_identity
