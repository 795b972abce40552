"""FitPrune by hand."""

from __future__ import annotations

import pytest
import torch

from foveate.compressor import Step
from foveate.errors import BudgetError
from foveate.methods.fitprune import FitPrune
from tests.methods.given import average, look, tokens

# 0: system, 1..3: picture, 4, 5: text. What two heads look at, and the larger of both:
#   from   head A: v0    v1    v2     head B: v0    v1    v2      larger: v0    v1     v2
#   v0            0.50                       0.00                        0.50
#   v1            0.20  0.30                 0.20  0.30                  0.20  0.30
#   v2            0.20  0.20  0.105          0.20  0.20  0.105           0.20  0.20  0.105
#   sum = 3 self                                                         0.90  0.50  0.105
#   4            0.045  0.25  0.50           0.00  0.25  0.50           0.045  0.25  0.50
#   5            0.055  0.05  0.30           0.00  0.05  0.10           0.055  0.05  0.30
#   sum = cross                                                          0.10  0.30  0.80
#   product                                                              0.09  0.15  0.084
# v1, v0, v2. Self alone: v0, v1, v2; cross alone or with sums instead of products: v2 or v0 first.
# The mean of the heads (0.65, 0.50, 0.105 and 0.05, 0.30, 0.70), token 4 alone, and the larger of
# the rows instead of their sum all put v2 before v0; token 5 alone puts v0 first.
_BOTH = {2: (0.5, 0.2, 0.3), 3: (0.495, 0.2, 0.2, 0.105)}
_A = {1: (0.5, 0.5), 4: (0.205, 0.045, 0.25, 0.5), 5: (0.595, 0.055, 0.05, 0.3)} | _BOTH
_B = {1: (1.0, 0.0), 4: (0.25, 0.0, 0.25, 0.5), 5: (0.85, 0.0, 0.05, 0.1)} | _BOTH
SEEN = look(_A, _B, visual=(1, 2, 3), text=(4, 5), question=(4,))


def kept(keep: int | None) -> list[int]:
    return FitPrune()(tokens(torch.zeros(3, 2), before=SEEN), keep).anchors.tolist()


def test_by_hand() -> None:
    assert kept(1) == [1]
    assert kept(2) == [0, 1]


def test_edge_budgets() -> None:
    assert kept(3) == kept(None) == [0, 1, 2]
    assert kept(0) == []


def test_ties_go_to_the_lower_slot() -> None:
    head = {2: (0.5, 0.5, 0.0), 3: (0.5, 0.0, 0.5), 1: (0.5, 0.5), 4: (0.25, 0.25, 0.25, 0.25)}
    head[2] = (0.5, 0.0, 0.5)
    head[3] = (0.5, 0.0, 0.0, 0.5)
    given = tokens(torch.zeros(3, 2), before=look(head, visual=(1, 2, 3), text=(4,)))
    assert FitPrune()(given, 2).anchors.tolist() == [0, 1]


PUBLISHED = {
    10: (541.2, 510),
    20: (492.5, 427),
    30: (423.5, 312),
    40: (362.5, 240),
    50: (301.8, 173),
    55: (274.4, 152),
    60: (245.0, 127),
    70: (187.9, 88),
    80: (130.6, 62),
    90: (72.8, 37),
}


@pytest.mark.parametrize("cut", PUBLISHED)
def test_presets(cut: int) -> None:
    """Tokens entering a layer, on average, and after the last: the algorithm card's numbers."""
    mean, final = PUBLISHED[cut]
    method = FitPrune(**FitPrune.presets[f"authors-{cut}"].fields)
    steps = method.steps(576, None, 32)
    assert average(steps, 576, 32) == pytest.approx(mean, abs=0.051)
    assert steps[-1].keep == final
    assert 576 - sum(method.quotas) == final  # the last layer has no quota


