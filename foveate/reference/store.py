"""Drawn training scenes on disk: they are drawn once and read in every pass and every run.

A store is a folder of flat arrays that is filled once, in order, and read through memory maps:
`pixels.npy` uint8[N, 128, 128, 3] and `owners.npy` uint8[N, 128, 128]; `filled` holds how many
scenes are there. Layouts are not stored: they are drawn again from the seed when needed.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from foveate.reference.layout import SIDE
from foveate.reference.scenes import scene

_CHUNK = 256


class Store:
    """Scenes `0 .. count - 1` of one split, drawn once.

    Args:
        folder: where the arrays lie; made if absent.
        count: how many scenes the store is for.
        split: whose scenes.
    """

    def __init__(self, folder: str | Path, count: int, split: str = "train") -> None:
        self.folder, self.count, self.split = Path(folder), count, split
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pixels = self._array("pixels", (count, SIDE, SIDE, 3))
        self.owners = self._array("owners", (count, SIDE, SIDE))

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if path.exists() and np.load(path, mmap_mode="r").shape == shape:
            return np.load(path, mmap_mode="r+")
        self._mark(0)
        return np.lib.format.open_memmap(path, "w+", np.uint8, shape)

    def _mark(self, filled: int) -> None:
        (self.folder / "filled").write_text(str(filled))

    @property
    def filled(self) -> int:
        """How many scenes are drawn already."""
        path = self.folder / "filled"
        return int(path.read_text() or 0) if path.exists() else 0

    def fill(self, workers: int = 1) -> None:
        """Draw what is missing; another process may read what is already there.

        Args:
            workers: processes that draw; with one it is done here.
        """
        starts = range(self.filled, self.count, _CHUNK)
        parts = [range(start, min(start + _CHUNK, self.count)) for start in starts]
        if workers == 1 or len(parts) < 2:
            for part in parts:
                _draw(self, part)
                self._mark(part.stop)
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_draw, self, part) for part in parts]
            for part, job in zip(parts, jobs, strict=True):
                job.result()
                self._mark(part.stop)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same files."""
        return type(self), (self.folder, self.count, self.split)


def _draw(store: Store, part: range) -> None:
    for index in part:
        drawn = scene(index, store.split)
        store.pixels[index], store.owners[index] = drawn.pixels, drawn.owners
