"""How a budget becomes a count, and what a method declares."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import hypothesis.strategies as st
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import foveate
from foveate.compressor import (
    Compressor,
    Grid,
    Preset,
    Reads,
    Stage,
    VisualTokens,
    check_keep,
    device_of,
    resolve_keep,
    with_preset,
)
from foveate.errors import BudgetError, StageNotAvailable, UnknownName
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class First(Compressor):
    """Keeps the first tokens; drops before decoder layer `layer`."""

    layer: int = 2

    stage: ClassVar[Stage] = Stage.DECODER
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.QUESTION})
    presets: ClassVar[dict[str, Preset]] = {
        "authors": Preset("their paper", {"layer": 3}, keep=5, positions="reindex")
    }

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        return Mapping.select(torch.arange(keep or 1), tokens.n)

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)


# ---------------------------------------------------------------- keep


@pytest.mark.parametrize(
    ("keep", "n", "m"),
    [
        (64, 576, 64),
        (1, 1, 1),
        (576, 576, 576),
        (1.0, 576, 576),
        (0.25, 10, 3),  # 2.5 rounds up
        (0.25, 576, 144),
        (0.111, 576, 64),
        (0.15, 10, 2),  # floor(0.15 * 10 + 1/2)
        (0.149, 10, 1),
        (1e-9, 576, 1),  # never nothing
        (np.nextafter(1.0, 0.0), 576, 576),
    ],
)
def test_keep_becomes_a_count(keep: int | float, n: int, m: int) -> None:
    assert resolve_keep(keep, n) == m


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 100_000))
@settings(deadline=None)
def test_a_fraction_keeps_between_one_and_all(keep: float, n: int) -> None:
    m = resolve_keep(keep, n)
    assert 1 <= m <= n
    assert abs(m - keep * n) <= 0.5 + 1e-6 or m == 1


@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True))
@settings(deadline=None)
def test_a_larger_fraction_never_keeps_less(a: float, b: float) -> None:
    low, high = sorted([a, b])
    assert resolve_keep(low, 576) <= resolve_keep(high, 576)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "keep",
    [0, -1, 0.0, -0.25, 1.0001, 2.0, math.nan, math.inf, -math.inf, True, False, None, "64", [4]],
    ids=repr,
)
def test_other_budgets_are_refused(keep: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        check_keep(keep)
    assert str(caught.value).splitlines() == [
        f"keep must be a count (int >= 1) or a fraction (float in (0, 1]); got {keep!r}.",
        "keep=64 keeps 64 tokens of each image, keep=0.25 a quarter of them.",
    ]
    with pytest.raises(ValueError, match="keep must be a count"):
        resolve_keep(keep, 576)


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(BudgetError) as caught:
        resolve_keep(900, 576)
    assert str(caught.value).splitlines() == [
        "keep=900 asks for more tokens than this image has (n=576).",
        "Use keep<=576, a fraction in (0, 1], or keep=1.0 for no compression.",
    ]


# ---------------------------------------------------------------- decoder budgets


def test_one_drop_meets_the_average_by_hand() -> None:
    """Layers 0 and 1 run on all 100; 40 on average over 10 layers leaves (400 - 200) / 8 = 25."""
    assert First(layer=2).decoder_budget(n=100, keep=40, total=10) == (25,)


@given(st.integers(1, 5), st.integers(6, 40), st.integers(50, 600), st.data())
@settings(deadline=None)
def test_one_drop_meets_every_average_that_can_be_met(
    layer: int, total: int, n: int, data: st.DataObject
) -> None:
    lowest = math.ceil((layer * n + total - layer) / total)
    keep = data.draw(st.integers(lowest, n))
    (after,) = First(layer=layer).decoder_budget(n, keep, total)
    assert 1 <= after <= n
    assert abs((layer * n + (total - layer) * after) / total - keep) <= 0.5


def test_an_average_that_cannot_be_met_is_refused_with_the_lowest_one() -> None:
    with pytest.raises(BudgetError) as caught:
        First(layer=2).decoder_budget(n=100, keep=20, total=10)
    assert str(caught.value).splitlines() == [
        "keep=20 cannot be reached: layers 0..1 of 10 already run on all 100 tokens.",
        "The lowest average with a first drop at layer 2 is 21; use that, or drop earlier.",
    ]
    assert First(layer=2).decoder_budget(n=100, keep=21, total=10) == (1,)


# ---------------------------------------------------------------- declarations


def test_reading_the_question_makes_a_method_prompt_aware() -> None:
    assert First().prompt_aware
    assert not type("Blind", (First,), {"reads": frozenset()})().prompt_aware
    aware = {
        each for each in Reads if type("One", (First,), {"reads": frozenset({each})})().prompt_aware
    }
    picture = {Reads.ENCODER, Reads.EMBEDDINGS, Reads.ATTENTION, Reads.KEYS, Reads.WIDE, Reads.CLS}
    assert set(Reads) - aware == picture | {Reads.START}


def test_defaults_say_no_layers_and_no_count() -> None:
    class Plain(Compressor):
        stage = Stage.INPUT

        def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
            return Mapping.identity(tokens.n)

    assert Plain().layers == ()
    assert Plain().keep_from_fields(10) is None
    assert not Plain.trainable


def test_a_method_is_frozen_and_equal_by_its_fields() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        First().layer = 3  # type: ignore[misc]
    assert First(layer=3) == First(layer=3) != First()


def test_a_preset_gives_fields_budget_and_positions() -> None:
    assert with_preset(First, "authors") == (First(layer=3), 5, "reindex")
    assert with_preset(First, "authors", layer=4)[0] == First(layer=4)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"Unknown preset 'author'. Did you mean 'authors'\?"):
        with_preset(First, "author")


def test_tokens_count_slots_and_grids_their_cells() -> None:
    grid = Grid(frames=2, height=3, width=4)
    tokens = VisualTokens(features=torch.zeros(24, 5), grids=(grid,), is_video=True)
    assert (grid.size, tokens.n) == (24, 24)
    assert device_of(tokens) == torch.device("cpu")


def test_shapes_that_contradict_each_other_are_seen_in_tests() -> None:
    """Positive control: signatures and dataclass fields are checked in this suite."""
    with pytest.raises(jaxtyping.TypeCheckError):
        VisualTokens(features=torch.zeros(4, 2), grids=(), attention=torch.zeros(3))
    with pytest.raises(jaxtyping.TypeCheckError):
        Mapping.select(torch.zeros(2), 4)


# ---------------------------------------------------------------- one after the other


@pytest.mark.parametrize("keep", [10, 64, 200])
def test_no_more_enters_a_decoder_than_its_average_bears(keep: int) -> None:
    """Three of five layers run on all that enters, and each of the others on a token at least."""
    chained = foveate.chain("uniform", foveate.FastV(layer=3))
    first, after = chained.budgets(256, keep, 5)
    assert after == keep <= first <= 2 * keep
    (step,) = chained.parts[1].steps(first, after, 5)
    assert (3 * first + 2 * step.keep) / 5 == pytest.approx(keep, abs=0.5)
    assert foveate.chain("uniform", foveate.FastV(layer=1)).budgets(256, 64, 32) == (128, 64)


@pytest.mark.parametrize("method", ["pool", "uniform-2d"])
def test_what_needs_rasters_says_so_behind_what_drops_tokens(method: str) -> None:
    seen = VisualTokens(torch.zeros(6, 2), (Grid(1, 2, 3),))
    left = seen.left(Mapping.select(torch.tensor([1, 2]), 6), torch.zeros(2, 2))
    assert foveate.make(method)(seen, 2).m == 2
    with pytest.raises(StageNotAvailable, match="Put it first"):
        foveate.make(method)(left, 2)
