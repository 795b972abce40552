"""PyramidDrop by hand."""

from __future__ import annotations

import pytest
import torch

from foveate.errors import BudgetError
from foveate.methods.pyramiddrop import PyramidDrop
from tests.methods.given import average, look, preset_steps, tokens

# 0: system, 1..4: picture, 5, 6: text. What the last token looks at in the layer about to run:
#            v0    v1    v2    v3
#  head A   0.02  0.40  0.10  0.15
#  head B   0.30  0.05  0.34  0.24
#  mean x2  0.32  0.45  0.44  0.39   -> v1, v2, v3, v0
#  largest  0.30  0.40  0.34  0.24   -> v1, v2, v0, v3
A = {5: (0, 0.9, 0.0, 0.0, 0.1), 6: (0.30, 0.02, 0.40, 0.10, 0.15, 0.03)}
B = {5: (0, 0.9, 0.0, 0.0, 0.1), 6: (0.02, 0.30, 0.05, 0.34, 0.24, 0.05)}
AHEAD = look(A, B, visual=(1, 2, 3, 4), text=(5, 6), question=(5,))
# The layer that has just run says the opposite, and is not asked.
BEFORE = look({6: (0, 0.9, 0.0, 0.0, 0.1)}, visual=(1, 2, 3, 4), text=(5, 6))


def kept(keep: int | None) -> list[int]:
    given = tokens(torch.zeros(4, 2), ahead=AHEAD, before=BEFORE)
    return PyramidDrop()(given, keep).anchors.tolist()


def test_by_hand() -> None:
    assert kept(1) == [1]
    assert kept(2) == [1, 2]
    assert kept(3) == [1, 2, 3]  # by the largest of the heads v0 would be third


def test_edge_budgets() -> None:
    assert kept(4) == kept(None) == [0, 1, 2, 3]
    assert PyramidDrop()(tokens(torch.zeros(4, 2), ahead=AHEAD), 4).is_identity


def test_the_softmax_runs_over_all_keys() -> None:
    # Head A gives the picture a tenth of its attention (0.09, 0, 0.01), head B all of it (0.2,
    # 0.3, 0.5): 0.29, 0.30, 0.51. Over the picture's keys alone v0 would come to 0.9 + 0.2.
    a, b = {4: (0.8, 0.09, 0.0, 0.01, 0.1)}, {4: (0.0, 0.2, 0.3, 0.5)}
    given = tokens(torch.zeros(3, 2), ahead=look(a, b, visual=(1, 2, 3), text=(4,)))
    assert PyramidDrop()(given, 1).anchors.tolist() == [2]
    assert PyramidDrop()(given, 2).anchors.tolist() == [1, 2]


def test_ties_go_to_the_lower_slot() -> None:
    seen = look({4: (0.2, 0.2, 0.2, 0.2, 0.2)}, visual=(1, 2, 3), text=(4,))
    assert PyramidDrop()(tokens(torch.zeros(3, 2), ahead=seen), 2).anchors.tolist() == [0, 1]


def test_the_released_schedule() -> None:
    """Four stages of eight layers, 576, 288, 144 and 72: 270 on average."""
    steps = PyramidDrop(schedule=(0.5, 0.25, 0.125)).steps(576, None, 32)
    assert preset_steps(PyramidDrop, "authors") == [(8, 288), (16, 144), (24, 72)]
    assert average(steps, 576, 32) == 270


def test_shares_are_of_the_picture_and_rounded_half_up() -> None:
    # 2880 of LLaVA-NeXT: of all of them, not of what is left. 100 / 8 = 12.5.
    assert preset_steps(PyramidDrop, "authors", n=2880) == [(8, 1440), (16, 720), (24, 360)]
    assert preset_steps(PyramidDrop, "authors", n=100) == [(8, 50), (16, 25), (24, 13)]


def test_an_average_scales_all_three_counts_alike() -> None:
    """8 * 576 + 8 * (4 + 2 + 1) s = 32 * 270 gives s = 72; 8 * 7 s = 32 * 192 - 4608 s = 27.4."""
    counts = [[step.keep for step in PyramidDrop().steps(576, keep, 32)] for keep in (270, 192)]
    assert counts[0] == [288, 144, 72]
    for count, exact in zip(counts[1], (109.71, 54.86, 27.43), strict=True):
        assert abs(count - exact) <= 1


def test_a_generous_average_is_cut_to_what_there_is() -> None:
    # 576 through stage two as well: 2 s <= 576 and 4 s > 576 while s = (32 * 480 - 9216) / 24.
    assert [step.keep for step in PyramidDrop().steps(576, 480, 32)] == [576, 512, 256]


def test_below_a_quarter_it_says_so() -> None:
    with pytest.raises(BudgetError, match="lowest average with a first drop at layer 8 is 145"):
        PyramidDrop().steps(576, 128, 32)
    early = PyramidDrop(at=(4, 12, 20)).steps(576, 128, 32)
    assert [step.layer for step in early] == [4, 12, 20]
    assert average(early, 576, 32) == pytest.approx(128, abs=0.5)


def test_layers_lie_at_the_same_depth() -> None:
    assert PyramidDrop().layers_in(40) == (10, 20, 30)
    assert PyramidDrop().layers_in(28) == (7, 14, 21)
    assert PyramidDrop(at=(2, 5)).layers_in(28) == (2, 5)


def test_a_schedule_has_a_count_for_each_layer() -> None:
    with pytest.raises(BudgetError, match=r"has 2 entries; PyramidDrop drops at layers \(8, 16"):
        PyramidDrop(schedule=(0.5, 0.25)).steps(576, None, 32)
