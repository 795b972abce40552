"""PruMerge and PruMerge+ by hand."""

from __future__ import annotations

import pytest
import torch

from foveate.compressor import VisualTokens
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping
from foveate.methods.prumerge import PruMerge
from foveate.methods.prumerge_plus import PruMergePlus
from tests.methods.given import rows, tokens

ATTENTION = rows(0.1, 0.6, 0.2, 0.1)
KEYS = rows([1, 0], [1, 0], [0, 1], [0, 1])


def four(keys: torch.Tensor = KEYS) -> VisualTokens:
    return tokens(torch.zeros(4, 2), wide_attention=ATTENTION, wide_keys=keys)


def matrix(found: Mapping) -> torch.Tensor:
    return found.to_matrix()


def close(found: Mapping, *expected: list[float]) -> None:
    torch.testing.assert_close(matrix(found), rows(*expected))


def test_by_hand() -> None:
    # Two rows: token 1 (attention 0.6) with its nearest, 0, weighted by 0.1; and the sum of what
    # is left, 0.1 x0 + 0.2 x2 + 0.1 x3, which lives on 2, the most attended of it.
    found = PruMerge(neighbours=1)(four(), 2)
    close(found, [0.1, 1, 0, 0], [0.1, 0, 0.2, 0.1])
    assert found.anchors.tolist() == [1, 2]


def test_ties_go_to_the_lower_index() -> None:
    # All keys alike: the nearest other of 1 is 0, the first. Of 0 and 3, attended alike, 0 is
    # kept with three rows and more.
    same = KEYS[:1].expand(4, 2)
    close(PruMerge(neighbours=1)(four(same), 2), [0.1, 1, 0, 0], [0.1, 0, 0.2, 0.1])
    assert PruMerge(neighbours=1)(four(), 4).anchors.tolist() == [0, 1, 2, 3]


def test_edge_budgets() -> None:
    # One row: no sum of the rest. All four: three kept and the sum of the one that is left.
    close(PruMerge(neighbours=1)(four(), 1), [0.1, 1, 0, 0])
    close(
        PruMerge(neighbours=1)(four(), 4),
        [1, 0.6, 0, 0],  # 0 with its nearest, 1
        [0.1, 1, 0, 0],
        [0, 0, 1, 0.1],  # 2 with its nearest, 3
        [0, 0, 0, 0.1],
    )


def test_more_neighbours_than_there_are() -> None:
    found = PruMerge(neighbours=32)(four(), 2)
    close(found, [0.1, 1, 0.2, 0.1], [0.1, 0, 0.2, 0.1])


def test_outliers_are_counted_exactly() -> None:
    """11 of 576 tokens stand out: their share must not lose one on its way back to a count."""
    attention = torch.full((576,), 0.001)
    attention[100:111] = 0.01
    given = tokens(torch.zeros(576, 1), wide_attention=attention, wide_keys=torch.ones(576, 1))
    # Quartiles are 0.001 both, so everything above is an outlier; one more row sums up the rest.
    found = PruMerge()(given, None)
    assert found.m == 12
    assert found.anchors[:11].tolist() == list(range(100, 111))


def test_a_fixed_ratio() -> None:
    attention = torch.linspace(1, 0, 16)
    given = tokens(torch.zeros(16, 1), wide_attention=attention, wide_keys=torch.ones(16, 1))
    assert PruMerge(ratio=0.125)(given, None).anchors.tolist() == [0, 1, 2]  # 2 kept, the rest on 2


def test_its_own_count_stands_in_falling_attention() -> None:
    # Attention rises: 1/8 of 16 is two, 15 before 14; the rest lives on its most attended, 13.
    attention = torch.arange(16) / 100
    given = tokens(torch.zeros(16, 1), wide_attention=attention, wide_keys=torch.ones(16, 1))
    assert PruMerge(ratio=0.125)(given, None).anchors.tolist() == [15, 14, 13]


@pytest.mark.parametrize("method", [PruMerge(), PruMergePlus()])
def test_the_released_number_of_neighbours(method: PruMerge | PruMergePlus) -> None:
    given = tokens(torch.zeros(40, 1), wide_attention=torch.ones(40), wide_keys=torch.randn(40, 3))
    first = method(given, 2).to_matrix()[0]
    assert int((first != 0).sum()) == 1 + 32


def test_plus_by_hand() -> None:
    # Three rows: two tokens and the sum. Half of two, 1, by attention; of the others 0, 2, 3 the
    # middle one. 1 takes 0 along and 2 takes 3; 0.1 x0 + 0.1 x3 is left, a tie that lives on 0.
    found = PruMergePlus(neighbours=1)(four(), 3)
    close(found, [0.1, 0, 0, 0.1], [0.1, 1, 0, 0], [0, 0, 1, 0.1])
    assert found.anchors.tolist() == [0, 1, 2]


def test_plus_with_its_own_count() -> None:
    # 13 tokens, one outlier (5): every floor(floor(13 / 1) / 3) = 4th of 0 .. 11, namely 0, 4, 8.
    attention = torch.full((13,), 0.01)
    attention[5] = 0.5
    given = tokens(torch.zeros(13, 1), wide_attention=attention, wide_keys=torch.ones(13, 1))
    found = PruMergePlus()(given, None)
    assert found.anchors.tolist() == [5, 0, 4, 8, 1]  # the rest is a tie, and lives on 1


def test_plus_samples_no_token_twice() -> None:
    # As above with the outlier on one of the sampled places: 4 stands once, and first.
    attention = torch.full((13,), 0.01)
    attention[4] = 0.5
    given = tokens(torch.zeros(13, 1), wide_attention=attention, wide_keys=torch.ones(13, 1))
    assert PruMergePlus()(given, None).anchors.tolist() == [4, 0, 8, 1]


def test_plus_splits_its_budget_in_halves_of_which_attention_gets_the_larger() -> None:
    # Four rows: three tokens and the sum. ceil(3 / 2) = 2 by attention, 3 and 5; of the others
    # 0 1 2 4 the one at place floor(4 / 2) = 2. The rest, 0 1 4, lives on 1.
    attention = rows(0.1, 0.2, 0.1, 0.5, 0.1, 0.4)
    given = tokens(torch.zeros(6, 1), wide_attention=attention, wide_keys=torch.ones(6, 1))
    found = PruMergePlus(neighbours=1)(given, 4)
    assert found.anchors.tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("method", [PruMerge(), PruMergePlus()])
@pytest.mark.parametrize("keep", [1, 2, 3, 20, 39, 40])
def test_exact_counts(method: PruMerge | PruMergePlus, keep: int) -> None:
    given = tokens(torch.randn(40, 3), wide_attention=torch.rand(40), wide_keys=torch.randn(40, 3))
    found = method(given, keep)
    assert found.m == keep
    assert len(set(found.anchors.tolist())) == keep


@pytest.mark.parametrize("method", [PruMerge(), PruMergePlus()])
def test_it_needs_attention(method: PruMerge | PruMergePlus) -> None:
    with pytest.raises(StageNotAvailable, match="queries and keys"):
        method(tokens(torch.zeros(4, 2)), 2)
