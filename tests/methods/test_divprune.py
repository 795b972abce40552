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


def test_a_longer_token_is_no_farther() -> None:
    # By dot products 1 would lie 1 + 9 * 0.96 from 3, and be second; 0 is, 2 away by cosine.
    scaled = FOUR * rows([1], [9], [1], [1])
    assert DivPrune()(tokens(scaled), 2).anchors.tolist() == [0, 3]


def test_nearest_counts_first_to_last() -> None:
    # 2 and 3 are equal, and so are 4 and 5. Nearest others: 0.4 (0 and 1), then 0. Distances:
    #        0     1    2,3   4,5
    #  0     -    0.4   2     1
    #  1    0.4    -    1.6   1.8
    #  2     2    1.6   0     1
    six = rows([1, 0], [0.6, 0.8], [-1, 0], [-1, 0], [0, -1], [0, -1])
    # Of the tie 0 is first, though 1 is farther from all the others on average (7.2 to 6.4).
    assert DivPrune()(tokens(six), 1).anchors.tolist() == [0]
    assert DivPrune()(tokens(six), 2).anchors.tolist() == [0, 2]
    # 1 lies 1.6 from the last pick, but 0.4 from the first; 4 lies 1 from both.
    assert DivPrune()(tokens(six), 3).anchors.tolist() == [0, 2, 4]
