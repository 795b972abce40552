"""Batches of stored scenes: a batch is a function of its step, so training resumes where it was."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.reference.architecture import DEVIATION, MEAN, PATCH
from foveate.reference.layout import SIDE, Layout
from foveate.reference.scenes import scene_layout
from foveate.reference.store import Store

# Layouts that a process keeps: some 3 kB each, and there may be many processes.
_KEPT = 50_000


@dataclass
class Scenes:
    """Scenes of a store with their layouts (made once, the first ones kept)."""

    store: Store
    layouts: dict[int, Layout] = field(default_factory=dict)

    def layouts_of(self, indices: Sequence[int]) -> list[Layout]:
        """The layouts of these scenes."""
        return [self._layout(index) for index in indices]

    def _layout(self, index: int) -> Layout:
        found = self.layouts.get(index)
        if found is None:
            found = scene_layout(index, self.store.split)
            if len(self.layouts) < _KEPT:
                self.layouts[index] = found
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same store, and draws its own layouts."""
        return type(self), (self.store,)

    def indices(self, step: int, batch: int) -> list[int]:
        """The scenes of a step: in order, round and round (they are independent draws)."""
        return [(step * batch + offset) % self.store.count for offset in range(batch)]

    def arrays(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pixels uint8[b, 128, 128, 3] and owners uint8[b, 128, 128]; waits until drawn."""
        while self.store.filled <= max(indices):
            time.sleep(0.5)
        chosen = np.asarray(indices)
        return (
            torch.as_tensor(self.store.pixels[chosen]),
            torch.as_tensor(self.store.owners[chosen]),
        )


def pixel_values(pixels: Tensor, grid: int = SIDE // PATCH) -> Tensor:
    """uint8[b, s, s, 3] -> float[b, 3, 8 grid, 8 grid], as the image processor would give."""
    values = pixels.permute(0, 3, 1, 2).float()
    if grid * PATCH != values.shape[-1]:
        values = F.interpolate(values, size=grid * PATCH, mode="bicubic", antialias=True)
        values = values.round().clamp(0, 255)
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    return (values / 255 - mean[:, None, None]) / deviation[:, None, None]


def step_generator(seed: int, stage: int, step: int) -> np.random.Generator:
    """The random numbers of one step, whatever came before it."""
    return np.random.default_rng([seed, stage, step])
