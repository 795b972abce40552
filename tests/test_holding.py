"""One writer at a time."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from foveate.errors import SavedFileError
from foveate.holding import hold, training_in


def test_who_holds_it_keeps_others_out_and_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"
    held = hold(lock, "adding to it")
    with held:
        with pytest.raises(SavedFileError, match="Another run is adding to it") as error:
            hold(lock, "adding to it")
        assert len(str(error.value).splitlines()) <= 4
    # `held` is still known here: leaving it is what lets go, not that it is forgotten.
    again = hold(lock, "adding to it")
    again.close()
    held.close()
    hold(lock, "adding to it").close()


def _hold(folder: Path) -> None:
    held = training_in(folder)
    assert held is not None
    os._exit(9)  # nothing is cleaned up


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9 and (tmp_path / ".lock").exists()
    training_in(tmp_path).close()
