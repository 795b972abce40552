"""MustDrop by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from foveate.compressor import Step, VisualTokens
from foveate.errors import BudgetError, StageNotAvailable
from foveate.methods.mustdrop import MustDrop
from tests.methods.given import average, look, tokens

# 0: system, 1..6: picture, 7, 8: text. Mean of two heads, which lie 0.06 apart at v3 in row 8:
#          v0    v1    v2    v3    v4    v5
#  row 7  0.20  0.05  0.07  0.02  0.01  0.00
#  row 8  0.20  0.05  0.07  0.10  0.01  0.13
#  g      0.40  0.10  0.14  0.12  0.02  0.13   sum 0.91
#  m      0.20  0.05  0.07  0.10  0.01  0.13
_ROW7 = {7: (0.65, 0.20, 0.05, 0.07, 0.02, 0.01, 0.00)}
_A = {8: (0.38, 0.20, 0.05, 0.07, 0.16, 0.01, 0.13)} | _ROW7
_B = {8: (0.50, 0.20, 0.05, 0.07, 0.04, 0.01, 0.13)} | _ROW7
SEEN = look(_A, _B, visual=range(1, 7), text=(7, 8), question=(7,))
TOWER = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.9, 0.1])  # v4 is the key set


def six(**fields: Any) -> VisualTokens:
    return tokens(torch.zeros(6, 2), **({"before": SEEN, "attention": TOWER, "total": 6} | fields))


def kept(keep: int | None, given: VisualTokens | None = None, **fields: Any) -> list[int]:
    return MustDrop(**fields)(given or six(), keep).anchors.tolist()


def test_thresholds_by_hand() -> None:
    # 0.15 of the sum is 0.1365: v1, v3, v5 and v4 lie below. Single ones below 0.115: v1 to v4.
    # Both: v1 and v3; v4 is a key. v2 stays for its sum (0.15 itself is above it), v5 for its
    # row 8. With the larger of the heads (0.16), or both rows added up (0.12), v3 would stay too.
    assert kept(None, together=0.15, single=0.115) == [0, 2, 4, 5]


def test_what_meets_a_threshold_stays() -> None:
    # A half each: v0 is the key set, and v1 meets half of the sum, or a single one of a half.
    seen = look({3: (0.0, 0.5, 0.5)}, visual=(1, 2), text=(3,))
    given = tokens(torch.zeros(2, 1), before=seen, attention=torch.tensor([1.0, 0.0]), total=2)
    assert kept(None, given, together=0.5, single=0.6) == [0, 1]
    assert kept(None, given, together=0.6, single=0.5) == [0, 1]
    assert kept(None, given, together=0.51, single=0.51) == [0]


def test_a_count_takes_the_key_set_first_and_then_the_largest_sums() -> None:
    # g: v0, v2, v5, v3, v1; m would put v5 before v2.
    assert [kept(keep) for keep in (1, 2, 3, 4, 5)] == [
        [4],
        [0, 4],
        [0, 2, 4],
        [0, 2, 4, 5],
        [0, 2, 3, 4, 5],
    ]


def test_edge_budgets() -> None:
    assert MustDrop()(six(), 6).is_identity
    assert MustDrop()(six(), None).is_identity  # neither thresholds nor a count


def test_a_count_smaller_than_the_key_set_keeps_its_largest_sums() -> None:
    tower = torch.tensor([0.1, 0.9, 0.9, 0.9, 0.9, 0.1])  # v1 to v4: g 0.10, 0.14, 0.12, 0.02
    given = six(attention=tower)
    assert kept(1, given, key_share=0.6) == [2]
    assert kept(2, given, key_share=0.6) == [2, 3]
    assert kept(5, given, key_share=0.6) == [0, 1, 2, 3, 4]


def test_small_differences_inside_the_key_set_count() -> None:
    """Tokens that get a ten-millionth of the attention: v1 gets twice as much as v0."""
    seen = look({3: (1.0, 1e-8, 2e-8)}, visual=(1, 2), text=(3,))
    given = tokens(torch.zeros(2, 1), before=seen, attention=torch.ones(2), total=2)
    assert kept(1, given, key_share=1.0) == [1]


def test_the_key_set_is_a_share_of_the_whole_picture_rounded_up() -> None:
    # 6 tokens are left of 100: ceil(0.02 * 100) = 2 of them are keys, v4 and v1.
    tower = torch.tensor([0.1, 0.5, 0.1, 0.1, 0.9, 0.1])
    assert kept(2, six(attention=tower, total=100), key_share=0.02) == [1, 4]
    assert kept(2, six(attention=tower), key_share=0.02) == [0, 4]  # ceil(0.12) = 1
    # 0.08 by default: ceil(0.08 * 13) = 2, where rounding would give 1
    assert kept(2, six(attention=tower, total=13)) == [1, 4]
    assert kept(3, six(attention=tower, total=13)) == [0, 1, 4]


def test_ties_go_to_the_lower_slot() -> None:
    flat = look(visual=(1, 2, 3, 4), text=(5, 6))
    given = tokens(torch.zeros(4, 1), before=flat, attention=torch.ones(4), total=4)
    assert kept(2, given) == [0, 1]


def test_the_tower_must_have_attention() -> None:
    with pytest.raises(StageNotAvailable, match="MustDrop reads the vision tower's attention"):
        kept(3, six(attention=None))


@pytest.mark.parametrize(
    ("name", "together", "single"),
    [
        ("authors-192", 0.001, 0.001),
        ("authors-128", 0.0012, 0.001),
        ("authors-64", 0.011, 0.01),
        ("authors-vizwiz-64", 0.005, 0.001),
    ],
)
def test_presets_are_the_published_thresholds(name: str, together: float, single: float) -> None:
    method = MustDrop(**MustDrop.presets[name].fields)
    assert (method.together, method.single, method.key_share) == (together, single, 0.08)
    assert method.states_budget
    assert method.steps(576, None, 32) == tuple(Step(layer, None) for layer in (3, 7, 11, 15))


def test_an_average_drops_the_same_share_at_every_step() -> None:
    counts = [576, *(step.keep for step in MustDrop().steps(576, 192, 32))]
    shares = [after / before for before, after in itertools.pairwise(counts)]
    assert max(shares) - min(shares) < 0.02
    assert average(MustDrop().steps(576, 192, 32), 576, 32) == pytest.approx(192, abs=0.5)


def test_a_schedule_states_the_budget() -> None:
    method = MustDrop(schedule=(300, 200, 100, 50))
    assert method.states_budget
    assert not MustDrop().states_budget
    assert [step.keep for step in method.steps(576, None, 32)] == [300, 200, 100, 50]


@pytest.mark.parametrize(
    "fields",
    [
        {"together": 0.001},
        {"single": 0.001},
        {"together": 0.1, "single": 0.1, "schedule": (4, 3, 2, 1)},
    ],
)
def test_thresholds_come_together_and_alone(fields: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="MustDrop takes both thresholds"):
        MustDrop(**fields)


def test_layers_lie_at_the_same_depth() -> None:
    assert MustDrop().layers_in(32) == (3, 7, 11, 15)
    assert MustDrop().layers_in(64) == (6, 14, 22, 30)
    assert MustDrop(at=(2, 4)).layers_in(64) == (2, 4)
