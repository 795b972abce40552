"""VTW by hand."""

from __future__ import annotations

import pytest
import torch

from foveate.compressor import Step
from foveate.errors import BudgetError
from foveate.methods.vtw import VTW
from tests.methods.given import average, preset_steps, tokens


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("keep", [0, 1, None])
def test_nothing_is_left(n: int, keep: int | None) -> None:
    found = VTW()(tokens(torch.ones(n, 3)), keep)
    assert (found.m, found.n) == (0, n)
    assert found.apply(torch.ones(n, 3)).shape == (0, 3)
    assert found.in_raster_order().m == 0


@pytest.mark.parametrize(
    ("name", "layer", "ran"), [("authors-15", 15, 270), ("authors-16", 16, 288)]
)
def test_presets(name: str, layer: int, ran: float) -> None:
    """576 K / 32 of the algorithm card."""
    assert preset_steps(VTW, name) == [(layer, 0)]
    steps = VTW(layer=layer).steps(576, None, 32)
    assert average(steps, 576, 32) == ran == 576 * layer / 32


@pytest.mark.parametrize(
    ("keep", "layer"),
    [
        (270, 15),
        (288, 16),
        (287, 15),  # 16 layers are 288 tokens, one more than may be
        (279, 15),  # nearer to 16 layers, which are too much
        (271, 15),
        (18, 1),
        (35, 1),
        (558, 31),
        (575, 31),
    ],
)
def test_the_last_layer_that_an_average_allows(keep: int, layer: int) -> None:
    """A layer is 18 tokens of 576 on average in 32."""
    assert VTW().steps(576, keep, 32) == (Step(layer, 0),)


@pytest.mark.parametrize(("keep", "layer"), [(102, 2), (101, 1), (51, 1), (154, 3), (153, 2)])
def test_a_count_is_whole_and_stands_for_half_a_token_more(keep: int, layer: int) -> None:
    # A layer of 5 is 51.2 of 256: 0.2 * 256 is asked for as 51, and 153.6 as 154.
    assert VTW().steps(256, keep, 5) == (Step(layer, 0),)


def test_all_layers_means_no_withdrawal() -> None:
    assert VTW().steps(576, 576, 32) == ()
    assert VTW(layer=32).steps(576, None, 32) == ()
    assert VTW(layer=32).layers_in(32) == ()


def test_an_average_below_one_layer_is_refused() -> None:
    with pytest.raises(BudgetError) as caught:
        VTW().steps(576, 17, 32)
    assert str(caught.value).splitlines() == [
        "keep=17 cannot be reached: layer 0 of 32 already runs on all 576 tokens.",
        "The lowest average with a withdrawal at layer 1 is 18; use that.",
    ]
    # A layer of 5 is 51.2 of 256: 51 stands for that, so the next higher one is not the lowest.
    with pytest.raises(BudgetError, match="layer 1 is 51; use that"):
        VTW().steps(256, 50, 5)


def test_a_given_layer_is_the_only_one() -> None:
    assert VTW(layer=7).steps(576, None, 32) == (Step(7, 0),)
    assert VTW(layer=7).layers_in(32) == (7,)
    assert VTW(layer=7).states_budget
    assert not VTW().states_budget
    assert VTW().layers_in(4) == (1, 2, 3)
