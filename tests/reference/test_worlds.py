"""The first world stays what the shipped weights were trained on; the second is another one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from foveate.errors import UnknownName
from foveate.reference import samples, words
from foveate.reference.layout import Thing
from foveate.reference.scenes import Scene, dialogue, scene, scene_layout
from foveate.reference.second_world import HUES
from foveate.reference.tiled import CANVASES
from tests.reference.test_scenes import expected

# Recorded before canvases and worlds came in: every sixteenth pixel's sum over the channels.
PIXELS = [
    [470, 499, 394, 456, 413, 479, 675, 441],
    [360, 486, 416, 453, 443, 448, 420, 413],
    [453, 104, 671, 471, 235, 396, 439, 461],
    [459, 396, 412, 464, 494, 445, 445, 458],
    [439, 352, 368, 211, 426, 470, 453, 332],
    [415, 416, 477, 213, 419, 399, 459, 455],
    [435, 438, 436, 465, 499, 442, 181, 405],
    [400, 408, 420, 453, 505, 511, 437, 418],
]
AREAS = [13783, 97, 134, 219, 481, 242, 251, 189, 108, 560, 320]


@pytest.fixture(scope="module")
def second() -> list[Scene]:
    return [scene(seed, "validation", "second") for seed in range(60)]


def test_the_first_world_is_as_it_was() -> None:
    """The shipped weights know these pictures; rounding may differ by one between processors."""
    drawn = scene(7, "test")
    assert drawn.things[0] == Thing(
        colour="yellow",
        shape="triangle",
        size="small",
        pattern="striped",
        x=40.59521914967881,
        y=15.818372873884503,
        radius=8.618874809471185,
        angle=0.17759098197837236,
    )
    assert np.abs(drawn.pixels[8::16, 8::16].sum(-1, dtype=int) - PIXELS).max() <= 3
    assert np.bincount(drawn.owners.ravel()).tolist() == AREAS
    # Control: another scene is none of this.
    assert np.bincount(scene(8, "test").owners.ravel()).tolist() != AREAS


DRAWS = """
import hashlib
import numpy as np
from foveate.reference import clip_samples, rendering, scenes, tiled_samples
drawn = [scenes.scene(seed, "test").pixels for seed in (100, 318)]
drawn += [np.asarray(sample.image) for sample in tiled_samples("test", 3)]
drawn += [np.asarray(frame) for sample in clip_samples("test", 2) for frame in sample.frames]
values = np.random.default_rng(0).standard_normal((20, 20), dtype=np.float32) * 7.3
weights = rendering.interpolated(np.eye(20, dtype=np.float32), 20, 64)
for each in (np.concatenate([one.ravel() for one in drawn]), weights @ values @ weights.T):
    print(hashlib.sha256(each.tobytes()).hexdigest())
"""


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="names kernels of OpenBLAS"
)
def test_the_order_of_sums_on_a_processor_changes_no_picture() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", DRAWS],
            env=os.environ | {"OPENBLAS_CORETYPE": kernels},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for kernels in ("Nehalem", "Haswell")
    ]
    (pictures, products), (others, other_products) = found
    assert pictures == others
    # Control: a matrix product would have changed the first picture.
    assert products != other_products


def test_unknown_world_suggests() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'second'"):
        scene(0, "test", "secnd")


def test_worlds_share_no_layout() -> None:
    layouts = [
        scene_layout(seed, "train", world) for world in ("first", "second") for seed in range(30)
    ]
    assert len(set(layouts)) == len(layouts)
    assert scene_layout(3, "train", "second") == scene_layout(3, "train", "second")


def test_samples_of_the_second_world() -> None:
    (one,), (other,) = samples("test", 1), samples("test", 1, world="second")
    assert one.image.size == other.image.size == (128, 128)
    assert one.turns != other.turns
    known = words.vocabulary(clips=False)
    for question, answer, _ in other.turns:
        assert all(word in known for word in f"{question} {answer}".split())


def test_answers_in_the_second_world_are_right(second: list[Scene]) -> None:
    """By the second reading of tests/reference/test_scenes.py."""
    for drawn in second:
        for seed in range(3):
            turns = dialogue(drawn, seed)
            assert len(turns) == 3
            for turn in turns:
                assert expected(drawn, turn.text) == turn.answer, turn


@pytest.mark.parametrize("canvas", CANVASES)
def test_nothing_is_hidden_or_outside(canvas: tuple[int, int]) -> None:
    for seed in range(20):
        drawn = scene(seed, "validation", "second", canvas)
        assert drawn.pixels.shape == (canvas[1], canvas[0], 3)
        assert drawn.pixels.dtype == np.uint8
        shown = set(np.unique(drawn.owners)) - {0}
        assert shown == set(range(1, 1 + len(drawn.things) + len(drawn.plates)))
        for index, plate in enumerate(drawn.plates, start=1 + len(drawn.things)):
            assert (drawn.owners == index).sum() == plate.width * plate.height


def crowding(drawn: Scene) -> float:
    """Mean distance between two objects, in pixels."""
    pairs = combinations(drawn.things, 2)
    return float(np.mean([np.hypot(a.x - b.x, a.y - b.y) for a, b in pairs]))


def test_the_second_world_is_another_distribution(second: list[Scene]) -> None:
    first = [scene(seed, "validation") for seed in range(60)]

    def small(drawn: list[Scene]) -> float:
        sizes = [thing.size for each in drawn for thing in each.things]
        return sizes.count("small") / len(sizes)

    def contrast(drawn: list[Scene]) -> float:
        return float(np.mean([each.pixels[each.owners == 0].std(0).mean() for each in drawn]))

    def turned(drawn: list[Scene]) -> float:
        return max(abs(thing.angle) for each in drawn for thing in each.things)

    assert small(second) > small(first) + 0.1
    assert contrast(second) > 1.4 * contrast(first)
    assert turned(second) > 2.5 > 0.3 > turned(first)
    # Crowds are closer together, and what lies along the borders is further apart.
    assert np.std([crowding(each) for each in second]) > 1.3 * np.std(
        [crowding(each) for each in first]
    )


def test_a_hue_of_the_second_world_is_still_its_colour() -> None:
    """Nearest among the first world's hues, so that the word is not wrong."""
    for word, hue in HUES.items():
        away = {each: np.abs(np.subtract(rgb, hue)).sum() for each, rgb in words.COLOURS.items()}
        assert min(away, key=away.__getitem__) == word
        assert hue != words.COLOURS[word]
