"""Where a method between layers drops, and how many: every average that can be met is met."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import catalog
from foveate.compressor import (
    Compressor,
    DecoderMethod,
    Stage,
    scaled_layers,
    solve_schedule,
)
from foveate.errors import BudgetError
from foveate.methods.fastv import FastV
from foveate.methods.polymorphic import Polymorphic, Prune
from foveate.methods.pyramiddrop import PyramidDrop
from foveate.methods.sparsevlm import SparseVLM
from foveate.methods.vtw import VTW
from tests.methods.given import average

quick = settings(max_examples=10, deadline=None)
SOLVED: dict[str, Compressor] = {
    name: catalog.make(name)
    for name in catalog.names()
    if catalog.method_class(name).stage == Stage.DECODER and name != "vtw"
} | {
    "polymorphic": Prune(),
    "fastv-3": FastV(layer=3),
    "sparsevlm-5": SparseVLM(at=(1, 2, 3)),
    "pyramiddrop-0": PyramidDrop(at=(0, 2)),
}
depths, sizes = st.integers(4, 80), st.integers(1, 3000)


def lowest_of(method: Compressor, n: int, total: int) -> int:
    """The whole average above n for the first layers and one token from the first drop on."""
    first = method.layers_in(total)[0]
    return math.ceil((first * n + total - first) / total)


def check_counts(counts: Sequence[int | None], n: int) -> None:
    falling = [n, *counts]
    assert all(1 <= after <= before for before, after in itertools.pairwise(falling))


@pytest.mark.parametrize("name", SOLVED)
@quick
@given(depths, sizes, st.data())
def test_every_average_that_can_be_met_is_met(
    name: str, total: int, n: int, data: st.DataObject
) -> None:
    method = SOLVED[name]
    keep = data.draw(st.integers(lowest_of(method, n, total), n))
    steps = method.steps(n, keep, total)
    check_counts([step.keep for step in steps], n)
    layers = [step.layer for step in steps]
    assert set(layers) <= set(method.layers_in(total))
    assert layers == sorted(set(layers))
    assert abs(average(steps, n, total) - keep) <= 0.5 + 1e-9


@pytest.mark.parametrize("name", SOLVED)
@quick
@given(depths, st.integers(2, 3000), st.data())
def test_a_lower_one_is_refused_with_the_lowest(
    name: str, total: int, n: int, data: st.DataObject
) -> None:
    method = SOLVED[name]
    lowest = lowest_of(method, n, total)
    if lowest == 1:
        return
    keep = data.draw(st.integers(1, lowest - 1))
    with pytest.raises(BudgetError, match=rf"keep={keep} cannot be reached") as caught:
        method.steps(n, keep, total)
    said = r"lowest average with a first drop at layer (\d+) is (\d+)"
    found = re.search(said, str(caught.value))
    assert found is not None
    assert (int(found[1]), int(found[2])) == (method.layers_in(total)[0], lowest)
    assert average(method.steps(n, lowest, total), n, total) == pytest.approx(lowest, abs=0.5)
    with pytest.raises(BudgetError):
        method.steps(n, lowest - 1, total)


@pytest.mark.parametrize("name", SOLVED)
@quick
@given(depths, sizes)
def test_keeping_all_changes_nothing(name: str, total: int, n: int) -> None:
    assert {step.keep for step in SOLVED[name].steps(n, n, total)} <= {n}


@pytest.mark.parametrize("name", SOLVED)
@settings(max_examples=8, deadline=None)
@given(depths, st.integers(2, 700), st.data())
def test_a_larger_average_keeps_no_less(name: str, total: int, n: int, data: st.DataObject) -> None:
    """Nowhere more than a token less, which rounding may cost."""
    method = SOLVED[name]
    keep = data.draw(st.integers(min(lowest_of(method, n, total), n), n))
    less = {step.layer: step.keep for step in method.steps(n, keep, total)}
    more = {step.layer: step.keep for step in method.steps(n, min(n, keep + 1), total)}
    for layer, count in more.items():
        before = [less[at] for at in sorted(less) if at <= layer]
        assert count >= (before[-1] if before else n) - 1


@quick
@given(depths, sizes, st.data())
def test_vtw_withdraws_as_late_as_the_average_allows(
    total: int, n: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, n))
    if n / total > keep + 0.5:
        said = r"lowest average with a withdrawal at layer 1 is (\d+); use that"
        with pytest.raises(BudgetError, match=said) as caught:
            VTW().steps(n, keep, total)
        found = re.search(said, str(caught.value))
        assert found is not None
        lowest = int(found[1])
        assert VTW().steps(n, lowest, total)[0].layer == 1
        with pytest.raises(BudgetError):
            VTW().steps(n, lowest - 1, total)
        return
    steps = VTW().steps(n, keep, total)
    assert average(steps, n, total) <= keep + 0.5
    assert all(step.keep == 0 and step.layer in VTW().layers_in(total) for step in steps)
    if steps:  # one layer more on all tokens is above it
        assert n * (steps[0].layer + 1) / total > keep + 0.5


@quick
@given(depths, sizes, st.floats(1, 4), st.data())
def test_polymorphic_meets_the_budget_over_both_stages(
    total: int, n: int, ratio: float, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, n))
    method = Polymorphic(ratio=ratio)
    first, after = method.budgets(n, keep, total)
    prune = method.parts[1]
    before = prune.layers_in(total)[0]
    # As many as stage 1 wants, if the budget then leaves each later layer at least one token.
    wanted = range(keep, min(n, round(ratio * keep)) + 1)
    assert first == max(
        [keep, *(m for m in wanted if before * m + (total - before) <= total * keep)]
    )
    if keep < lowest_of(prune, first, total):
        with pytest.raises(BudgetError):
            prune.steps(first, after, total)
        return
    steps = prune.steps(first, after, total)
    check_counts([step.keep for step in steps], first)
    assert abs(average(steps, first, total) - keep) <= 0.5 + 1e-9


# ---------------------------------------------------------------- the solver itself


def test_solved_by_hand() -> None:
    # 10 layers, 100 tokens, drops before 2, 4 and 8 to 4 s, 2 s, s. 40 on average are 400 token-
    # layers, 200 of them before the first drop: 2 * 4 s + 4 * 2 s + 2 s = 18 s = 200 gives s =
    # 11.1, and 44, 22, 11 are 88 + 88 + 22 = 198: two to spare. The longest stretch takes 4 for
    # one more; the first takes 2.
    def shape(size: float) -> list[float]:
        return [400 * size, 200 * size, 100 * size]

    assert solve_schedule((2, 4, 8), 100, 40, 10, shape) == (45, 22, 11)
    # 18 s = 210: 46.7, 23.3, 11.7, and of 4 to spare the longest stretch takes all.
    assert solve_schedule((2, 4, 8), 100, 41, 10, shape) == (46, 24, 11)


def test_a_long_stretch_waits_for_what_holds_it_back() -> None:
    # 22 layers, 14 tokens, drops before 4, 5 and 7 to the same count: 32 token-layers for 18 layers
    # are 1.8 each. The last 15 take one more, which only the other three can allow.
    assert solve_schedule((4, 5, 7), 14, 4, 22, lambda size: [14 * size] * 3) == (2, 2, 2)


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int, int, list[float]]:
    total = draw(st.integers(2, 80))
    layers = tuple(sorted(draw(st.sets(st.integers(0, total - 1), min_size=1, max_size=8))))
    n = draw(st.integers(1, 3000))
    lowest = math.ceil((layers[0] * n + total - layers[0]) / total)
    keep = draw(st.integers(min(lowest, n), n))
    powers = draw(st.lists(st.floats(0.5, 4), min_size=len(layers), max_size=len(layers)))
    return layers, n, keep, total, powers


@settings(max_examples=50, deadline=None)
@given(problems())
def test_any_shape_is_solved(problem: tuple[tuple[int, ...], int, int, int, list[float]]) -> None:
    """Shapes that fall, rise or stay: counts never grow, and the average is met."""
    layers, n, keep, total, powers = problem
    found = solve_schedule(layers, n, keep, total, lambda size: [n * size**p for p in powers])
    check_counts(found, n)
    ends = [*layers[1:], total]
    spent = layers[0] * n + sum(
        count * (end - start) for count, start, end in zip(found, layers, ends, strict=True)
    )
    assert abs(spent / total - keep) <= 0.5 + 1e-9


@given(st.integers(4, 80))
@settings(deadline=None)
def test_layers_of_any_model_are_distinct_and_in_range(total: int) -> None:
    for method in (SparseVLM(), PyramidDrop(), Prune(), catalog.make("mustdrop")):
        layers = method.layers_in(total)
        assert list(layers) == sorted(set(layers))
        assert layers[0] >= 1
        assert layers[-1] < total
        published = 4 if type(method).__name__ == "MustDrop" else 3
        assert len(layers) == min(published, total - 1)


def test_published_layers_of_other_models() -> None:
    assert scaled_layers((8, 16, 24), 32, 32) == (8, 16, 24)
    assert scaled_layers((8, 16, 24), 32, 28) == (7, 14, 21)
    assert scaled_layers((3, 7, 16), 32, 28) == (3, 6, 14)  # 2.6, 6.1, 14
    assert scaled_layers((3, 7, 16), 32, 40) == (4, 9, 20)  # 3.75, 8.75, 20
    assert scaled_layers((3, 7, 11, 15), 32, 5) == (1, 2, 3, 4)  # 0.5, 1.1, 1.7, 2.3
    assert scaled_layers((3, 7, 11, 15), 32, 4) == (1, 2, 3)
    assert scaled_layers((3, 7, 16), 64, 64) == (3, 7, 16)


# ---------------------------------------------------------------- stated schedules


def test_a_schedule_is_of_the_whole_picture_and_never_grows() -> None:
    mixed = PyramidDrop(schedule=(0.5, 90, 0.125))
    assert [step.keep for step in mixed.steps(100, None, 32)] == [50, 50, 13]
    assert [step.keep for step in PyramidDrop(schedule=(500, 20, 20)).steps(100, None, 32)] == [
        *(100, 20, 20)
    ]
    assert [step.keep for step in PyramidDrop(schedule=(1.0, 0.001, 1)).steps(100, None, 32)] == [
        *(100, 1, 1)
    ]


@pytest.mark.parametrize("count", [0, -3, 0.0, 1.5, math.nan, True])
def test_a_schedule_holds_counts_and_shares(count: float) -> None:
    with pytest.raises(BudgetError, match="keep must be a count"):
        FastV(schedule=(count,)).steps(100, None, 32)


@pytest.mark.parametrize("at", [(), (8, 4), (4, 4, 8), (-1, 4)])
def test_layers_ascend(at: tuple[int, ...]) -> None:
    method: DecoderMethod
    for method in (PyramidDrop(at=at), PyramidDrop(at=at, schedule=(0.5,) * len(at))):
        with pytest.raises(BudgetError, match="ascending, from 0 on") as caught:
            method.steps(100, 50, 32)
        assert str(at) in str(caught.value)


def test_what_looks_at_the_layer_before_drops_from_layer_one_on() -> None:
    with pytest.raises(BudgetError, match="ascending, from 1 on"):
        SparseVLM(at=(0, 2)).steps(100, 50, 32)
    assert [step.layer for step in PyramidDrop(at=(0, 2)).steps(100, 50, 32)] == [0, 2]


def test_by_default_nothing_is_stated() -> None:
    assert not any(method.states_budget for method in SOLVED.values())
    assert PyramidDrop(schedule=(1, 1, 1)).states_budget
