"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from foveate.errors import InputError

# Decoder and tower have a head for every 32 numbers, the decoder two of them in each group.
_HEAD, _GROUP = 32, 64


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result besides the seed.

    Attributes:
        scenes: how many training scenes are drawn; passed over round and round.
        vision_steps, vision_batch: length and pictures a step of stage 1.
        vision_muon, vision_adam: peak learning rates of stage 1.
        language_steps, language_batch: length and pictures a step of stage 2.
        language_muon, language_adam: peak learning rates of stage 2.
        dialogues: dialogues of up to three turns about each picture of a step.
        captions: share of descriptions among them at the start and at the end; the change is
            linear over the first 40 % of the steps.
        low_share: share of the steps at a lower resolution, in both stages.
        gaze, gaze_until: weight of the hint where to look at the start of stage 2, and the part of
            the stage over which it fades to nothing.
        place: weight of telling the place of what is named, times that of the hint.
        low_first, low_until: that share in the first part of stage 2, and how long this part is:
            looking up is learned sooner, and at a third of the cost, among fewer patches.
        vision_width, vision_layers, width, layers: size of the model.
    """

    scenes: int = 48_000
    vision_steps: int = 2_600
    vision_batch: int = 16
    vision_muon: float = 0.02
    vision_adam: float = 0.004
    language_steps: int = 4_000
    language_batch: int = 8
    language_muon: float = 0.02
    language_adam: float = 0.003
    dialogues: int = 6
    captions: tuple[float, float] = (0.6, 0.15)
    gaze: float = 0.3
    gaze_until: float = 0.6
    place: float = 3.0
    low_share: float = 0.15
    low_first: float = 0.5
    low_until: float = 0.3
    vision_width: int = 128
    vision_layers: int = 5
    width: int = 128
    layers: int = 5

    # Fields -> the least they may be.
    least: ClassVar[dict[str, int]] = {
        "scenes": 1,
        "vision_steps": 0,
        "vision_batch": 1,
        "language_steps": 0,
        "language_batch": 1,
        "dialogues": 1,
        "vision_width": _HEAD,
        "vision_layers": 2,
        "width": _GROUP,
        "layers": 1,
    }
    rates: ClassVar[tuple[str, ...]] = (
        "vision_muon",
        "vision_adam",
        "language_muon",
        "language_adam",
        "gaze",
        "place",
    )
    shares: ClassVar[tuple[str, ...]] = ("gaze_until", "low_share", "low_first", "low_until")

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} must be at least {least}; got {value}.")
        for name, part in (("vision_width", _HEAD), ("width", _GROUP)):
            if (value := getattr(self, name)) % part:
                raise InputError(
                    f"{name} must be a multiple of {part}, for whole heads; got {value}."
                )
        for name in self.rates:
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise InputError(f"{name} must be at least 0 and finite; got {value}.")
        shares = [(name, getattr(self, name)) for name in self.shares]
        for name, value in [*shares, *(("captions", share) for share in self.captions)]:
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be a share from 0 to 1; got {value}.")
        if not self.gaze_until:
            raise InputError("gaze_until must be above 0; for no hint at all, set gaze=0.")


# For a GPU: more and longer, on a somewhat larger model. It has not been run, so how long it takes
# is not known. What was measured, on a CPU core: a scene is drawn in 4 ms, a batch in 70 ms for
# stage 1 and 160 ms for stage 2, 80 minutes in all, which workers share. 20 steps of stage 2 a
# second take the whole of four cores.
GPU = Recipe(
    scenes=300_000,
    vision_steps=12_000,
    vision_batch=64,
    language_steps=16_000,
    language_batch=32,
    vision_width=160,
    vision_layers=6,
    width=192,
    layers=6,
)


@dataclass(frozen=True)
class TilesRecipe(Recipe):
    """What decides the result of the second model, besides the seed.

    Attributes:
        scenes: pictures are drawn from this many seeds, passed over round and round.
        vision_batch: scenes a step of stage 1; the overview and some tiles of each are shown.
        vision_tiles: tiles of each.
        vision_clips, vision_frames: clips a step of stage 1, and frames of each.
        language_batch: the most pictures a step of stage 2.
        language_tokens: about how many tokens, text included, such a step holds.
        clip_share: how often a step of stage 2 shows clips.
        small_first: how often, in the first part of stage 2, it shows the smallest scenes or the
            shortest clips: looking up is learned sooner among fewer tokens. Objects in resized
            views are too small for that, so `low_first` is no larger than `low_share` here.
        low_share, low_first: as in `Recipe`; views are resized, or only an overview is shown.
        started_from: fingerprint of the `reference` that it goes on from, whose sizes it has.
    """

    scenes: int = 1_000_000
    vision_steps: int = 1_000
    vision_batch: int = 8
    vision_tiles: int = 4
    vision_clips: int = 4
    vision_frames: int = 6
    language_steps: int = 4_000
    language_batch: int = 12
    language_tokens: int = 4_000
    vision_muon: float = 0.005
    vision_adam: float = 0.001
    language_muon: float = 0.01
    language_adam: float = 0.0015
    captions: tuple[float, float] = (0.3, 0.15)
    clip_share: float = 0.45
    small_first: float = 0.7
    low_first: float = 0.15
    started_from: str = ""

    least: ClassVar[dict[str, int]] = {
        **Recipe.least,
        "vision_tiles": 0,
        "vision_clips": 0,
        "vision_frames": 1,
        "language_tokens": 1,
    }
    shares: ClassVar[tuple[str, ...]] = (*Recipe.shares, "clip_share", "small_first")


# For a GPU, as `GPU`; it has not been run either. A core draws a batch in 420 ms for stage 1 and
# 580 ms for stage 2, four hours in all: 20 steps a second take twelve cores.
TILES_GPU = TilesRecipe(
    vision_steps=10_000,
    vision_batch=24,
    vision_clips=18,
    language_steps=18_000,
    language_batch=32,
    language_tokens=24_000,
    vision_width=160,
    vision_layers=6,
    width=192,
    layers=6,
)
