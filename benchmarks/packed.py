"""Stored runs as one file beside the page that is made of them, and back again.

What a page reads is kept: answers, what was noted, and pictures. What can be made again from those
commands that the page prints, compressors and caches, is left out.
"""

from __future__ import annotations

import lzma
import tarfile
from pathlib import Path

from foveate.errors import InputError

SUFFIX = ".tar.xz"
_KEPT = (".json", ".jsonl", ".png")
_LEFT_OUT = ("trained", "cache")


def pack(store: Path, file: Path) -> Path:
    """Everything in a folder of stored runs that pages are made of, as one file.

    The same runs give the same bytes, whenever and wherever they were made.

    Args:
        store: the folder.
        file: what is written, whole or not at all.
    """
    found = sorted(
        each
        for each in store.rglob("*")
        if each.suffix in _KEPT and not set(_LEFT_OUT) & set(each.relative_to(store).parts)
    )
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
    try:
        with tarfile.open(file, "r:xz") as packed:
            packed.extractall(store, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{file} holds no stored runs: {error}.\nRun the page anew.") from None
