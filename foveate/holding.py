"""One writer at a time: a folder, or a file, is held by the run that writes it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from foveate.errors import SavedFileError


def hold(lock: Path, doing: str) -> contextlib.ExitStack:
    """Hold what a lock file stands for; a process that ends, however it does, lets go of it.

    Args:
        lock: the file; made with its folder if absent, and left there.
        doing: what a run that holds it does, with its place, for the error: "training in .."

    Returns:
        What lets go of it: as a context manager, or by its `close`.

    Raises:
        SavedFileError: another run holds it, of this process or another.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    # Whichever thread took it, any may let go of it.
    held = FileLock(lock, thread_local=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise SavedFileError(
            f"Another run is {doing}.\nWait for it, or choose another folder."
        ) from None
    # Not the lock itself: whoever enters that takes it once more.
    stack = contextlib.ExitStack()
    stack.callback(held.release)
    return stack


def training_in(folder: Path) -> contextlib.ExitStack:
    """Hold the folder of a training.

    Args:
        folder: made if absent.

    Raises:
        SavedFileError: another run is training in it.
    """
    return hold(folder / ".lock", f"training in {folder}")
