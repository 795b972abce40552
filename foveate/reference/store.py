"""Drawn training scenes on disk: they are drawn once and read in every pass and every run.

A store is a folder of flat arrays that is filled once, in order, and read through memory maps:
`pixels.npy` uint8[N, 128, 128, 3] and `owners.npy` uint8[N, 128, 128]; `filled` holds how many
scenes are there. Layouts are not stored: they are drawn again from the seed when needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

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

    def fill(self) -> None:
        """Draw what is missing; another process may read what is already there."""
        for start in range(self.filled, self.count, _CHUNK):
            stop = min(start + _CHUNK, self.count)
            for index in range(start, stop):
                drawn = scene(index, self.split)
                self.pixels[index], self.owners[index] = drawn.pixels, drawn.owners
            self._mark(stop)


def main() -> None:
    """`python -m foveate.reference.store FOLDER --count N`: draw the training scenes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--split", default="train")
    options = parser.parse_args()
    Store(options.folder, options.count, options.split).fill()


if __name__ == "__main__":
    main()
