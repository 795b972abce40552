"""DART by hand."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.compressor import VisualTokens
from foveate.errors import BudgetError
from foveate.methods.dart import DART
from tests.methods.given import average, look, preset_steps, rows, tokens


def at_degrees(*angles: float, length: tuple[float, ...] | None = None) -> torch.Tensor:
    """Directions in the plane."""
    turn = torch.tensor(angles) * math.pi / 180
    lengths = torch.tensor(length or (1.0,) * len(angles))
    return torch.stack([turn.cos(), turn.sin()], 1) * lengths[:, None]


# 0: system, 1..6: picture, 7..9: text. Two key heads of two dimensions, side by side:
#          |k|_1            |k|_2
#  v0      1+1 + 1+1 = 4     2      the longest by the sum over both heads
#  v3      3+0 + 0+0 = 3     3      the longest in head 0, and by its Euclidean length
#  v5      0+0 + 0+3 = 3     3      the longest in head 1
#  text 8  1+1 + 1+1 = 4            text 7 and 9: 3; system: 20, but no text after the picture
_LONG, _HEAD0, _HEAD1, _SHORT = [1, -1, -1, 1], [3, 0, 0, 0], [0, 0, 0, -3], [0, 1, 0, 1]
_KEYS = rows([20, 0, 0, 0], _LONG, _SHORT, _SHORT, _HEAD0, _SHORT, _HEAD1, _HEAD0, _LONG, _HEAD1)
KEYS = _KEYS.reshape(10, 2, 2).transpose(0, 1).contiguous()  # (heads, tokens, dimensions)
SEEN = look(visual=range(1, 7), text=(7, 8, 9), question=(7,), keys=KEYS)
# Angles of the normed states. v3's is long, which must not matter.
VISUAL = at_degrees(0, 10, 120, 100, 40, 170, length=(1, 1, 1, 9, 1, 0.5))
TEXT = at_degrees(0, 180, 0)


def given(visual: torch.Tensor = VISUAL, text: torch.Tensor = TEXT) -> VisualTokens:
    wrong = torch.arange(len(visual), dtype=torch.float32)[:, None].expand(-1, 2)
    return tokens(wrong.clone(), before=SEEN, normed=visual, text_normed=text)


def kept(keep: int, visual_pivots: int = 1, text_pivots: int = 1) -> list[int]:
    method = DART(visual_pivots=visual_pivots, text_pivots=text_pivots)
    return method(given(), keep).anchors.tolist()


def test_by_hand() -> None:
    # Pivots: v0 (0 degrees) and text 8 (180). Three wanted beside v0: two by v0, one by text 8.
    # v0 takes its least alike, v5 (170) and v2 (120); by dot products v3 (100 degrees, length 9)
    # would beat both. Text 8 takes v1 (10) of what is left.
    assert kept(4) == [0, 1, 2, 5]
    # A fourth: text 8 takes v4 (40) as well.
    assert kept(5) == [0, 1, 2, 4, 5]


def test_visual_pivots_choose_first() -> None:
    # One token beside the pivot: v0 takes v5 (170). Text 8 would have taken v1.
    assert kept(2) == [0, 5]


def test_each_pivot_chooses_from_what_is_left() -> None:
    # Two visual pivots, v0 and v3 (longest but one; v5 ties and is higher). v0 takes v5; v3, at
    # 100 degrees, would find v1 (90 away) the least alike, as does text 8 once v1 is gone: v4.
    assert kept(5, visual_pivots=2) == [0, 1, 3, 4, 5]


def test_pivots_take_turns_by_the_length_of_their_keys() -> None:
    # v1 (longer) stands after v0. One token beside them is v1's choice: v2, 170 away from it;
    # v0 would take v3.
    keys = rows([0, 0], [2, 0], [3, 0], [1, 0], [1, 0], [9, 9])[None]
    seen = look(visual=(1, 2, 3, 4), text=(5,), keys=keys)
    visual, text = at_degrees(0, 100, 270, 175), at_degrees(0)
    made = tokens(torch.zeros(4, 2), before=seen, normed=visual, text_normed=text)
    assert DART(visual_pivots=2, text_pivots=1)(made, 3).anchors.tolist() == [0, 1, 2]


def test_least_alike_is_opposite_not_at_right_angles() -> None:
    # From v0 (0 degrees): v1 at 90 has cosine 0, v2 at 180 has -1.
    keys = torch.ones(1, 5, 2)
    keys[:, 1] = 5
    seen = look(visual=(1, 2, 3), text=(4,), keys=keys)
    made = tokens(
        torch.zeros(3, 2), before=seen, normed=at_degrees(0, 90, 180), text_normed=at_degrees(0)
    )
    assert DART(visual_pivots=1)(made, 2).anchors.tolist() == [0, 2]


def test_edge_budgets() -> None:
    assert kept(1) == [0]
    assert DART()(given(), 1).anchors.tolist() == [0]  # fewer than the pivots: the longest keys
    assert DART()(given(), 3).anchors.tolist() == [0, 3, 5]
    assert DART()(given(), 6).is_identity
    assert DART()(given(), None).is_identity


def test_text_pivots_can_be_fewer_than_asked_for() -> None:
    # Three text tokens, four wanted: 1 visual + 3 text pivots share 4, in turn one each:
    # v0 takes v5, text 8 (180) v1, text 7 (0) v2, text 9 (0) v3.
    assert kept(5, text_pivots=4) == [0, 1, 2, 3, 5]


def test_ties_go_to_the_lower_slot() -> None:
    seen = look(visual=(1, 2, 3, 4), text=(5,), keys=torch.ones(1, 6, 2))
    same = torch.ones(4, 2)
    made = tokens(same, before=seen, normed=same, text_normed=same[:1])
    assert DART(visual_pivots=1)(made, 3).anchors.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "n", "count", "ran"),
    [
        ("authors-192", 576, 196, 219.75),
        ("authors-128", 576, 132, 159.75),
        ("authors-64", 576, 68, 99.75),
        ("authors-next-320", 2880, 324, None),
    ],
)
def test_presets(name: str, n: int, count: int, ran: float | None) -> None:
    """4 + 8 floor(nominal / 8) tokens from layer 2 on, averages of the algorithm card."""
    assert preset_steps(DART, name, n) == [(2, count)]
    nominal = int(name.rsplit("-", 1)[1])
    assert count == 4 + 8 * (nominal // 8)
    if ran is not None:
        steps = DART(**DART.presets[name].fields).steps(n, None, 32)
        assert average(steps, n, 32) == ran


def test_by_default_four_and_four_at_layer_two() -> None:
    assert (DART().visual_pivots, DART().text_pivots) == (4, 4)
    assert DART().layers_in(32) == (2,)
    assert DART(layer=3).layers_in(32) == (3,)


def test_visual_or_text_pivots_alone() -> None:
    # v5 (170 degrees) is the least like v0; by text 8 (180) alone v0 and v1 are.
    assert kept(2, text_pivots=0) == [0, 5]
    assert kept(2, visual_pivots=0) == [0, 1]


@pytest.mark.parametrize(
    "fields",
    [
        {"layer": 0},
        {"visual_pivots": -1},
        {"text_pivots": -1},
        {"visual_pivots": 0, "text_pivots": 0},
    ],
)
def test_other_fields_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(BudgetError, match="DART needs layer >= 1 and at least one pivot"):
        DART(**fields)