def test_a_quota_is_gone_before_the_next_layer() -> None:
    # The 60 % preset removes 14, 33, 89, 36 ... after layers 0, 1, 2, 3.
    steps = FitPrune(**FitPrune.presets["authors-60"].fields).steps(576, None, 32)
    assert steps[:4] == (Step(1, 562), Step(2, 529), Step(3, 440), Step(4, 404))
    # 129 are left at layer 24. Layers 26 and 28 remove one each, all others from 24 on none.
    assert [step for step in steps if step.layer > 24] == [Step(27, 128), Step(29, 127)]


def test_only_layers_with_a_quota_are_steps() -> None:
    assert FitPrune(quotas=(0, 3, 0, 2, 5)).steps(20, None, 5) == (Step(2, 17), Step(4, 15))


def test_quotas_below_one_are_shares_of_the_picture() -> None:
    assert FitPrune(quotas=(0.25, 0.5, 0.0, 0.9)).steps(20, None, 4) == (Step(1, 15), Step(2, 5))


def test_small_shares_add_up() -> None:
    """A quarter token a layer is one token every fourth layer, not none ever."""
    steps = FitPrune(quotas=(0.0125,) * 13).steps(20, None, 13)
    assert steps[-1].keep == 17
    assert [step.keep for step in steps] == [19, 18, 17]


def test_larger_numbers_count_tokens_whatever_their_type() -> None:
    assert FitPrune(quotas=(2.0, 1, 0)).steps(20, None, 3) == (Step(1, 18), Step(2, 17))


def test_a_quota_larger_than_what_is_left_takes_all_of_it() -> None:
    assert FitPrune(quotas=(15, 15, 15)).steps(20, None, 3) == (Step(1, 5), Step(2, 0))


def test_quotas_fit_one_depth() -> None:
    with pytest.raises(BudgetError) as caught:
        FitPrune(quotas=(1, 2, 3)).steps(20, None, 5)
    assert str(caught.value).splitlines() == [
        "There are 3 quotas; this model has 5 decoder layers.",
        "Fit quotas for it with foveate.fitting.quotas, or give keep=.",
    ]


def test_a_negative_quota_is_refused() -> None:
    with pytest.raises(BudgetError, match="quotas"):
        FitPrune(quotas=(1, -2, 3))


@pytest.mark.parametrize("cut", PUBLISHED)
def test_an_average_near_a_published_one_falls_as_it_does(cut: int) -> None:
    keep = round(PUBLISHED[cut][0])
    preset = FitPrune(**FitPrune.presets[f"authors-{cut}"].fields).steps(576, None, 32)
    solved = FitPrune().steps(576, keep, 32)
    wanted = {step.layer: step.keep for step in preset}
    found = {step.layer: step.keep for step in solved}
    now = then = 576
    for layer in range(32):
        now, then = found.get(layer, now), wanted.get(layer, then)
        assert abs(now - then) <= 2, layer


def test_between_two_published_averages_the_fall_lies_between_them() -> None:
    """Half way from 187.9 (70 %) to 130.6 (80 %): before layer 3, half way from 331 to 203."""
    steps = {step.layer: step.keep for step in FitPrune().steps(576, 159, 32)}
    assert steps[3] == pytest.approx((331 + 203) / 2, abs=2)
    assert steps[1] == pytest.approx((528 + 448) / 2, abs=2)


def test_the_fall_has_the_same_depth_in_another_model() -> None:
    # 16 layers: each runs as long as two of 32, so layer 2 starts where layer 4 did.
    deep = {step.layer: step.keep for step in FitPrune().steps(576, 188, 32)}
    flat = {step.layer: step.keep for step in FitPrune().steps(576, 188, 16)}
    for layer in (2, 4, 8):
        assert flat[layer] == pytest.approx(deep[2 * layer], rel=0.1)


def test_keep_all_changes_nothing() -> None:
    assert FitPrune().steps(576, 576, 32) == ()


def test_quotas_state_the_budget() -> None:
    assert FitPrune(quotas=(1, 2)).states_budget
    assert not FitPrune().states_budget
    assert FitPrune().layers_in(4) == (1, 2, 3)
