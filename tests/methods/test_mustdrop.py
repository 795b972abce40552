"""MustDrop by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import foveate
from foveate.compressor import Stage, Step, VisualTokens, Windows
from foveate.errors import BudgetError, StageNotAvailable
from foveate.methods.mustdrop import Merge, MustDrop
from tests.families.models import FAMILIES
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
    return tokens(
        torch.zeros(6, 2), **({"before": SEEN, "attention": TOWER, "entering": 6} | fields)
    )


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
    given = tokens(torch.zeros(2, 1), before=seen, attention=torch.tensor([1.0, 0.0]), entering=2)
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
    given = tokens(torch.zeros(2, 1), before=seen, attention=torch.ones(2), entering=2)
    assert kept(1, given, key_share=1.0) == [1]


def test_the_key_set_is_a_share_of_the_whole_picture_rounded_up() -> None:
    # 6 tokens are left of 100: ceil(0.02 * 100) = 2 of them are keys, v4 and v1.
    tower = torch.tensor([0.1, 0.5, 0.1, 0.1, 0.9, 0.1])
    assert kept(2, six(attention=tower, entering=100), key_share=0.02) == [1, 4]
    assert kept(2, six(attention=tower), key_share=0.02) == [0, 4]  # ceil(0.12) = 1
    # 0.08 by default: ceil(0.08 * 13) = 2, where rounding would give 1
    assert kept(2, six(attention=tower, entering=13)) == [1, 4]
    assert kept(3, six(attention=tower, entering=13)) == [0, 1, 4]


def test_ties_go_to_the_lower_slot() -> None:
    flat = look(visual=(1, 2, 3, 4), text=(5, 6))
    given = tokens(torch.zeros(4, 1), before=flat, attention=torch.ones(4), entering=4)
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
    assert (method.alike, method.settle) == (0.8, True)  # all three stages
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


# ---------------------------------------------------------------- in the tower, and in the caches


def test_stages_are_added_by_their_fields() -> None:
    assert MustDrop().parts == (MustDrop(),)
    merge, drop = MustDrop(alike=0.7, key_share=0.1, settle=True).parts
    assert merge == Merge(0.7)
    assert drop == MustDrop(key_share=0.1, settle=True)
    assert (merge.stage, drop.stage) == (Stage.ENCODER, Stage.DECODER)
    assert MustDrop(alike=0.8).prompt_aware and not merge.prompt_aware


def test_windows_leave_what_the_average_needs() -> None:
    # 576 slots in windows of nine: each takes eight away.
    assert MustDrop(alike=0.8).budgets(576, 192, 32) == (192, 192)
    assert Merge(0.8).tower_plan(24, 24, 192, 22).windows == Windows(3, 0.8, 48)
    assert Merge(0.8).tower_plan(24, 24, 193, 22).windows == Windows(3, 0.8, 47)
    assert Merge(0.8).tower_plan(24, 24, 576, 22).windows == Windows(3, 0.8, 0)
    # Thresholds or a schedule: as many as are alike.
    stated = MustDrop(together=0.1, single=0.1, alike=0.8)
    assert stated.budgets(576, None, 32) == (1, None)
    assert MustDrop().budgets(576, 192, 32) == (192,)
    with pytest.raises(StageNotAvailable, match="first block, which the projector reads"):
        Merge().tower_plan(24, 24, 192, 0)


def test_a_merged_window_lives_on_its_middle_slot() -> None:
    cells = torch.arange(25).reshape(5, 5)
    cells[:3, :3] = 0
    given = tokens(torch.zeros(25, 1), cells=cells.flatten())
    found = Merge()(given, 1)
    assert (found.m, found.anchors[0]) == (17, 3)  # the row of slot 3 comes before that of slot 6
    assert 6 in found.anchors and found.is_selection
    assert found.owner().reshape(5, 5)[:3, :3].unique().tolist() == [2]
    assert Merge()(given, 20).m == 20  # what is left may not be less than asked for
    with pytest.raises(StageNotAvailable, match="inside the vision tower"):
        Merge()(tokens(torch.zeros(25, 1)), 1)


@pytest.mark.parametrize(("at", "first"), [(None, 2), ((1, 4), 0), ((5,), 4)])
def test_caches_are_cut_from_the_layer_before_the_first_drop_on(
    at: tuple[int, ...] | None, first: int
) -> None:
    assert MustDrop(at=at, settle=True).settles_from(32) == first
    assert MustDrop(at=at).settles_from(32) is None


@torch.no_grad()
def test_the_whole_method_on_a_model() -> None:
    """Entering tokens, key set, steps and caches of the three stages, on two pictures."""
    family = FAMILIES["llava"]
    model, inputs = family.build("sdpa", torch.float32), family.inputs(2, seed=3)
    fields = {"together": 2.0, "single": 2.0, "key_share": 0.3, "alike": -1.0, "settle": True}
    with foveate.attach(model, "mustdrop", at=(2, 3), **fields) as run:
        out = model(**inputs, use_cache=True)
        assert [item.entering for item in run.items] == [17, 17]  # 25 slots, a window of nine
        assert [item.at(0).m for item in run.items] == [17, 17]
        assert [item.mapping.m for item in run.items] == [6, 6]  # ceil(0.3 * 17) keys alone
    lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    text = inputs["input_ids"].shape[1] - 25
    assert lengths == [text + 17, text + 6, text + 6, text + 6]


@torch.no_grad()
def test_an_average_with_windows_is_met_where_they_leave_enough() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build("sdpa", torch.float32), family.inputs(2, seed=3)
    for keep, entering in ((12, 17), (17, 17), (20, 25)):
        with foveate.attach(model, "mustdrop", keep=keep, alike=-1.0) as run:
            model(**inputs)
        for item in run.items:
            assert item.entering == entering
            assert item.average(4) == pytest.approx(keep, abs=0.5)


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "internvl"])
@torch.no_grad()
def test_a_tower_without_windows_is_refused(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.build("sdpa", torch.float32), family.inputs(1)
    refused = pytest.raises(StageNotAvailable, match="cannot merge tokens between its blocks")
    with refused, foveate.attach(model, "mustdrop", keep=0.7, alike=0.8):
        model(**inputs)
