"""Stored runs as one file beside the page that is made of them, and back again.

What a page reads is kept: answers, what was noted, and pictures, of the models that it is about.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from foveate.errors import InputError

SUFFIX = ".tar.xz"
_KEPT = (".json", ".jsonl", ".png")


def pack(store: Path, parts: Iterable[str], file: Path) -> Path:
    """What a page is made of, as one file.

    The same runs give the same bytes, whenever and wherever they were made.

    Args:
        store: folder of stored runs.
        parts: files and folders in it; those that are not there are left out.
        file: what is written, whole or not at all.
    """
    places = [store / part for part in parts]
    inside = [each for place in places for each in (place, *place.rglob("*"))]
    found = sorted(each for each in inside if each.is_file() and each.suffix in _KEPT)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with tarfile.open(partial, "w:xz", preset=9 | lzma.PRESET_EXTREME) as packed:
        for each in found:
            entry = tarfile.TarInfo(each.relative_to(store).as_posix())
            entry.size = each.stat().st_size
            with each.open("rb") as content:
                packed.addfile(entry, content)
    partial.replace(file)
    return file


def unpack(file: Path, store: Path) -> None:
    """The folder that `pack` was given, as far as it was kept.

    Raises:
        InputError: the file is none of `pack`.
    """
    partial = store.with_name(f"partial-{store.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(file, "r:xz") as packed:
            packed.extractall(partial, filter="data")
        partial.rename(store)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(f"{file} holds no stored runs: {error}.\nRun the page anew.") from None
