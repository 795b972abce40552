"""Verdicts on claims, from stored answers made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.errors import BudgetError, InputError, UnknownName
from foveate.evaluation import stats
from foveate.evaluation.claims import Claim, Side, groups_of, read
from foveate.evaluation.data import Dialogue, Turn
from foveate.evaluation.store import Store
from foveate.evaluation.verdicts import (
    HOLDS,
    OPEN,
    OUT_OF_REACH,
    REVERSED,
    Answered,
    Evidence,
    judge,
    markdown,
)

IMAGE = Image.new("RGB", (20, 20))


def dialogues(count: int) -> list[Dialogue]:
    turns = tuple(Turn("?", ("yes",), kind) for kind in ("colour", "count"))
    return [Dialogue(str(i), (IMAGE,), turns) for i in range(count)]


def stored(
    folder: Path, data: Sequence[Dialogue], said: dict[str, Sequence[Sequence[str]]]
) -> Store:
    """Answers of one model: key -> of each dialogue, of each turn."""
    store = Store(folder / "answers.jsonl", {})
    for key, answers in said.items():
        for each, one in zip(data, answers, strict=True):
            store.add(key, each.name, answers=list(one))
    store.close()
    return store


def side(method: str, keep: float = 0.25) -> Side:
    return Side(method, keep)


def test_a_side_that_chooses_at_the_first_turn_says_so() -> None:
    each, first = Side("fastv@metacompress-90"), Side("fastv@metacompress-90", turns="first")
    assert each.keys != first.keys
    assert first.label == f"{each.label}, chosen at the first turn"


def test_a_claim_holds_is_reversed_open_or_out_of_reach(tmp_path: Path) -> None:
    data = dialogues(40)
    good, alike, bad = side("visionzip"), side("pool"), side("uniform")
    lost = side("fastv", 0.01)
    right, wrong = [["yes", "yes"]] * 40, [["no", "no"]] * 40
    said = {good.keys[0]: right, alike.keys[0]: right, bad.keys[0]: wrong, "full": right}
    stores = [stored(tmp_path / str(seed), data, said) for seed in range(3)]
    answered = Answered(stores, data, {lost.keys[0]: "not reachable, lowest 7"})
    claims = [
        Claim("A", "better", good, bad),
        Claim("B", "the other way", bad, good),
        Claim("C", "alike", good, alike),
        Claim("D", "cannot be run", good, lost),
        Claim("E", "was not run", good, side("divprune")),
        Claim("F", "is as good as the full model", good, Side("full"), least=-0.15),
        Claim("G", "keeps a half", bad, Side("full"), of=0.5),
    ]
    found = judge(claims, [answered.evidence(each) for each in claims], resamples=2000)
    words = [HOLDS, REVERSED, OPEN, OUT_OF_REACH, OUT_OF_REACH, HOLDS, REVERSED]
    assert [each.word for each in found] == words
    assert found[0].models == (1.0, 1.0, 1.0)
    assert (found[0].better, found[0].worse) == (1.0, 0.0)
    assert found[6].difference == pytest.approx((-0.5, -0.5, -0.5), abs=0.07)
    assert found[6].difference is not None and found[6].difference[0] == -0.5
    assert found[3].why == "not reachable, lowest 7"
    assert found[4].why == "divprune: not asked"
    assert "colour (-1.000)" in found[1].why
    table = markdown(found).splitlines()
    assert {line.count("|") for line in table} == {10}
    assert [line.split("**")[1] for line in table[2:]] == words
    assert [each.alone for each in found] == words


def test_what_models_do_not_share_is_open_and_says_so(tmp_path: Path) -> None:
    """Two models gain much on every dialogue, one loses a little."""
    gains = np.array([[0.9], [0.8], [-0.1]]).repeat(200, 1)
    seen = Evidence(1 + gains, np.ones_like(gains), np.ones(200))
    claim = Claim("A", "better", side("pool"), side("uniform"))
    (all_of_them,) = judge([claim], [seen], resamples=2000)
    assert all_of_them.word == OPEN
    assert all_of_them.alone == HOLDS
    assert markdown([all_of_them]).endswith("| +0.900, +0.800, -0.100 | holds | **open** |")
    assert all_of_them.why == "as claimed with these 3 models surely, but they differ too much"
    first = Evidence(seen.better[:1], seen.worse[:1], seen.asked)
    (one,) = judge([claim], [first], resamples=2000)
    assert one.word == HOLDS  # of that model, as the page says
    assert one.alone == HOLDS
    assert "by model" not in markdown([one]) and "these alone" not in markdown([one])


def test_many_claims_are_corrected_together() -> None:
    """One claim that would be sure alone is not among a hundred."""
    rng = np.random.default_rng(3)
    gains = rng.normal(0.05, 0.3, (1, 200))
    claim = Claim("A", "better", side("pool"), side("uniform"))
    seen = Evidence(gains, np.zeros_like(gains), np.ones(200))
    noise = [
        Evidence(rng.normal(0, 0.3, (1, 200)), np.zeros((1, 200)), np.ones(200)) for _ in range(99)
    ]
    (alone,) = judge([claim], [seen], resamples=2000)
    among = judge([claim] * 100, [seen, *noise], resamples=2000)
    assert alone.word == HOLDS
    assert among[0].word == OPEN
    assert alone.p is not None and among[0].p == pytest.approx(min(1.0, 100 * alone.p))


def test_all_claims_tell_how_much_models_differ() -> None:
    rng, asked = np.random.default_rng(0), np.full(60, 3.0)
    found = [Evidence(*rng.integers(0, 4, (2, 3, 60)).astype(float), asked) for _ in range(12)]
    found[4] = Evidence(found[4].better[:2], found[4].worse[:2], asked)  # on two models alone
    claims = [Claim("t", "s", side("pool"), side("uniform")) for _ in found]
    gains = [each.better - each.worse for each in found]
    shared = stats.spreads([stats.own_spread(g, asked) for g in gains if len(g) == 3])
    with_all = judge(claims, found)[0].difference
    assert with_all == stats.between_models(gains[0], asked, spread=shared[0], made_up=1)[0]
    assert judge(claims[:1], found[:1])[0].difference != with_all


def test_the_difference_is_over_dialogues_and_pairs_them(tmp_path: Path) -> None:
    """By hand: three dialogues of two questions, the kinds counted apart."""
    data = dialogues(3)
    a, b = side("pool"), side("uniform")
    said = {
        a.keys[0]: [["yes", "no"], ["yes", "yes"], ["no", "no"]],
        b.keys[0]: [["no", "no"], ["no", "yes"], ["no", "yes"]],
    }
    answered = Answered([stored(tmp_path, data, said)], data, {})
    seen = answered.evidence(Claim("A", "better", a, b))
    assert isinstance(seen, Evidence)
    assert (seen.better - seen.worse).tolist() == [[1, 1, -1]]
    assert seen.asked.tolist() == [2, 2, 2]
    assert seen.kinds == pytest.approx({"colour": 2 / 3, "count": -1 / 3})
    one = answered.evidence(Claim("A", "better", a, b, kinds=("count",)))
    assert isinstance(one, Evidence)
    assert (one.better - one.worse).tolist() == [[0, 0, -1]]
    assert one.asked.tolist() == [1, 1, 1]
    (verdict,) = judge([Claim("A", "better", a, b)], [seen], resamples=500)
    assert verdict.difference is not None and verdict.difference[0] == pytest.approx(1 / 6)
    # The made up ones among them: with luck all that is drawn is won, or lost.
    assert -0.6 < verdict.difference[1] < -1 / 3 and 1 / 2 < verdict.difference[2] < 0.75


@pytest.mark.parametrize(("count", "word"), [(20, OPEN), (2000, HOLDS)])
def test_a_tie_of_a_few_dialogues_proves_nothing(count: int, word: str) -> None:
    """Not one answer differs: of twenty dialogues that does not say that one in a hundred will."""
    same = np.ones((1, count))
    claim = Claim("A", "as good", side("pool"), side("uniform"), least=-0.01)
    (found,) = judge([claim], [Evidence(same, same, np.ones(count))], resamples=1000)
    assert found.word == word


def test_kinds_that_the_full_model_does_not_answer_carry_nothing(tmp_path: Path) -> None:
    """It is right about every colour; counts it guesses as well without the picture."""
    colours = [Turn("?", (each,), "colour") for each in ("red", "blue", "green", "grey")]
    counts = [Turn("?", (each,), "count") for each in ("1", "1", "1", "2")]
    data = [
        Dialogue(str(i), (IMAGE,), turns)
        for i, turns in enumerate(zip(colours, counts, strict=True))
    ]
    shown = [[turn.answers[0] for turn in each.turns[:1]] + ["1"] for each in data]
    said = {"full": shown, "blind": [["red", "1"]] * 4, side("pool").keys[0]: [["red", "1"]] * 4}
    answered = Answered([stored(tmp_path, data, said)], data, {})
    assert answered.learned == {"colour"}
    seen = answered.evidence(Claim("A", "loses", Side("full"), side("pool")))
    assert isinstance(seen, Evidence)
    assert seen.asked.tolist() == [1, 1, 1, 1]
    assert seen.better.tolist() == [[1, 1, 1, 1]]
    why = answered.evidence(Claim("A", "x", Side("full"), side("pool"), kinds=("count",)))
    assert why == "the full model did not learn count"


def test_sides_may_be_anything_that_can_be_attached() -> None:
    drawn = side("random")
    assert len(drawn.keys) == 3  # the mean of three draws
    assert Side("full").keys == ("full",) and Side("blind").keys == ("blind",)
    assert side("oracle").settings[0].label == "oracle"
    assert side("polymorphic:ratio=1.0").label == "polymorphic:ratio=1.0"
    assert side("visionzip/fastv").settings[0].method == "visionzip/fastv"
    assert Side("fastv@authors-k2-r50").settings[0].keep is None
    assert Side("fastv", 0.5, "first").settings[0].turns == "first"
    assert Side("visionzip", 0.5, "first").settings[0].turns == "each"  # reads no prompt
    sides = [Side("full"), side("pool"), side("pool"), drawn]
    assert [len(each) for each in groups_of(sides)] == [1, 3]
    with pytest.raises(BudgetError, match="needs a budget"):
        _ = Side("fastv").keys
    with pytest.raises(UnknownName, match="fastw"):
        _ = side("fastw").keys


def test_draws_are_averaged(tmp_path: Path) -> None:
    data, drawn = dialogues(1), side("random")
    said = {
        key: [[answer, "yes"]] for key, answer in zip(drawn.keys, ("yes", "no", "no"), strict=True)
    }
    right = Answered([stored(tmp_path, data, said)], data, {}).right(drawn)
    assert np.asarray(right).tolist() == [[pytest.approx(1 / 3), 1.0]]


PAGE = """
title = "A paper"
text = "Its text."
[[left_out]]
what = "this"
why = "that"
[[parts]]
title = "Table 1"
data = "scenes"
text = ""
[[parts.claims]]
source = "Table 1"
says = "one is better"
better = "pool"
worse = {method = "fastv", keep = 0.5, turns = "first"}
keep = "192/576"
kinds = ["colour"]
least = -0.01
"""


def test_a_page_is_read(tmp_path: Path) -> None:
    path = tmp_path / "page.toml"
    path.write_text(PAGE)
    page = read(path)
    (part,) = page.parts
    (claim,) = part.claims
    assert claim == Claim(
        "Table 1",
        "one is better",
        Side("pool", 1 / 3),
        Side("fastv", 0.5, "first"),
        least=-0.01,
        kinds=("colour",),
    )
    assert page.left_out == (("this", "that"),)
    assert page.sides("scenes") == (claim.better, claim.worse)
    assert page.sides("tiles") == ()


@pytest.mark.parametrize(
    ("old", "new", "error", "told"),
    [
        ("says =", "say =", InputError, "say"),
        ('better = "pool"', "", InputError, "better"),
        ('better = "pool"', 'better = "fool"', UnknownName, "fool"),
        ('"192/576"', '"many"', InputError, "many"),
        ('"192/576"', "1.5", BudgetError, "1.5"),
    ],
)
def test_a_page_that_is_wrong_says_where(
    tmp_path: Path, old: str, new: str, error: type[Exception], told: str
) -> None:
    path = tmp_path / "page.toml"
    path.write_text(PAGE.replace(old, new))
    with pytest.raises(error, match=told):
        read(path)


def test_no_answers() -> None:
    with pytest.raises(InputError, match="none"):
        Answered([], dialogues(1), {})


def test_claims_are_data() -> None:
    """Frozen and comparable, so that one is found once."""
    assert dataclasses.replace(side("pool"), keep=0.5) != side("pool")
    assert len({side("pool"), side("pool")}) == 1
