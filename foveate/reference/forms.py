"""The forms in which pictures reach the tiled model: tiles, an overview alone, a clip's frames.

A form draws a picture as views, puts the projected views together as the model itself does it, and
knows which object each visual token shows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from foveate.reference.clip_questions import CLIP_KINDS, ask_clip, describe_actor, list_actors
from foveate.reference.clips import FRAMES, Script, clip
from foveate.reference.labels import cell_owners
from foveate.reference.language_stage import mixed, training_dialogues
from foveate.reference.layout import Layout
from foveate.reference.onevision import FRAME_GRID, VIEW_GRID
from foveate.reference.questions import TURNS, Question
from foveate.reference.tiled import CANVASES, TILE, asked_about, tiled_scene
from foveate.reference.views import Views, clip_views, scene_views
from foveate.reference.worlds import FIRST

_VIEW_TOKENS = VIEW_GRID * VIEW_GRID
# A frame's token shows an object that covers this many of its 16 x 16 pixels.
_COVERED = 16


@dataclass(frozen=True)
class Drawn:
    """A picture as the model looks at it.

    Attributes:
        views: in the order in which the model takes them.
        subject: what is asked about.
    """

    views: Views
    subject: Layout | Script


class Form(ABC):
    """How a picture is shown. All pictures of a batch have one form."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Visual tokens of a picture, newlines included."""

    @abstractmethod
    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The picture of this seed."""

    @abstractmethod
    def visual(self, model: LlavaOnevisionForConditionalGeneration, projected: Tensor) -> Tensor:
        """The decoder's visual tokens, put together by the model's own methods.

        Args:
            model: whose methods and newline.
            projected: float[b, views, 64, width], the projected patches of every view.

        Returns:
            float[b, tokens, width].
        """

    @abstractmethod
    def owners(self, views: Sequence[Views]) -> Tensor:
        """Which object each visual token shows, 0 for none and newlines: int64[b, tokens]."""


@dataclass(frozen=True)
class Tiled(Form):
    """Overview and tiles of a scene.

    Attributes:
        canvas: width and height in pixels.
    """

    canvas: tuple[int, int]

    @property
    def tokens(self) -> int:
        """The overview, the mosaic, and a newline for each of the mosaic's rows."""
        columns, rows = (side // TILE * VIEW_GRID for side in self.canvas)
        return _VIEW_TOKENS + rows * (columns + 1)

    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The scene of this seed on this canvas."""
        drawn = tiled_scene(seed, split, world, self.canvas)
        return Drawn(scene_views(drawn), asked_about(drawn.layout, self.canvas))

    def visual(self, model: LlavaOnevisionForConditionalGeneration, projected: Tensor) -> Tensor:
        """As `get_image_features` packs them."""
        width, height = self.canvas
        packed, _ = model.model.pack_image_features(
            list(projected),
            [[height, width]] * len(projected),
            image_newline=model.model.image_newline,
            vision_aspect_ratio=model.config.vision_aspect_ratio,
        )
        return torch.stack(packed)

    def owners(self, views: Sequence[Views]) -> Tensor:
        """The overview's patches, then the mosaic's rows, each with its newline."""
        across, down = (side // TILE for side in self.canvas)
        patches = torch.stack([each.patch_owners() for each in views])
        mosaic = patches[:, 1:].unflatten(1, (down, across)).unflatten(3, (VIEW_GRID, VIEW_GRID))
        rows = mosaic.transpose(2, 3).flatten(3).flatten(1, 2)
        return torch.cat([patches[:, 0], F.pad(rows, (0, 1)).flatten(1)], dim=1)


@dataclass(frozen=True)
class Overview(Form):
    """A scene at 64 x 64 pixels and one newline: one of several pictures of a prompt.

    It is what a resized picture costs, so a share of the training shows it.

    Attributes:
        canvas: of the scene before it is resized.
    """

    canvas: tuple[int, int]

    @property
    def tokens(self) -> int:
        """The view and a newline."""
        return _VIEW_TOKENS + 1

    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The scene of this seed, without its tiles."""
        drawn = Tiled(self.canvas).draw(seed, split, world)
        return Drawn(drawn.views[:1], drawn.subject)

    def visual(self, model: LlavaOnevisionForConditionalGeneration, projected: Tensor) -> Tensor:
        """As `get_image_features` packs a picture that was not cut into tiles."""
        packed, _ = model.model.pack_image_features(
            list(projected),
            [[TILE, TILE]] * len(projected),
            image_newline=model.model.image_newline,
            vision_aspect_ratio=model.config.vision_aspect_ratio,
        )
        return torch.stack(packed)

    def owners(self, views: Sequence[Views]) -> Tensor:
        """The view's patches and the newline."""
        return F.pad(torch.cat([each.patch_owners() for each in views]), (0, 1))


@dataclass(frozen=True)
class Frames(Form):
    """A clip.

    Attributes:
        count: how many pictures are taken of it.
    """

    count: int

    @property
    def tokens(self) -> int:
        """Pooled frames and one newline."""
        return self.count * FRAME_GRID * FRAME_GRID + 1

    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The clip of this seed with this number of frames."""
        drawn = clip(seed, split, world, self.count)
        return Drawn(clip_views(drawn), drawn.script)

    def visual(self, model: LlavaOnevisionForConditionalGeneration, projected: Tensor) -> Tensor:
        """As `get_video_features` pools and closes them."""
        pooled = model.model.apply_pooling(projected.flatten(0, 1))
        pooled = pooled.unflatten(0, projected.shape[:2]).flatten(1, 2)
        newline = model.model.image_newline.expand(len(pooled), 1, -1)
        return torch.cat([pooled, newline], dim=1)

    def owners(self, views: Sequence[Views]) -> Tensor:
        """What most of each token's pixels show, and the newline."""
        cells = [cell_owners(each.owners, TILE // FRAME_GRID, _COVERED) for each in views]
        return F.pad(torch.stack(cells).flatten(1), (0, 1))


TILED = tuple(Tiled(canvas) for canvas in CANVASES)
OVERVIEWS = tuple(Overview(canvas) for canvas in CANVASES)
CLIPS = tuple(Frames(count) for count in FRAMES)


def step_form(rng: np.random.Generator, clip_share: float, low_share: float) -> Form:
    """The form of one step: a clip, a tiled scene, or now and then a cheap one of either.

    Args:
        rng: the step's random numbers.
        clip_share: how often it is a clip.
        low_share: how often it is the overview alone, or the shortest clip.
    """
    clips, low = rng.random() < clip_share, rng.random() < low_share
    if clips:
        return CLIPS[0] if low else CLIPS[rng.integers(len(CLIPS))]
    return (OVERVIEWS if low else TILED)[rng.integers(len(TILED))]


def training_turns(
    subject: Layout | Script, rng: np.random.Generator, count: int, captions: float
) -> list[list[Question]]:
    """`count` dialogues about a scene or a clip, of which a share of `captions` describe it."""
    if isinstance(subject, Layout):
        return training_dialogues(subject, rng, count, captions)
    script = subject

    def questions() -> list[Question]:
        kinds = rng.choice(CLIP_KINDS, TURNS, replace=False)
        return [asked for kind in kinds if (asked := ask_clip(str(kind), script, rng))]

    def descriptions() -> list[Question]:
        form = list_actors if rng.random() < 0.25 else describe_actor
        turns = 1 if form is list_actors else TURNS
        return [asked for _ in range(turns) if (asked := form(script, rng))]

    return mixed(rng, count, captions, questions, descriptions)
