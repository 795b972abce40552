"""Entries on disk: safetensors files that are whole or not there, within a limit of bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path

from torch import Tensor

from foveate.errors import InputError, SavedFileError

_PARTIAL, _STALE = ".partial", 3600.0  # seconds


def packed(tensors: Table[str, Tensor], meta: Table[str, str]) -> bytes:
    """The bytes of a safetensors file."""
    from safetensors.torch import save

    host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return bytes(save(host, metadata=dict(meta)))


def write(file: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of its own process: two may compute the same entry.
    partial = file.with_name(f"{file.name}.{os.getpid()}{_PARTIAL}")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def is_whole(file: Path) -> bool:
    """Whether a file of tensors is there and not cut off."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return False
    try:
        with safe_open(str(file), framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def read_tensors(
    file: Path, begins: Sequence[str] = ("",)
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and what was said beside them.

    Args:
        file: as `packed` made it.
        begins: only those whose names begin with one of these, in their order.

    Raises:
        SavedFileError: it is not there, or cut off.
    """
    return _read(file, begins)


def read_meta(file: Path) -> dict[str, str]:
    """What was said beside the tensors of a file.

    Raises:
        SavedFileError: it is not there, or cut off.
    """
    return _read(file, ())[1]


def _read(file: Path, begins: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            every = sorted(opened.keys()) if begins else []
            names = [each for begin in begins for each in every if each.startswith(begin)]
            return {name: opened.get_tensor(name) for name in names}, dict(opened.metadata())
    except (SafetensorError, OSError) as error:
        raise SavedFileError(
            f"{file} is not there or cut off ({type(error).__name__}).\n"
            "Start the same training again: what is missing is computed."
        ) from error


def nbytes(files: Iterable[Path]) -> int:
    """What files take together; those that are not there take nothing."""
    return sum(each.stat().st_size for each in set(files) if each.is_file())


def _clear(folder: Path) -> None:
    """Remove what a killed process left of files that it was writing, an hour ago or more."""
    for each in folder.rglob(f"*{_PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):  # another process has done so
            if time.time() - each.stat().st_mtime > _STALE:
                each.unlink()


class Room:
    """What may be written into a folder; every write asks it first.

    Args:
        folder: where the files go.
        limit: bytes that all files together may take; None for no limit.
        files: all of them, there or not.
        processes: how many write into it at the same time: each has an equal part of what is left.
    """

    def __init__(
        self, folder: Path, limit: int | None, files: Iterable[Path], processes: int = 1
    ) -> None:
        self.folder, self.limit = folder, limit
        self.there = nbytes(files)
        _clear(folder)
        self._left = None if limit is None else (limit - self.there) // processes

    @property
    def free(self) -> int:
        """Bytes that the disk has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free

    def write(self, contents: Table[Path, bytes]) -> None:
        """Write some files in their order: all of them, or none where they are too large.

        Raises:
            InputError: they would pass the limit, or the disk has no room for them.
        """
        grown = sum(map(len, contents.values())) - nbytes(contents)
        if self._left is not None and grown > self._left:
            raise InputError(
                f"What the full model says would take more than the limit of {self.limit:,} "
                f"bytes:\n{self.there:,} are in {self.folder}, the next {len(contents)} files need "
                f"{grown:,}.\n"
                "Raise the limit, and the same call goes on from there; or use fewer dialogues."
            )
        if grown > (free := self.free):
            raise InputError(
                f"The next {len(contents)} files need {grown:,} bytes in {self.folder};\nits disk "
                f"has {free:,} free. Choose another folder, or make room and start again."
            )
        for file, content in contents.items():
            write(file, content)
        self.there += grown
        if self._left is not None:
            self._left -= grown


def spread(groups: Sequence[object], most: int) -> list[int]:
    """Numbers of the first entries of some groups, `most` of them at even distances.

    Args:
        groups: of each entry, what it is of.
        most: how many, at least 1.
    """
    first: dict[object, int] = {}
    for number, group in enumerate(groups):
        first.setdefault(group, number)
    found = list(first.values())
    most = min(most, len(found))
    return [found[i * len(found) // most] for i in range(most)]
