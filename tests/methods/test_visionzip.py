"""VisionZip by hand, and its authors' counts and order."""

from __future__ import annotations

import pytest
import torch

from foveate.compressor import Grid, VisualTokens
from foveate.errors import BudgetError, StageNotAvailable
from foveate.methods.visionzip import VisionZip
from tests.methods.given import rows, tokens

# Slots 0 and 4 are attended to most; the others follow in falling order.
ATTENTION = rows(0.9, 0.3, 0.2, 0.1, 0.8, 0.1, 0.1, 0.1)
KEYS = rows([1, 1], [1, 0], [1, 0], [0, 1], [1, 1], [0, 1], [1, 1], [0, 1])


def eight(**fields: object) -> VisualTokens:
    return tokens(torch.zeros(8, 2), attention=ATTENTION, keys=KEYS, **fields)


def test_by_hand() -> None:
    # Two dominant tokens: 0 and 4. Of the six others 1 2 3 5 6 7 every third is a target: 1 and 5.
    # Like 1 (key right): 2; like 5 (key up): 3 and 7; 6 is as much like both, so it joins 1.
    # A target's row is itself plus the mean of what joined it.
    found = VisionZip(dominant=2, contextual=2)(eight(), None)
    assert found.anchors.tolist() == [0, 4, 1, 5]
    expected = torch.zeros(4, 8)
    expected[0, 0] = expected[1, 4] = expected[2, 1] = expected[3, 5] = 1
    expected[2, [2, 6]] = 0.5
    expected[3, [3, 7]] = 0.5
    assert found.to_matrix().equal(expected)


def test_a_budget_is_split_ten_to_fifty_four() -> None:
    # 6: round(60 / 64) = 1 contextual, 5 dominant (0 4 1 2 and, of a tie, 3); 5 is the target,
    # 6 and 7 join it.
    found = VisionZip()(eight(), 6)
    assert found.anchors.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.to_matrix()[5].tolist() == [0, 0, 0, 0, 0, 1, 0.5, 0.5]
    # 3: round(30 / 64) = 0: the most attended alone.
    assert VisionZip()(eight(), 3).anchors.tolist() == [0, 1, 4]
    assert VisionZip()(eight(), 3).to_matrix().sum() == 3


@pytest.mark.parametrize("keep", [1, 7, 8])
def test_edge_budgets(keep: int) -> None:
    found = VisionZip()(eight(), keep)
    assert found.m == keep
    # 1: the most attended. 7: one target, 7 joins 6 or stays; 8: nothing is left to join.
    assert found.anchors.tolist() == {1: [0], 7: [0, 1, 2, 3, 4, 5, 6], 8: list(range(8))}[keep]


def test_the_cls_token_is_a_row_of_its_own() -> None:
    # D counts the CLS, so one patch is dominant; it comes first, and lives on a free slot.
    given = eight(cls=rows([7, 7]))
    found = VisionZip(dominant=2, contextual=2, cls=True)(given, None)
    # Rest 1 2 3 4 5 6 7, every third: 1 and 4.
    assert found.m == 4
    assert found.virtual == 1
    assert found.anchors.tolist()[1:] == [0, 1, 4]
    assert found.anchors[0] == 2
    assert found.to_matrix()[0].tolist() == [0] * 8 + [1]


def test_tiles_follow_each_other_as_released() -> None:
    # A base view of five and two tiles of three in one mosaic: one dominant and one contextual
    # token of each. Base: CLS, the dominant 1, the target 0, which 2 3 4 join. Then the tiles'
    # dominant tokens 6 and 8 in raster order, their CLS, and their targets 5 (7) and 9 (10).
    given = tokens(
        torch.zeros(11, 1),
        Grid(1, 1, 5),
        Grid(1, 1, 6),
        attention=rows(1, 4, 3, 2, 1, 1, 3, 2, 9, 1, 1),
        keys=torch.ones(11, 1),
        cls=torch.zeros(3, 1),
        tiles=torch.tensor([0] * 5 + [1] * 3 + [2] * 3),
    )
    found = VisionZip(dominant=2, contextual=1, cls=True)(given, None)
    p = found.to_matrix()
    assert [int((row == 1).nonzero()[0]) for row in p] == [11, 1, 0, 6, 8, 12, 13, 5, 9]
    torch.testing.assert_close(p[2, :5], rows(1, 0, 1 / 3, 1 / 3, 1 / 3))
    assert found.anchors.tolist()[1:5] == [1, 0, 6, 8]
    assert len(set(found.anchors.tolist())) == 9


