"""ToMe by hand: who merges with whom, what becomes of sizes, and how many merge where."""

from __future__ import annotations

import pytest
import torch

from foveate import ops
from foveate.methods.tome import ToMe
from tests.methods.given import rows, tokens


def test_the_most_similar_pair_merges() -> None:
    # Even places 0 and 2 look at odd places 1 and 3. 0 and 1 are equal (cosine 1); 2 = up is most
    # like 3 = diagonal (0.71). One pair: 0 goes into 1, and the others move up.
    metric = rows([1, 0], [1, 0], [0, 1], [1, 1])
    assert ops.bipartite_matching(metric, 1).tolist() == [0, 0, 1, 2]
    assert ops.bipartite_matching(metric, 2).tolist() == [0, 0, 1, 1]


def test_ties_go_to_the_lower_place() -> None:
    # All alike: 0 goes first, and its partner is 1, the first of the odd places.
    assert ops.bipartite_matching(torch.ones(4, 1), 1).tolist() == [0, 0, 1, 2]
    assert ops.bipartite_matching(torch.ones(4, 1), 2).tolist() == [0, 0, 0, 1]


def test_protected_tokens_take_no_part() -> None:
    # With the CLS protected 2 is the only even place left, 1 and 3 the odd ones: 2 joins 1.
    assert ops.bipartite_matching(torch.ones(4, 1), 2, protected=1).tolist() == [0, 1, 1, 2]


def test_sizes_weigh_and_add_up() -> None:
    x, owner = rows([0.0], [4.0], [9.0]), torch.tensor([0, 0, 1])
    merged, sizes = ops.merge_weighted(x, owner, rows(1, 3, 2))
    # (0 * 1 + 4 * 3) / 4 = 3 stands for four patches; the other stays as it is.
    assert merged.flatten().tolist() == [3, 9]
    assert sizes.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("n", "target", "blocks", "merges"),
    [
        (16, 4, 3, (4, 4, 4)),  # 16 - 3 * 4
        (16, 5, 3, (4, 4, 3)),  # 11 = 4 + 4 + 3, the remainder first
        (16, 2, 3, (5, 5, 3)),  # of the last 6 only 3 can merge: 3 are left, the call keeps 2
        (1, 1, 2, (0, 0)),
        (16, 16, 3, (0, 0, 0)),
    ],
)
def test_how_many_merge_where(n: int, target: int, blocks: int, merges: tuple[int, ...]) -> None:
    assert ToMe().tower_plan(1, n, target, blocks).merges == merges


def test_one_row_for_each_final_token() -> None:
    given = tokens(torch.zeros(5, 1), cells=torch.tensor([0, 0, 0, 1, 2]))
    found = ToMe()(given, 3)
    # The first token has three patches: its row lives on the middle one.
    assert found.anchors.tolist() == [1, 3, 4]
    assert found.owner().tolist() == [0, 0, 0, 1, 2]
    assert found.is_selection
