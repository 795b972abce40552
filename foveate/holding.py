"""One writer at a time: a folder, or a file, is held by the process that adds to it."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from foveate.errors import SavedFileError


def hold(lock: Path, doing: str) -> BaseFileLock:
    """Hold what a lock file stands for; a process that ends, however it does, lets go of it.

    Args:
        lock: the file; made with its folder if absent, and left there.
        doing: what a process that holds it does, with its place, for the error: "training in .."

    Returns:
        What lets go of it: a context manager, or its `release`.

    Raises:
        SavedFileError: another one holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise SavedFileError(
            f"Another process is {doing}.\nWait for it, or choose another folder."
        ) from None
    return held
