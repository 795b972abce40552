"""Budgets and methods as they are typed."""

from __future__ import annotations

import pytest

import foveate
from foveate.errors import BudgetError, InputError, UnknownName
from foveate.evaluation.settings import Setting, expand, parse_keep, parse_method


@pytest.mark.parametrize(
    ("text", "keep"), [("64", 64), ("0.25", 0.25), ("25%", 0.25), ("12.5%", 0.125), ("1", 1)]
)
def test_budgets_as_typed(text: str, keep: float) -> None:
    found = parse_keep(text)
    assert found == keep
    assert type(found) is type(keep)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "nan", "200%", "many", "", "64 tokens"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(BudgetError) as error:
        parse_keep(text)
    assert len(str(error.value).splitlines()) <= 4


def test_methods_as_typed() -> None:
    assert parse_method("pool") == Setting("pool")
    assert parse_method("visionzip@authors-64").preset == "authors-64"
    setting = parse_method("random:seed=3")
    assert setting.fields == (("seed", 3),)
    assert setting.make().seed == 3  # type: ignore[attr-defined]
    with pytest.raises(UnknownName, match="visionzip"):
        parse_method("vizionzip")
    with pytest.raises(UnknownName, match="authors-64"):
        parse_method("visionzip@authors-65")
    with pytest.raises(UnknownName, match="seed"):
        parse_method("random:sed=3")
    with pytest.raises(InputError, match="field=value"):
        parse_method("random:seed")


def test_chains_as_typed() -> None:
    setting = parse_method("visionzip/fastv:ratio=3.0,fastv.layer=2")
    assert setting.label == "visionzip/fastv:ratio=3.0,fastv.layer=2"
    assert setting.make() == foveate.chain("visionzip", foveate.FastV(layer=2), ratio=3.0)
    assert parse_method(setting.label) == setting
    keeps = parse_method("visionzip/fastv:keeps=[0.5,0.25]")
    assert keeps.make() == foveate.chain(("visionzip", 0.5), ("fastv", 0.25))
    assert parse_method(keeps.label) == keeps
    keys = {setting.key, keeps.key, parse_method("visionzip/fastv").key}
    assert len(keys) == 3
    with pytest.raises(UnknownName, match=r"'fastv.layr'. Did you mean 'fastv.layer'"):
        parse_method("visionzip/fastv:fastv.layr=2")
    with pytest.raises(UnknownName, match="Did you mean 'fastv'"):
        parse_method("visionzip/fast")
    with pytest.raises(UnknownName, match="'methods'"):
        parse_method("visionzip/fastv:methods=x")
    with pytest.raises(BudgetError, match="takes as many budgets"):
        parse_method("visionzip/fastv:keeps=[0.5]")


@pytest.mark.usefixtures("unchecked")
def test_a_value_of_the_wrong_kind_is_told() -> None:
    with pytest.raises(InputError, match="layer of fastv is a whole number or null; got 'deep'"):
        parse_method("fastv:layer=deep")
    with pytest.raises(InputError, match="wrong kind"):
        parse_method("relevance:channels=3")


def test_budgets_that_a_method_states_itself_come_once() -> None:
    methods = ["visionzip/fastv:keeps=[0.5,0.25]", "fastv:schedule=[4]", "vtw"]
    groups = expand(methods, [0.5, 0.25])
    assert [group[0].budget for group in groups] == ["own", "own", "50%", "25%"]
    assert all(setting.keep is None for group in groups[:2] for setting in group)


def test_every_part_of_a_chain_is_drawn_anew() -> None:
    ((*drawn,),) = expand(["random/fastv"], [0.5], draws=2)
    assert [dict(setting.drawn) for setting in drawn] == [{"random.seed": 0}, {"random.seed": 1}]
    assert len(expand(["pool", "random", "pool"], [0.5])) == 2
    assert {setting.label for setting in drawn} == {"random/fastv"}
    assert drawn[1].make() == foveate.chain(foveate.Random(seed=1), "fastv")


def test_only_what_reads_the_prompt_comes_in_both_ways() -> None:
    methods = ["fastv", "visionzip", "visionzip/fastv", "polymorphic", "polymorphic:stages=merge"]
    for turns, ways in {"each": ["each"], "first": ["first"], "both": ["each", "first"]}.items():
        groups = expand(methods, [0.5], turns=turns)
        found = [(g[0].label, g[0].turns) for g in groups]
        expected = [
            (method, way)
            for method in methods
            for way in (["each"] if method in ("visionzip", "polymorphic:stages=merge") else ways)
        ]
        assert found == expected
        assert len({group[0].key for group in groups}) == len(groups)
    with pytest.raises(UnknownName, match="'last'"):
        expand(methods, [0.5], turns="last")


def test_what_is_random_is_drawn_several_times_and_presets_once() -> None:
    groups = expand(["random", "pool", "random:seed=5", "visionzip@authors-64"], [4, 0.5], draws=3)
    assert [(g[0].label, g[0].budget, len(g)) for g in groups] == [
        ("random", "4", 3),
        ("random", "50%", 3),
        ("pool", "4", 1),
        ("pool", "50%", 1),
        ("random:seed=5", "4", 1),
        ("random:seed=5", "50%", 1),
        ("visionzip@authors-64", "preset", 1),
    ]
    assert len({setting.key for group in groups for setting in group}) == sum(map(len, groups))
    with pytest.raises(BudgetError):
        expand(["pool"], [0])
