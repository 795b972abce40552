"""What the steps of a run are shown.

A batch is a function of seed, stage and step alone: any process may draw it, and a run that was
stopped goes on with the batch that it would have had. Nothing here needs a model, nor its code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from foveate.reference.architecture import GRID
from foveate.reference.data import Scenes, step_generator
from foveate.reference.dialogues import training_dialogues
from foveate.reference.labels import centres_of, image_labels, owner_tables
from foveate.reference.layout import SIDE
from foveate.reference.packing import Packed, pack, text_encoder
from foveate.reference.recipe import Recipe

VISION, LANGUAGE = 1, 2
# Low-resolution grids of the resize baseline: 64, 96 and 112 pixels.
LOW_GRIDS = (8, 12, 14)


class Batches(ABC):
    """What every step of both stages is shown. It is pickled to be drawn in other processes.

    Args:
        seed: of the run.
        recipe: of the run.
    """

    def __init__(self, seed: int, recipe: Recipe) -> None:
        self.seed, self.recipe = seed, recipe

    @abstractmethod
    def labelled(self, step: int) -> Any:
        """The pictures of a step of the first stage, with what they show."""

    @abstractmethod
    def asked(self, step: int) -> Any:
        """The pictures of a step of the second stage, with dialogues about them."""

    def _random(self, stage: int, step: int) -> np.random.Generator:
        return step_generator(self.seed, stage, step)

    def _captions(self, step: int) -> float:
        """The share of dialogues that are descriptions."""
        first, last = self.recipe.captions
        done = min(1.0, step / self.recipe.language_steps / 0.4)
        return first + (last - first) * done

    def _early(self, step: int) -> bool:
        """Whether a step of the second stage belongs to its first part."""
        return step < self.recipe.low_until * self.recipe.language_steps

    def _low_share(self, step: int) -> float:
        """How often pictures are shown at a low resolution in the second stage."""
        return self.recipe.low_first if self._early(step) else self.recipe.low_share


@dataclass(frozen=True)
class LabelledScenes:
    """Scenes with what they show.

    Attributes:
        pixels: uint8[b, 128, 128, 3].
        owners: uint8[b, 128, 128].
        tables: int64[b, owners, labels], as `labels.owner_table`.
        centres: float[b, owners, 2], likewise.
        whole: labels of whole pictures, as `labels.image_labels`.
        grid: patches a side at which the tower is shown them.
    """

    pixels: Tensor
    owners: Tensor
    tables: Tensor
    centres: Tensor
    whole: dict[str, Tensor]
    grid: int


@dataclass(frozen=True)
class AskedScenes:
    """Scenes with dialogues about them.

    Attributes:
        pixels: uint8[b, 128, 128, 3].
        owners: uint8[b, 128, 128].
        places: float[b, owners, 2], where each owner is, -1 to 1; NaN where there is none.
        packed: the dialogues.
        grid: patches a side at which the tower is shown the scenes.
    """

    pixels: Tensor
    owners: Tensor
    places: Tensor
    packed: Packed
    grid: int


class SceneBatches(Batches):
    """Stored scenes, round and round.

    Args:
        seed, recipe: as for all `Batches`.
        scenes: the training scenes.
    """

    def __init__(self, seed: int, recipe: Recipe, scenes: Scenes) -> None:
        super().__init__(seed, recipe)
        self.scenes = scenes

    def labelled(self, step: int) -> LabelledScenes:
        """The scenes of a step of the first stage."""
        indices = self.scenes.indices(step, self.recipe.vision_batch)
        grid = step_grid(self._random(VISION, step), self.recipe.low_share)
        return labelled_scenes(self.scenes, indices, grid)

    def asked(self, step: int) -> AskedScenes:
        """The scenes of a step of the second stage."""
        rng = self._random(LANGUAGE, step)
        indices = self.scenes.indices(step, self.recipe.language_batch)
        grid = step_grid(rng, self._low_share(step))
        count, captions = self.recipe.dialogues, self._captions(step)
        layouts = self.scenes.layouts_of(indices)
        turns = [training_dialogues(layout, rng, count, captions) for layout in layouts]
        pixels, owners = self.scenes.arrays(indices)
        places = centres_of(layouts) * 2 / SIDE - 1
        return AskedScenes(pixels, owners, places, pack(turns, text_encoder()), grid)


def labelled_scenes(scenes: Scenes, indices: Sequence[int], grid: int = GRID) -> LabelledScenes:
    """These scenes with what they show.

    Args:
        scenes: the store's.
        indices: which of them.
        grid: patches a side.
    """
    pixels, owners = scenes.arrays(indices)
    layouts = scenes.layouts_of(indices)
    tables, centres = owner_tables(layouts)
    return LabelledScenes(pixels, owners, tables, centres, image_labels(layouts), grid)


def step_grid(rng: np.random.Generator, low_share: float) -> int:
    """The grid of one step: the full one, or now and then a lower resolution."""
    return int(rng.choice(LOW_GRIDS)) if rng.random() < low_share else GRID
