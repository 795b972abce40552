"""Pictures of a mapping: dropped slots fade, kept ones do not, merged ones share a tint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import drawing
from foveate.attach import Item
from foveate.compressor import Grid
from foveate.errors import InputError
from foveate.mapping import Mapping

RED = (200, 30, 30)


def item(mapping: Mapping, *grids: Grid, is_video: bool = False) -> Item:
    return Item(0, 0, is_video, grids, torch.arange(mapping.n), 0, [(None, mapping)], mapping)


def cells(picture: Image.Image, height: int, width: int, left: int = 8, top: int = 8) -> np.ndarray:
    """(h, w, 3) the colour a little below and right of each cell's upper left corner."""
    pixels = np.asarray(picture)
    side = 64
    return np.array(
        [
            [pixels[top + y * side + 8, left + x * side + 8] for x in range(width)]
            for y in range(height)
        ]
    )


def test_kept_cells_are_the_picture_and_dropped_ones_fade() -> None:
    picture = Image.new("RGB", (40, 40), RED)
    kept = Mapping.select(torch.tensor([0, 3]), 4)
    out = drawing.draw(picture, item(kept, Grid(1, 2, 2)), title="", side=128)
    found = cells(out, 2, 2)
    assert (found[0, 0] == RED).all()
    assert (found[1, 1] == RED).all()
    # 0.2 * 200 + 0.8 * 238 = 230.4 and 0.2 * 30 + 0.8 * 238 = 196.4
    assert (found[0, 1] == (230, 196, 196)).all()
    assert (found[1, 0] == (230, 196, 196)).all()


def test_merged_cells_share_a_tint() -> None:
    picture = Image.new("RGB", (40, 40), RED)
    merged = Mapping.assign(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 2]))
    found = cells(drawing.draw(picture, item(merged, Grid(1, 2, 2)), title="", side=128), 2, 2)
    assert (found[0, 0] == found[0, 1]).all()
    assert not (found[0, 0] == RED).all()
    assert (found[1, 0] == RED).all()  # alone in its row


def test_a_raster_shows_its_own_part_of_the_picture() -> None:
    picture = Image.new("RGB", (40, 40), RED)
    picture.paste((0, 0, 255), (20, 0, 40, 40))
    grids = Grid(1, 1, 1), Grid(1, 1, 1, box=(0.5, 0.0, 1.0, 1.0))
    out = np.asarray(drawing.draw(picture, item(Mapping.identity(2), *grids), title="", side=64))
    # 8 of gap, a square panel of 64, 8 of gap, then the right half: 32 wide, 64 high.
    assert out.shape[1] == 8 + 64 + 8 + 32 + 8
    assert (out[40, 12] == RED).all()
    assert (out[40, 8 + 64 + 8 + 16] == (0, 0, 255)).all()


def test_a_video_shows_a_frame_for_each_step_in_time() -> None:
    frames = [Image.new("RGB", (16, 16), (60 * i, 0, 0)) for i in range(4)]
    video = item(Mapping.identity(2), Grid(2, 1, 1), is_video=True)
    out = np.asarray(drawing.draw(frames, video, title="", side=64))
    assert (out[40, 40] == (0, 0, 0)).all()
    assert (out[40, 8 + 64 + 8 + 32] == (120, 0, 0)).all()  # two frames a step
    with pytest.raises(InputError, match="2 steps in time; 1 frames"):
        drawing.draw(frames[:1], video)


def test_labels_stand_above() -> None:
    one = Image.new("RGB", (30, 20), RED)
    plain, titled = drawing.sheet([one, one]), drawing.sheet([one, one], ["both"])
    each = drawing.sheet([one, one, one], ["a", "b", "c"], columns=2)
    assert plain.size == (8 + 30 + 8 + 30 + 8, 8 + 20 + 8)
    assert titled.size == (plain.width, plain.height + 28)
    assert each.size == (plain.width, 8 + 48 + 8 + 48 + 8)


def test_writing(tmp_path: Path) -> None:
    one = Image.new("RGB", (30, 20), RED)
    with Image.open(drawing.save(one, tmp_path / "new" / "one.png")) as written:
        assert written.size == (30, 20)
    with pytest.raises(InputError, match=r"name it \.png"):
        drawing.save(one, tmp_path / "one.text")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "one.png"]


def test_a_layers_own_tokens_are_drawn() -> None:
    picture = Image.new("RGB", (40, 40), RED)
    first, second = Mapping.select(torch.tensor([0, 2, 3]), 4), Mapping.select(torch.tensor([1]), 3)
    steps = [(None, first), (2, second)]
    drawn = item(second @ first, Grid(1, 2, 2))
    drawn.steps[:] = steps
    kept = {
        layer: (cells(drawing.draw(picture, drawn, layer=layer, title="", side=128), 2, 2) == RED)
        .all(-1)
        .tolist()
        for layer in (None, 0, 1, 2, 3)
    }
    assert kept[0] == kept[1] == [[True, False], [True, True]]
    assert kept[2] == kept[3] == kept[None] == [[False, False], [True, False]]
    assert drawn.at(1).m == 3 and item(first).at(0) is first
    nothing = item(Mapping.identity(4), Grid(1, 2, 2))
    nothing.steps.clear()
    assert nothing.at(0).is_identity


def test_without_the_margin() -> None:
    picture = Image.new("RGB", (40, 20), RED)
    drawn = drawing.bare(drawing.draw(picture, item(Mapping.identity(2), Grid(1, 1, 2)), title=""))
    assert drawn.size == drawing.enlarged(picture).size == (512, 256)
    assert drawing.enlarged(Image.new("RGB", (1, 4000))).size == (1, 512)


def test_values_go_from_the_picture_to_red() -> None:
    picture = Image.new("RGB", (40, 40), (60, 120, 180))  # half way to its grey: 90, 120, 150
    out = drawing.heat(picture, (Grid(1, 2, 2),), [-1.0, 0.0, 2.0, 4.0], side=128)
    found = cells(out, 2, 2)
    assert (found[0] == (90, 120, 150)).all()
    # The largest is 0.8 red: 0.2 * 90 + 0.8 * 220; half of it 0.4.
    assert (found[1, 1] == (194, 48, 54)).all()
    assert (found[1, 0] == (142, 84, 102)).all()
    nothing = cells(drawing.heat(picture, (Grid(1, 2, 2),), [0.0] * 4, side=128), 2, 2)
    assert (nothing == (90, 120, 150)).all()
    with pytest.raises(InputError, match="each of the 4 slots; got 3"):
        drawing.heat(picture, (Grid(1, 2, 2),), [1.0] * 3)


def test_values_of_several_rasters_and_frames() -> None:
    grids = (Grid(2, 1, 1), Grid(1, 1, 2))
    frames = [Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40))]
    out = np.asarray(drawing.heat(frames, grids, [0.0, 1.0, 0.0, 0.0], side=64))
    red = [int((out[20, x] == (176, 24, 24)).all()) for x in (40, 112, 184, 210)]
    assert red == [0, 1, 0, 0]  # the second frame; then both halves of the last raster