def test_the_mosaics_dominant_tokens_stand_in_raster_order() -> None:
    # A base view of two, and two tiles of 2 x 2 side by side: slots 2 3 | 4 5 above 6 7 | 8 9.
    # The left tile's dominant token is 7, the right one's 4, which comes first in the raster.
    given = tokens(
        torch.zeros(10, 1),
        Grid(1, 1, 2),
        Grid(1, 2, 4),
        attention=rows(2, 1, 1, 1, 9, 1, 1, 9, 1, 1),
        keys=torch.ones(10, 1),
        cls=torch.zeros(3, 1),
        tiles=torch.tensor([0, 0, 1, 1, 2, 2, 1, 1, 2, 2]),
    )
    p = VisionZip(dominant=2, contextual=1, cls=True)(given, None).to_matrix()
    # CLS, dominant and target of the base view; dominant; CLS; targets, 3 6 with 2 and 8 9 with 5.
    assert [int((row == 1).nonzero()[0]) for row in p] == [10, 0, 1, 4, 7, 11, 12, 2, 5]
    assert p[7].nonzero().flatten().tolist() == [2, 3, 6]
    assert p[8].nonzero().flatten().tolist() == [5, 8, 9]


def test_without_a_budget_dominant_tokens_come_first_and_in_raster_order() -> None:
    # 3 is attended to more than 1; of the others 0 and 2 the first is the target.
    given = tokens(torch.zeros(4, 1), attention=rows(1, 2, 1, 3), keys=torch.ones(4, 1))
    assert VisionZip(dominant=2, contextual=1)(given, None).anchors.tolist() == [1, 3, 0]


def test_with_a_budget_rows_stand_in_raster_order() -> None:
    # 7 of 16: one target, the first of the ten others, and the six last ones.
    given = tokens(torch.zeros(16, 1), attention=torch.arange(16.0), keys=torch.ones(16, 1))
    assert VisionZip()(given, 7).anchors.tolist() == [0, 10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize(("preset", "count"), [("192", 192), ("128", 128), ("64", 64)])
def test_the_authors_counts_on_one_tile(preset: str, count: int) -> None:
    fields = VisionZip.presets[f"authors-{preset}"].fields
    given = tokens(
        torch.zeros(576, 2),
        Grid(1, 24, 24),
        attention=torch.rand(576),
        keys=torch.randn(576, 4),
        cls=torch.zeros(1, 2),
    )
    assert VisionZip(**fields)(given, None).m == count


@pytest.mark.parametrize(("preset", "count"), [("640", 640), ("320", 320), ("160", 160)])
def test_the_authors_counts_on_five_tiles(preset: str, count: int) -> None:
    fields = VisionZip.presets[f"authors-{preset}"].fields
    given = tokens(
        torch.zeros(2880, 2),
        Grid(1, 24, 24),
        Grid(1, 48, 48),
        attention=torch.rand(2880),
        keys=torch.randn(2880, 4),
        cls=torch.zeros(5, 2),
        tiles=torch.arange(5).repeat_interleave(576),
    )
    found = VisionZip(**fields)(given, None)
    assert found.m == count
    assert found.virtual == 5


def test_what_cannot_be() -> None:
    with pytest.raises(BudgetError, match="8 tokens of a tile"):
        VisionZip(dominant=7, contextual=2)(eight(), None)
    with pytest.raises(StageNotAvailable, match="CLS"):
        VisionZip(dominant=2, contextual=2, cls=True)(eight(), None)
    with pytest.raises(StageNotAvailable, match="attention"):
        VisionZip()(tokens(torch.zeros(8, 2)), 3)
