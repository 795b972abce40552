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
        (279, 16),  # 15.5 layers: rounded half up
        (278, 15),
        (18, 1),
        (9, 1),  # half a layer
        (558, 31),
        (566, 31),
    ],
)
def test_the_layer_nearest_an_average(keep: int, layer: int) -> None:
    assert VTW().steps(576, keep, 32) == (Step(layer, 0),)


@pytest.mark.parametrize("keep", [567, 576])
def test_all_layers_means_no_withdrawal(keep: int) -> None:
    assert VTW().steps(576, keep, 32) == ()


def test_an_average_below_half_a_layer_is_refused() -> None:
    with pytest.raises(BudgetError) as caught:
        VTW().steps(576, 8, 32)
    assert str(caught.value).splitlines() == [
        "keep=8 cannot be reached: the first of 32 layers runs on all 576 tokens, 18 on average.",
        "The lowest keep that rounds up to it is 9.",
    ]


def test_a_given_layer_is_the_only_one() -> None:
    assert VTW(layer=7).steps(576, None, 32) == (Step(7, 0),)
    assert VTW(layer=7).layers_in(32) == (7,)
    assert VTW(layer=7).states_budget
    assert not VTW().states_budget
    assert VTW().layers_in(4) == (1, 2, 3)
