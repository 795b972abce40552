"""Batches drawn ahead: the same, in the same order, on the default device; errors end it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
import torch

from foveate.reference.ahead import drawn_ahead
from foveate.reference.batches import SceneBatches
from foveate.reference.data import Scenes
from foveate.reference.recipe import Recipe, TilesRecipe
from foveate.reference.store import Store
from foveate.reference.tiles_batches import TilesBatches

SMALL = {"vision_batch": 2, "language_batch": 2, "dialogues": 2}
# What a machine with one core says about two workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
# A worker must be able to import what it draws with, so what needs no scene is drawn by builtins.
full = partial(torch.full, (2,))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneBatches:
    store = Store(tmp_path_factory.mktemp("scenes"), 3)
    store.fill()
    return SceneBatches(0, replace(Recipe(), **SMALL), Scenes(store))


def test_batches_are_drawn_on_the_cpu_and_moved(scenes: SceneBatches) -> None:
    """What draws looks at values, which a tensor on the meta device has not."""
    tiles = TilesBatches(0, replace(TilesRecipe(), vision_clips=1, language_tokens=900, **SMALL))
    for batches in (scenes, tiles):
        with torch.device("meta"):
            (labelled,) = drawn_ahead(batches.labelled, range(1))
            (asked,) = drawn_ahead(batches.asked, range(1))
        views = labelled if batches is scenes else labelled.views
        assert views.pixels.is_meta and views.tables.is_meta
        assert asked.places.is_meta and asked.packed.ids.is_meta and asked.packed.about.is_meta
        # Control: elsewhere they are where tensors are.
        assert not next(drawn_ahead(batches.asked, range(1))).places.is_meta


def test_workers_draw_what_is_drawn_here(scenes: SceneBatches) -> None:
    """From a process that already knows the layouts, which the workers draw for themselves."""
    before = torch.get_rng_state()
    here = [scenes.asked(step) for step in range(5, 8)]
    with closing(drawn_ahead(scenes.asked, range(5, 100), 2)) as batches:
        for mine, theirs in zip(here, batches, strict=False):
            assert mine.grid == theirs.grid
            assert torch.equal(mine.pixels, theirs.pixels)
            torch.testing.assert_close(mine.places, theirs.places, rtol=0, atol=0, equal_nan=True)
            for name, value in vars(mine.packed).items():
                assert torch.equal(value, getattr(theirs.packed, name))
        assert len(multiprocessing.active_children()) == 2
    # Left early, no process stays, and the run's own random numbers are left alone.
    assert not multiprocessing.active_children()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_workers_drew_is_moved() -> None:
    with torch.device("meta"):
        assert all(batch.is_meta for batch in drawn_ahead(full, range(3), 2))


def _over(group: int) -> bool:
    """Whether no process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("time.sleep, range(0, 3600, 600)", "KeyboardInterrupt"),
        ("partial(truediv, 1), range(1, -2, -1)", "ZeroDivisionError"),
    ],
)
def test_a_run_ends_with_its_workers(arguments: str, error: str) -> None:
    """Ctrl-C, which reaches the whole group while workers draw, or an error in one of them."""
    program = f"""
import time
from functools import partial
from operator import truediv
from foveate.reference.ahead import drawn_ahead
for _ in drawn_ahead({arguments}, 2):
    print("now", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        if error == "KeyboardInterrupt":
            os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=100)
    assert error in said and process.returncode != 0
    # The last of them may still have to be waited for by whoever inherited it.
    deadline = time.monotonic() + 20
    while not _over(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _over(process.pid)
