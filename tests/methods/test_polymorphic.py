"""Polymorphic by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import foveate
from foveate.compressor import VisualTokens
from foveate.errors import BudgetError, StageNotAvailable
from foveate.evaluation.settings import Setting
from foveate.mapping import Mapping
from foveate.methods.polymorphic import Merge, Polymorphic, Prune, merged_of
from tests.methods.given import average, rows, tokens

# ---------------------------------------------------------------- stage 1

# 16 tokens; of 13, 13 / 6.4 = 2 are clusters of the 5 tokens of least attention.
#   slot     2    5    7   11   14
#   value    0    1    2   10   10
# A density of all five (each itself among them) has mean squared distances 41, 32.8, 26.6, 49, 49.
# 7 is densest, and its delta is the greatest distance, 10; 5 and 2 lie 1 from a denser token, 11
# lies 8 from it. Scores 10 e^-26.6, 1 e^-32.8, 1 e^-41, 8 e^-49: 7 and 5 are centres, 11 and 14
# belong to 7.
# A density of two: 0.5, 0.5, 0.5, 0, 0. 11 is densest (of 11 and 14 the lower), 10 away at most.
# 2 lies 10 from a denser token, 5 lies 1 from 2 (which ties and is lower): 11 and 2 are centres.
SPARSE = {2: 0.0, 5: 1.0, 7: 2.0, 11: 10.0, 14: 10.0}
ENCODER = torch.tensor([[SPARSE.get(j, 50.0 + 3 * j)] * 3 for j in range(16)])
TOWER = torch.tensor([0.1 if j in SPARSE else 0.5 + j / 100 for j in range(16)])
DENSE = [j for j in range(16) if j not in SPARSE]


def sixteen(**fields: Any) -> VisualTokens:
    wrong = torch.arange(16.0)[:, None].expand(-1, 2).clone()  # not what clusters are made of
    return tokens(wrong, **({"encoder": ENCODER, "attention": TOWER} | fields))


@pytest.mark.parametrize(
    ("neighbours", "clusters"),
    [(5, {7: (7, 11, 14), 5: (2, 5)}), (2, {11: (11, 14), 2: (2, 5, 7)})],
)
def test_merging_by_hand(neighbours: int, clusters: dict[int, tuple[int, ...]]) -> None:
    found = Merge(neighbours)(sixteen(), 13)
    assert sorted(found.anchors.tolist()) == sorted([*DENSE, *clusters])
    matrix = found.to_matrix()
    for row, anchor in enumerate(found.anchors.tolist()):
        members = clusters.get(anchor, (anchor,))
        wanted = torch.zeros(16)
        wanted[list(members)] = 1 / len(members)
        torch.testing.assert_close(matrix[row], wanted)


def test_by_default_five_neighbours() -> None:
    assert Merge().neighbours == Prune().neighbours == Polymorphic().neighbours == 5
    assert {part.neighbours for part in Polymorphic(neighbours=7).parts} == {7}


def test_the_least_attended_are_merged() -> None:
    # 14 of 16: round(14 / 6.4) = 2 clusters, and 12 stay: the 11 of most attention and, as the
    # five others tie, the lowest of those, 2.
    found = Merge()(sixteen(), 14)
    sizes = dict(zip(found.anchors.tolist(), found.sizes().tolist(), strict=True))
    assert all(sizes[slot] == 1 for slot in (2, *DENSE))
    assert sum(sizes.values()) == 16  # nothing is lost


def test_edge_budgets() -> None:
    assert Merge()(sixteen(), 16).is_identity
    assert Merge()(sixteen(), None).is_identity
    one = Merge()(sixteen(), 1)
    torch.testing.assert_close(one.to_matrix(), torch.full((1, 16), 1 / 16))


@pytest.mark.parametrize("missing", ["encoder", "attention"])
def test_what_the_tower_must_show(missing: str) -> None:
    with pytest.raises(StageNotAvailable, match="Polymorphic reads the vision tower's"):
        Merge()(sixteen(**{missing: None}), 4)


@pytest.mark.parametrize(
    ("m", "merged"), [(1, 1), (2, 1), (9, 1), (10, 2), (64, 10), (128, 20), (256, 40), (384, 60)]
)
def test_retained_to_merged_is_about_5_4_to_1(m: int, merged: int) -> None:
    assert merged_of(m) == merged
    if m >= 64:
        assert (m - merged) / merged == pytest.approx(5.4, abs=0.05)


# ---------------------------------------------------------------- stage 2

# The question's T1, T2, T3 and what five visual tokens have with them, divided by sqrt(4):
#   V T^T / 2   T1     T2    T3      softmax over the text     M1      M2      M3
#   v0           0     0.5   0                                0.274   0.452   0.274
#   v1           4     0     0                                0.965   0.018   0.018
#   v2           0     1.5   0                                0.154   0.691   0.154
#   v3           0     0.5   0.5                              0.233   0.384   0.384
#   v4           5     0     0                                0.987   0.007   0.007
#   mean (above 1/3: a rater)                                 0.522   0.310   0.167
# T1 alone rates: v4, v1, v0, v3, v2. Unscaled, T2 would rate as well (0.381), and v2 stand before
# v0. The template's token, larger than all of them, is no part of this.
QUESTION = [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
TEXT = rows([9, 9, 9, 9], *QUESTION, [9, 9, 9, 9])
ASKED = torch.tensor([False, True, True, True, False])
VISUAL = rows([0, 1, 0, 0], [4, 0, 0, 0], [0, 3, 0, 0], [0, 1, 1, 0], [5, 0, 0, 0])
# They live on slots 1, 3, 4, 6, 7 of eight; what is gone would have made T2 a rater.
SO_FAR = Mapping.select(torch.tensor([1, 3, 4, 6, 7]), 8)
START = rows(*[[0, 9, 0, 0]] * 8)
START[SO_FAR.anchors] = VISUAL


def five(**fields: Any) -> VisualTokens:
    given = {"start": START, "text": TEXT, "asked": ASKED, "so_far": SO_FAR, "text_states": -TEXT}
    return tokens(rows([0], [0], [3], [1], [0]), **(given | fields))


def test_pruning_by_hand() -> None:
    # Of 4, round(4 / 6.4) = 1 is the mean of the two others, 2 and 3, of states 3 and 1. Both are
    # as dense, so the lower one is its centre.
    found = Prune()(five(), 4).in_raster_order()
    assert found.anchors.tolist() == [0, 1, 2, 4]
    matrix = torch.zeros(4, 5)
    matrix[[0, 1, 3], [0, 1, 4]] = 1
    matrix[2, 2:4] = 0.5
    torch.testing.assert_close(found.to_matrix(), matrix)
    # Of 3, the two best stay and v0, v2, v3 (states 0, 3, 1) are one: v3 is densest.
    assert sorted(Prune()(five(), 3).anchors.tolist()) == [1, 3, 4]
    # Of 2, v4 stays and all others are one (states 0, 0, 3, 1).
    found = Prune()(five(), 2)
    assert found.anchors[0] == 4
    assert found.sizes().tolist() == [1, 4]


def test_raters_are_averaged() -> None:
    # M, and the raters T1 and T2 (0.43, 0.40 and 0.16 on average):
    #   v0  0.62  0.02  0.36   -> 0.320, best by T1 alone
    #   v1  0.48  0.47  0.05   -> 0.475
    #   v2  0.20  0.72  0.08   -> 0.460, best by T2 alone and by the larger of both
    match = rows([0.62, 0.02, 0.36], [0.48, 0.47, 0.05], [0.20, 0.72, 0.08])
    made = tokens(
        torch.zeros(3, 1),
        start=match.log() * 3**0.5,
        text=torch.eye(3),
        asked=torch.ones(3, dtype=torch.bool),
        so_far=Mapping.identity(3),
    )
    found = Prune()(made, 2)  # one kept, one merged
    assert found.anchors[0] == 1
    assert found.sizes().tolist() == [1, 2]


def test_states_instead_of_embeddings() -> None:
    # What enters the layer: visual states and text states, the other way round here.
    turned = VISUAL.flip(0)
    made = tokens(
        turned, start=START[:, :1], text=TEXT[:, :1], asked=ASKED, so_far=SO_FAR, text_states=TEXT
    )
    found = Prune(raters="states")(made, 4)
    # v0 (5, 0, 0, 0) and v3 (4, 0, 0, 0) are best, then v4; embeddings would have said v4, v1, v0.
    assert found.anchors[:3].sort().values.tolist() == [0, 3, 4]


def test_without_raters_all_words_rate_and_ties_go_to_the_lower_slot() -> None:
    made = five(text=TEXT[[0, 1, 1, 1, 0]])
    assert Prune()(made, 4).anchors[:3].tolist() == [0, 1, 2]


def test_pruning_edge_budgets() -> None:
    assert Prune()(five(), 5).is_identity
    assert Prune()(five(), None).is_identity
    one = Prune()(five(), 1)
    torch.testing.assert_close(one.to_matrix(), torch.full((1, 5), 1 / 5))


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("budget", [192, 128, 64])
@pytest.mark.parametrize(
    ("total", "layers"), [(32, (3, 7, 16)), (28, (3, 7, 13)), (40, (3, 7, 16))]
)
def test_budgets(budget: int, total: int, layers: tuple[int, ...]) -> None:
    """K = 2: twice the budget enters the decoder; LLaVA-1.5-7B, Qwen2-VL-7B, LLaVA-1.5-13B."""
    method = Polymorphic(**Polymorphic.presets[f"authors-{budget}"].fields)
    assert Polymorphic.presets[f"authors-{budget}"].keep == budget
    first, after = method.budgets(576, budget, total)
    assert (first, after) == (2 * budget, budget)
    prune = method.parts[1]
    steps = prune.steps(first, after, total)
    assert tuple(step.layer for step in steps) == layers
    assert average(steps, first, total) == pytest.approx(budget, abs=0.5)
    counts = [first, *(step.keep for step in steps)]
    shares = [b / a for a, b in itertools.pairwise(counts)]
    assert max(shares) - min(shares) < 0.06  # the same share of what it found, whole tokens apart


@pytest.mark.parametrize("fall", ["count", "once"])
def test_tokens_may_fall_otherwise(fall: str) -> None:
    method = Polymorphic(fall=fall)
    first, after = method.budgets(576, 128, 32)
    steps = method.parts[1].steps(first, after, 32)
    assert average(steps, first, 32) == pytest.approx(128, abs=0.5)
    left = [first, *(step.keep for step in steps)]
    lost = [a - b for a, b in itertools.pairwise(left)]
    if fall == "once":
        assert lost[0] and lost[1:] == [0, 0]
    else:
        assert max(lost) - min(lost) <= 3  # whole tokens meet the average


def test_a_schedule_is_of_what_stage_one_leaves() -> None:
    method = Polymorphic(schedule=(100, 0.25, 20))
    first, after = method.budgets(576, 64, 32)
    assert [step.keep for step in method.parts[1].steps(first, after, 32)] == [100, 32, 20]
    assert not method.states_budget  # stage 1 needs one
    assert Polymorphic(stages="prune", schedule=(9, 9, 9)).states_budget


def test_stage_one_leaves_ratio_times_the_budget_at_most_all() -> None:
    assert Polymorphic(ratio=1.5).budgets(576, 100, 32) == (150, 100)
    assert Polymorphic().budgets(576, 400, 32) == (576, 400)
    assert Polymorphic().budgets(576, 576, 32) == (576, 576)
    assert Polymorphic().budgets(576, None, 32) == (None, None)


def test_stage_one_leaves_no_more_than_the_first_layers_may_run_on() -> None:
    # Four layers on 5 tokens are 20; two of them on 9, and one token in each of the others.
    assert Polymorphic(at=(2, 3)).budgets(25, 5, 4) == (9, 5)
    assert Polymorphic(at=(2, 3)).budgets(25, 1, 4) == (1, 1)


def test_one_stage_alone_gets_the_whole_budget() -> None:
    assert Polymorphic(stages="merge").budgets(576, 64, 32) == (64,)
    assert Polymorphic(stages="prune").budgets(576, 64, 32) == (64,)
    assert [type(p) for p in Polymorphic(stages="merge").parts] == [Merge]
    assert [type(p) for p in Polymorphic(stages="prune").parts] == [Prune]
    assert [type(p) for p in Polymorphic().parts] == [Merge, Prune]


def test_a_ratio_of_one_is_stage_one_alone() -> None:
    first, after = Polymorphic(ratio=1.0).budgets(576, 64, 32)
    steps = Polymorphic(ratio=1.0).parts[1].steps(first, after, 32)
    assert first == 64
    assert {step.keep for step in steps} == {64}


def test_fields_reach_the_parts() -> None:
    given = {"at": (2, 4), "raters": "states", "merged_counts": False, "neighbours": 3}
    given |= {"fall": "once", "schedule": (9, 4)}
    method = Polymorphic(**given)
    assert method.parts == (Merge(3), Prune(**given))
    assert method.parts[1].layers_in(32) == (2, 4)


def test_merged_tokens_on_top() -> None:
    """5.4 to 1 as well: 54 kept ones bring 10, and what runs is what the steps say."""
    inside, on_top = Prune(schedule=(54, 30, 1)), Prune(schedule=(54, 30, 1), merged_counts=False)
    assert [step.keep for step in inside.steps(100, None, 32)] == [54, 30, 1]
    assert [step.keep for step in on_top.steps(100, None, 32)] == [64, 36, 2]
    for kept, step in zip((54, 30, 1), on_top.steps(100, None, 32), strict=True):
        assert step.keep - merged_of(step.keep) == kept


def test_merged_tokens_on_top_leave_the_kept_ones() -> None:
    for kept in range(1, 200):
        (step,) = Prune(at=(3,), schedule=(kept,), merged_counts=False).steps(1000, None, 32)
        assert step.keep - merged_of(step.keep) == kept


def test_merged_tokens_on_top_never_exceed_what_there_is() -> None:
    steps = Prune(schedule=(58, 58, 58), merged_counts=False).steps(60, None, 32)
    assert [step.keep for step in steps] == [60, 60, 60]
    assert all(s.keep == 60 for s in Prune(merged_counts=False).steps(60, 60, 32))


@pytest.mark.parametrize(("stages", "aware"), [("both", True), ("merge", False), ("prune", True)])
def test_the_first_stage_reads_no_prompt(stages: str, aware: bool) -> None:
    method = Polymorphic(stages=stages)
    assert method.prompt_aware is aware
    assert foveate.chain(method, "uniform").prompt_aware is aware
    # A later turn asks it again only where the question matters.
    assert Setting("polymorphic", 8, fields=(("stages", stages),)).chooses_again is aware


def test_stage_one_by_itself() -> None:
    assert Polymorphic()(sixteen(), 13).anchors.tolist() == Merge()(sixteen(), 13).anchors.tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": "all"}, "stages 'both', 'merge' or 'prune' and ratio >= 1"),
        ({"ratio": 0.9}, "ratio=0.9"),
        ({"raters": "keys"}, "raters are 'embeddings' or 'states'; got 'keys'"),
        ({"neighbours": 0}, "neighbours"),
    ],
)
def test_other_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Polymorphic(**fields)


@pytest.mark.parametrize("budget", [640, 320, 160])
def test_next_presets(budget: int) -> None:
    assert Polymorphic.presets[f"authors-next-{budget}"].keep == budget
