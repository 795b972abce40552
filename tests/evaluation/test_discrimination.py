"""The page on telling methods apart, from answers made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import discrimination
from foveate import catalog
from foveate.evaluation.answering import FULL
from foveate.evaluation.data import from_reference
from foveate.evaluation.oracle import NAME as ORACLE
from foveate.evaluation.store import Store


@pytest.fixture
def found(tmp_path: Path) -> discrimination.Found:
    """Two methods are always right at half the tokens; below, `uniform` is always wrong."""
    data = from_reference(40)
    store = Store(tmp_path / "answers.jsonl", {"foveate": "0", "transformers": "0"})
    for each in data:
        right = [turn.answers[0] for turn in each.turns]
        store.add(FULL, each.name, answers=right)
        for first, *_ in discrimination.groups():
            if first.label in ("uniform", "cover"):
                wrong = first.label == "uniform" and first.keep != 0.5
                store.add(
                    first.key, each.name, answers=["no such word" if wrong else a for a in right]
                )
    store.close()
    return discrimination.Found([store], data)


def test_methods_that_differ_are_told_apart(found: discrimination.Found) -> None:
    rows = discrimination.table(found)
    assert list(rows) == ["cover", "uniform"]  # the better one at 10 % first
    assert discrimination.separated(found, rows) == {
        0.5: (0, 1, 0),
        0.25: (1, 1, 1),
        0.1: (1, 1, 1),
        0.05: (1, 1, 1),
    }


def test_pairs_are_corrected_for_and_the_oracle_is_no_method(found: discrimination.Found) -> None:
    right = np.full((1, 40), 3.0)
    less = right.copy()
    less[0, :4] = 0.0  # p = 2 * 0.9^40 = 0.03 alone, 0.09 beside two other pairs
    rows = {"best": {0.1: right}, "second": {0.1: less}, "third": {0.1: less}}
    assert found.apart(right, less)[1] < discrimination.SURE
    assert discrimination.separated(found, rows)[0.1] == (0, 3, 0)
    assert discrimination.separated(found, {k: rows[k] for k in ("best", "third")})[0.1] == (
        1,
        1,
        1,
    )
    with_oracle = {**rows, ORACLE: {0.1: 0 * right}}
    assert discrimination.separated(found, with_oracle)[0.1] == (0, 3, 0)


def test_several_models_are_judged_as_they_are_and_as_any(
    found: discrimination.Found,
) -> None:
    """What holds of three models that differ much need not hold of a fourth one."""
    right, other = np.full((3, 40), 3.0), np.full((3, 40), 3.0)
    other[0, :16] = 0.0  # one of the models is much worse, the others are as good
    rows = {"one": {0.1: right}, "two": {0.1: other}}
    assert discrimination.separated(found, rows)[0.1] == (1, 1, 0)  # two of them see no difference
    assert discrimination.separated(found, rows, any_model=True)[0.1] == (0, 1, 0)
    other[:, :16] = 0.0
    assert discrimination.separated(found, rows, any_model=True)[0.1] == (1, 1, 1)
    lines = discrimination.by_model(found, rows, right, ["a", "b", "c"])
    other[1] = 3.0
    assert discrimination.by_model(found, rows, right, ["a", "b", "c"])[-2] == (
        "| two | out of reach | out of reach | 0.600 / 1.000 / 0.600 | out of reach |"
    )
    assert lines[0] == "## a, b, c" and "All tokens: 1.000 / 1.000 / 1.000." in lines[2]


def test_methods_that_are_not_asked_are_named() -> None:
    """On the page that stands, too; every method is asked or left out for a reason."""
    left_out = {name for names in discrimination.LEFT_OUT for name in names}
    trained = {name for name in catalog.names() if catalog.method_class(name).trainable}
    assert trained <= left_out
    asked = {group[0].label for group in discrimination.groups()} - {ORACLE}
    assert asked == set(catalog.names()) - left_out
    text = (discrimination.DOCS / "discrimination.md").read_text()
    assert all(f"`{name}`" in text and why in text
               for names, why in discrimination.LEFT_OUT.items() for name in names)  # fmt: skip
    assert all(f"\n| {name} | " in text for name in asked)


def test_the_steepest_step_is_the_largest_loss_to_a_smaller_budget() -> None:
    path = {1.0: 0.9, 0.5: 0.8, 0.25: 0.82, 0.1: 0.4, 0.05: 0.35}
    assert discrimination.steepest(path) == "0.420 to 10 %"
    assert discrimination.steepest({1.0: 0.9, 0.5: 0.3}) == "0.600 to 50 %"


def test_the_page_says_what_was_answered(found: discrimination.Found, tmp_path: Path) -> None:
    discrimination.write(found, {"models": ["one"], "dialogues": 40}, tmp_path)
    text = (tmp_path / "discrimination.md").read_text()
    assert "| uniform | 1.000 (+0.000 [+0.000, +0.000]) | 0.000 (-1.000 [-1.000, -1.000]) |" in text
    assert "[-1.000, -1.000]) | 1.000 to 25 % |" in text
    assert "0 of 1 at 50 %, 1 of 1 at 25 %" in text
    assert (tmp_path / "pictures/discrimination.png").stat().st_size > 10_000
