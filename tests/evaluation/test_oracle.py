"""The oracle, which is told what a scene shows, and what is known of pictures beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.attach.prompt import placed
from foveate.compressor import Grid
from foveate.errors import BudgetError, InputError
from foveate.evaluation import Dialogue, Turn, from_reference
from foveate.evaluation.oracle import Oracle, asked_about, choose, covered, ground_truth, preferred
from foveate.evaluation.reach import refusal
from foveate.evaluation.settings import Setting
from foveate.reference.referring import attribute
from foveate.reference.scenes import patch_mask, scene
from tests.families.models import FAMILIES

# ---------------------------------------------------------------------- what it is told


@pytest.mark.parametrize("grid", [4, 8, 16, 32])
def test_slots_that_show_something_are_the_scenes_own_mask(grid: int) -> None:
    for seed in range(3):
        drawn = scene(seed, "test")
        found = covered(drawn.owners > 0, Grid(1, grid, grid)).reshape(grid, grid)
        assert np.array_equal(found.numpy(), patch_mask(drawn, grid))


def test_any_raster_and_part_of_a_picture() -> None:
    shows = np.zeros((6, 6), dtype=bool)
    shows[:3, :3] = True
    assert covered(shows, Grid(1, 2, 2)).tolist() == [True, False, False, False]
    # The left half: its columns are half as wide.
    half = covered(shows, Grid(1, 2, 2, (0.0, 0.0, 0.5, 1.0)))
    assert half.tolist() == [True, True, False, False]
    # Slots that cut pixels, and ones smaller than a pixel, see the pixels that they touch.
    assert covered(shows, Grid(1, 4, 4)).sum() == 4
    assert covered(shows, Grid(1, 12, 12)).reshape(12, 12)[:6, :6].all()
    assert covered(shows, Grid(2, 2, 2)).tolist() == 2 * [True, False, False, False]


@pytest.mark.parametrize(
    ("keep", "slots"),
    [
        (2, [6, 10]),  # the second and the last one of four
        (4, [5, 6, 9, 10]),
        (6, [3, 5, 6, 9, 10, 13]),  # and the 4th and the 10th of the twelve others
        (16, list(range(16))),
    ],
)
def test_things_come_first_and_background_fills_evenly(keep: int, slots: list[int]) -> None:
    shows = np.zeros((4, 4), dtype=bool)
    shows[1:3, 1:3] = True
    found = choose(shows, (Grid(1, 4, 4),), keep)
    assert found.is_selection
    assert found.m == keep
    assert found.anchors.tolist() == slots


def test_a_picture_that_shows_nothing_or_nothing_else() -> None:
    for shows in (np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)):
        assert choose(shows, (Grid(1, 4, 4),), 2).anchors.tolist() == [4, 12]


def test_slots_worth_most_come_first() -> None:
    worth = torch.tensor([0, 2, 1, 1, 1, 0])
    assert [preferred(worth, keep).anchors.tolist() for keep in (1, 2, 3, 5, 6)] == [
        [1],
        [1, 3],  # the middle one of three
        [1, 2, 4],
        [1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]


def test_what_a_question_is_about() -> None:
    """An attribute is of one object, which has it; what is not there is nothing."""
    kinds: set[str] = set()
    for each in from_reference(8):
        assert each.scene is not None
        drawn = scene(*each.scene)
        for turn, asked in enumerate(each.turns):
            found = asked_about(each, turn)
            assert all(mask.any() and ground_truth(each)[mask].all() for mask in found)
            if asked.kind in ("colour", "shape", "pattern"):
                ((owner,),) = (np.unique(drawn.owners[mask]) for mask in found)
                thing = drawn.things[owner - 1]
                assert attribute(thing, asked.kind) == asked.answers[0]
            if asked.kind == "existence":
                assert bool(found) == (asked.answers[0] == "yes")
            if asked.kind == "comparison":
                assert len(found) == 2
            kinds.add(asked.kind)
    assert {"colour", "shape", "pattern", "existence", "comparison"} <= kinds


def test_other_pictures_have_no_ground_truth() -> None:
    mine = Dialogue("a", (Image.new("RGB", (8, 8)),), (Turn("?", ("x",)),))
    with pytest.raises(InputError, match="shipped scenes only") as error:
        ground_truth(mine)
    assert len(str(error.value).splitlines()) <= 4
    with pytest.raises(InputError, match="shipped scenes only"):
        asked_about(mine, 0)
    (one,) = from_reference(1)
    assert np.array_equal(ground_truth(one), scene(0, "test").owners != 0)
    assert ground_truth(one).any() and not ground_truth(one).all()


def test_a_share_is_of_all_rasters_of_a_picture() -> None:
    family = FAMILIES["llava_next"]
    model, inputs = family.build(), family.inputs(rows=1)
    (found,) = placed(model, inputs)
    assert len(found.layout.grids) > 1
    (((mapping,),),) = Oracle(keep=0.5).told(model, from_reference(1), 0, lambda: inputs, 4)
    assert mapping.n == found.layout.n and mapping.m == (found.layout.n + 1) // 2


def test_its_answers_go_by_a_key_of_their_own() -> None:
    keys = {Oracle(keep=4).key, Oracle(keep=8).key, Setting("uniform", 4).key}
    assert len(keys) == 3
    assert Oracle(keep=0.25).label == "oracle"


# ---------------------------------------------------------------------- known beforehand


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_placed_without_the_model(family: str) -> None:
    """As an attached run finds them, for every family, images and videos."""
    kind = FAMILIES[family]
    model = kind.build()
    cases = [kind.inputs(seed=1, images_per_row=[2, 1])]
    if kind.video is not None:
        cases.append(kind.video_inputs(rows=2, seed=1))
    for inputs in cases:
        found = placed(model, inputs)
        with torch.no_grad(), foveate.attach(model, "uniform", keep=1) as run:
            model(**inputs)
        assert [(p.row, p.index, p.slots.tolist()) for p in found] == [
            (item.row, item.index, item.slots.tolist()) for item in run.items
        ]


@pytest.mark.parametrize(
    ("method", "keep"),
    [
        ("fastv", 1),
        ("fastv", 0.05),
        ("pyramiddrop", 2),
        ("vtw", 1),
        ("polymorphic", 1),
        ("visionzip/fastv", 1),
    ],
)
def test_the_lowest_budget_is_the_lowest(method: str, keep: Any) -> None:
    """The count that is told works, the one below it does not; asked of the model itself."""
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs(rows=1)
    setting = Setting(method, keep)
    n = placed(model, inputs)[0].layout.n

    def works(count: Any) -> bool:
        try:
            with torch.no_grad(), foveate.attach(model, method, keep=count):
                model(**inputs)
        except BudgetError:
            return False
        return True

    found = refusal(model, setting, [n])
    if found is None:
        assert works(keep)
        return
    reason, lowest = found
    assert "cannot be reached" in reason
    assert not works(keep)
    assert lowest is not None and works(lowest) and not works(lowest - 1)


def test_what_cannot_be_met_is_known_beforehand() -> None:
    model = FAMILIES["llava"].build()
    found = refusal(model, Setting("fastv", 0.05), [25, 100])
    assert found is not None and found[1] == 26  # (100 + 3) / 4 and one token to go on with
    assert refusal(model, Setting("fastv", 0.5), [25, 100]) is None
    assert refusal(model, Setting("fastv", 1.0), [25]) is None
    many = refusal(model, Setting("pool", 26), [25, 100])
    assert many is not None and "n=25" in many[0] and many[1] is None
    deep = refusal(model, Setting("fastv", 0.5, fields=(("layer", 9),)), [25])
    assert deep is not None and "has layers 0..3" in deep[0]


def test_a_preset_is_checked_by_its_own_budget() -> None:
    model = FAMILIES["llava"].build()
    found = refusal(model, Setting("visionzip", preset="authors-64"), [25])
    assert found is None or found[1] is None
