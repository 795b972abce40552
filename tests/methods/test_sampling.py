"""random, uniform, uniform-2d, pool and resize: where the kept tokens lie, worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.compressor import Grid
from foveate.methods.pool import Pool
from foveate.methods.random import Random
from foveate.methods.resize import Resize
from foveate.methods.uniform import Uniform
from foveate.methods.uniform_2d import Uniform2D
from tests.methods.given import raster, rows, tokens

# ---------------------------------------------------------------------- random


def test_random_is_a_sorted_sample_that_its_seed_decides() -> None:
    given = raster(4, 4)
    kept = Random(seed=3)(given, 5).anchors.tolist()
    assert kept == sorted(set(kept))
    assert kept == Random(seed=3)(given, 5).anchors.tolist()
    assert len({tuple(Random(seed=s)(given, 5).anchors.tolist()) for s in range(20)}) > 15


def test_random_favours_no_token() -> None:
    counts = torch.zeros(16)
    for seed in range(1000):
        counts[Random(seed=seed)(raster(4, 4), 4).anchors] += 1
    # Binomial(1000, 1/4): 250 with a standard deviation of 13.7; five of them either way.
    assert (counts - 250).abs().max() < 5 * 13.7


# ---------------------------------------------------------------------- uniform


def test_uniform_takes_the_middle_of_equal_stretches() -> None:
    # 10 tokens in 4 stretches of 2.5: middles 1.25, 3.75, 6.25, 8.75, rounded down.
    assert Uniform()(raster(2, 5), 4).anchors.tolist() == [1, 3, 6, 8]
    # One stretch of 5: its middle is 2.5. As many as there are: all.
    assert Uniform()(raster(1, 5), 1).anchors.tolist() == [2]
    assert Uniform()(raster(1, 5), 5).is_identity


def test_uniform_aliases_with_the_width() -> None:
    """Every fourth token of a raster 16 wide: four columns, and nothing between them."""
    kept = Uniform()(raster(16, 16), 64).anchors
    assert set((kept % 16).tolist()) == {2, 6, 10, 14}


# ---------------------------------------------------------------------- uniform-2d, pool


def test_uniform_2d_takes_the_centre_of_each_cell() -> None:
    # 3 x 6 in two cells: round(sqrt(2 * 3 / 6)) = 1 band of two columns, each 3 x 3;
    # their centres are row 1, columns 1 and 4: slots 7 and 10.
    assert Uniform2D()(raster(3, 6), 2).anchors.tolist() == [7, 10]


def test_uniform_2d_ties_go_to_the_lower_slot() -> None:
    # 4 x 4 in four cells of 2 x 2: all four slots of a cell are as near to its centre.
    assert Uniform2D()(raster(4, 4), 4).anchors.tolist() == [0, 2, 8, 10]
    # One cell: centre (1.5, 1.5), nearest are slots 5, 6, 9, 10.
    assert Uniform2D()(raster(4, 4), 1).anchors.tolist() == [5]


def test_bands_may_have_different_numbers_of_columns() -> None:
    # 4 x 4 in five cells: round(sqrt(5)) = 2 bands of 2 and 3 columns. Upper cells are 2 x 2
    # (slots 0 and 2 by the tie); below columns are 0-1, 2, 3: floor(3 c / 4) = 0 0 1 2.
    assert Uniform2D()(raster(4, 4), 5).anchors.tolist() == [0, 2, 8, 10, 11]


def test_rasters_share_the_budget_by_size() -> None:
    # A base view of 2 x 2 and a mosaic of 4 x 4, five tokens: 1 and 4 exactly. In the base view
    # the tie goes to slot 0; the mosaic's cells are as above, behind the 4 slots of the base view.
    grids = Grid(1, 2, 2), Grid(1, 4, 4)
    kept = Uniform2D()(tokens(torch.zeros(20, 1), *grids), 5)
    assert kept.anchors.tolist() == [0, 4, 6, 12, 14]


def test_frames_share_the_budget() -> None:
    # Three frames of 1 x 2, two tokens: 2/3 each, the remainders tie, so the first two frames.
    assert Uniform2D()(raster(1, 2, frames=3), 2).anchors.tolist() == [0, 2]


def test_pool_averages_its_cells() -> None:
    # 2 x 4 in two cells of 2 x 2: (0 + 1 + 4 + 5) / 4 and (2 + 3 + 6 + 7) / 4.
    given = raster(2, 4)
    found = Pool()(given, 2)
    assert found.apply(given.features).flatten().tolist() == [2.5, 4.5]
    assert found.anchors.tolist() == [0, 2]
    assert found.to_matrix().sum(1).tolist() == [1, 1]


def test_pool_at_its_edges() -> None:
    given = raster(2, 4)
    assert Pool()(given, 1).apply(given.features).item() == 3.5  # (0 + .. + 7) / 8
    assert Pool()(given, 8).apply(given.features).equal(given.features)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.data())
def test_a_lattice_has_exactly_as_many_cells_as_asked(
    height: int, width: int, frames: int, data: st.DataObject
) -> None:
    raw = raster(height, width, frames)
    m = data.draw(st.integers(1, raw.n))
    kept = Uniform2D()(raw, m)
    assert kept.m == m
    assert len(set(kept.anchors.tolist())) == m
    pooled = Pool()(raw, m)
    assert pooled.m == m
    assert (pooled.owner()[pooled.anchors] == torch.arange(m)).all()


# ---------------------------------------------------------------------- resize


@pytest.mark.parametrize(
    ("height", "width", "target", "size"),
    [
        # h = 2: 2 x 2, no surplus and no distortion.
        (4, 4, 4, (2, 2)),
        # h = 1 would need 5 columns of 4. h = 2: 2 x 3, ln 6 + ln 1.5; h = 3: 3 x 2, the same,
        # so the lower h; h = 4: 4 x 2, ln 8 + ln 2.
        (4, 4, 5, (2, 3)),
        # As wide as twice its height: 2 x 4 keeps that, ln 8; 3 x 3 costs ln 9 + ln 2.
        (4, 8, 8, (2, 4)),
        # Counts times distortions: 2 x 2 4 * 4/3, 3 x 2 6 * 9/8, 4 x 1 4 * 3. The second is the
        # least distorted, and drops two tokens of six.
        (4, 3, 4, (2, 2)),
        (4, 4, 1, (1, 1)),
        (4, 4, 16, (4, 4)),
    ],
)
def test_resize_chooses_the_raster(
    height: int, width: int, target: int, size: tuple[int, int]
) -> None:
    assert Resize().tower_plan(height, width, target, blocks=3).size == size


def test_resize_keeps_one_slot_of_each_smaller_patch() -> None:
    given = tokens(rows([0], [0], [1], [1]), cells=torch.tensor([0, 0, 1, 1]))
    # Both patches cover two slots; the middle of two is the first.
    both = Resize()(given, 2)
    assert both.anchors.tolist() == [0, 2]
    assert both.owner().tolist() == [0, 0, 1, 1]
    # Three: one slot more, of the largest patch; both are as large, so of the first.
    three = Resize()(given, 3)
    assert three.anchors.tolist() == [0, 1, 2]
    assert three.owner().tolist() == [0, 1, 2, 2]
    # One: of the two patches the one at place floor(2 / 2) = 1.
    one = Resize()(given, 1)
    assert one.anchors.tolist() == [2]
    assert one.owner().tolist() == [-1, -1, 0, 0]
