"""Drawn training scenes on disk: they are drawn once and read in every pass and every run.

A store is a folder of flat arrays that is filled once, in order, and read through memory maps:
`pixels.npy` uint8[N, 128, 128, 3] and `owners.npy` uint8[N, 128, 128]; `filled` holds how many
scenes are there, `store.json` whose they are. Layouts are not stored: they are drawn again from the
seed when needed. What is there is never drawn over: a folder of other scenes is refused.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from foveate.errors import InputError
from foveate.reference.layout import SIDE
from foveate.reference.scenes import scene
from foveate.reference.worlds import FIRST

_CHUNK = 256
# Owners of a scene that was drawn on another machine may differ where rounding does.
_SAME = 0.99


class Store:
    """Scenes `0 .. count - 1` of one split in the first world, drawn once.

    Args:
        folder: where the arrays lie; made if absent.
        count: how many scenes are wanted; the folder may hold more.
        split: whose scenes.

    Raises:
        InputError: the folder holds scenes of another split or world, or has room for fewer.
    """

    def __init__(self, folder: str | Path, count: int, split: str = "train") -> None:
        self.folder, self.count, self.split = Path(folder), count, split
        self._check()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._record.exists():
            self._record.write_text(json.dumps(self._whose) + "\n")
        self.pixels = self._array("pixels", (SIDE, SIDE, 3))
        self.owners = self._array("owners", (SIDE, SIDE))

    @property
    def _record(self) -> Path:
        return self.folder / "store.json"

    @property
    def _whose(self) -> dict[str, str]:
        return {"split": self.split, "world": FIRST}

    def _check(self) -> None:
        """Hold what lies in the folder against what is wanted, before anything is written."""
        wanted = f"{self.count} scenes of {self.split} in the {FIRST} world"
        other = f"Expected {wanted}.\nGive another folder, or remove this one."
        if self._record.exists():
            whose = json.loads(self._record.read_text())
            if whose != self._whose:
                raise InputError(
                    f"{self.folder} holds scenes of {whose['split']} in the {whose['world']} "
                    f"world.\n{other}"
                )
        for path in map(self._path, ("pixels", "owners")):
            if path.exists() and (room := len(np.load(path, mmap_mode="r"))) < self.count:
                raise InputError(f"{path} has room for {room} scenes.\n{other}")
        if not self._record.exists() and self.filled and not self._first_is_mine():
            raise InputError(f"{self.folder} holds other scenes.\n{other}")

    def _first_is_mine(self) -> bool:
        """Whether the first scene of a store that does not say whose they are is the split's."""
        if not self._path("owners").exists():
            return True
        found = np.load(self._path("owners"), mmap_mode="r")[0]
        return bool((found == scene(0, self.split).owners).mean() > _SAME)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self._path(name)
        if path.exists():
            return np.load(path, mmap_mode="r+")
        (self.folder / "filled").write_text("0")
        return np.lib.format.open_memmap(path, "w+", np.uint8, (self.count, *shape))

    def _mark(self, filled: int) -> None:
        # Another run may have drawn more than this one wants.
        (self.folder / "filled").write_text(str(max(filled, self.filled)))

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
