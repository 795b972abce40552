"""The forms in which pictures reach the tiled model: tiles, an overview alone, a clip's frames.

A form draws a picture as views, arranges what was made of their patches as the model itself does,
and knows which object each visual token shows. Views may be resized, or the resize baseline would
be a straw man.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.reference.architecture import PATCH
from foveate.reference.clip_questions import CLIP_KINDS, ask_clip, describe_actor, list_actors
from foveate.reference.clips import FRAMES, Script, clip
from foveate.reference.dialogues import mixed, training_dialogues
from foveate.reference.labels import cell_owners, patch_owners
from foveate.reference.layout import Layout
from foveate.reference.onevision import VIEW_GRID
from foveate.reference.questions import TURNS, Question
from foveate.reference.tiled import CANVASES, TILE, asked_about, tiled_scene
from foveate.reference.views import Views, clip_views, scene_views
from foveate.reference.worlds import FIRST

# Resized views: 32, 48 and 56 pixels a side.
LOW_VIEW_GRIDS = (4, 6, 7)


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
    """How a picture is shown. All pictures of a batch have one form.

    Attributes:
        grid: patches a side of each view.
    """

    grid: int

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Visual tokens of a picture, newlines included."""

    @abstractmethod
    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The picture of this seed."""

    @abstractmethod
    def visual(self, projected: Tensor, newline: Tensor) -> Tensor:
        """The visual tokens as the decoder receives them: float[b, tokens, width].

        Args:
            projected: float[b, views, grid * grid, width], the projected patches of every view.
            newline: float[width].
        """

    @abstractmethod
    def owners(self, views: Sequence[Views]) -> Tensor:
        """Which object each visual token shows, 0 for none and newlines: int64[b, tokens]."""


@dataclass(frozen=True)
class Tiled(Form):
    """Overview and tiles of a scene.

    Attributes:
        canvas: width and height in pixels.
        grid: patches a side of each view.
    """

    canvas: tuple[int, int]
    grid: int = VIEW_GRID

    @property
    def tokens(self) -> int:
        """The overview, the mosaic, and a newline for each of the mosaic's rows."""
        columns, rows = (side // TILE * self.grid for side in self.canvas)
        return self.grid * self.grid + rows * (columns + 1)

    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The scene of this seed on this canvas."""
        drawn = tiled_scene(seed, split, world, self.canvas)
        return Drawn(scene_views(drawn), asked_about(drawn.layout, self.canvas))

    def visual(self, projected: Tensor, newline: Tensor) -> Tensor:
        """The overview's patches, then the mosaic's rows, each closed by a newline."""
        across, down = (side // TILE for side in self.canvas)
        tiles = projected[:, 1:].unflatten(1, (down, across)).unflatten(3, (self.grid, self.grid))
        # (b, down, across, y, x, width) -> (b, rows, columns, width)
        mosaic = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        closed = torch.cat([mosaic, newline.expand(*mosaic.shape[:2], 1, -1)], dim=2)
        return torch.cat([projected[:, 0], closed.flatten(1, 2)], dim=1)

    def owners(self, views: Sequence[Views]) -> Tensor:
        """Owners of patches, arranged as patches are."""
        patches = torch.stack([patch_owners(each.owners, self.grid) for each in views])
        return self.visual(patches[..., None], patches.new_zeros(1))[..., 0]


@dataclass(frozen=True)
class Overview(Form):
    """A scene at 64 x 64 pixels and one newline: what each of several pictures in a prompt gets.

    Attributes:
        canvas: of the scene before it is resized.
    """

    canvas: tuple[int, int]
    grid = VIEW_GRID

    @property
    def tokens(self) -> int:
        """The view and a newline."""
        return self.grid * self.grid + 1

    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The scene of this seed, without its tiles."""
        drawn = Tiled(self.canvas).draw(seed, split, world)
        return Drawn(drawn.views[:1], drawn.subject)

    def visual(self, projected: Tensor, newline: Tensor) -> Tensor:
        """The view's patches and the newline."""
        return torch.cat([projected[:, 0], newline.expand(len(projected), 1, -1)], dim=1)

    def owners(self, views: Sequence[Views]) -> Tensor:
        """The owners of the view's patches."""
        return F.pad(torch.cat([patch_owners(each.owners, self.grid) for each in views]), (0, 1))


@dataclass(frozen=True)
class Frames(Form):
    """A clip.

    Attributes:
        count: how many pictures are taken of it.
        grid: patches a side of each frame.
    """

    count: int
    grid: int = VIEW_GRID

    @property
    def side(self) -> int:
        """Tokens a side of each frame."""
        return -(-self.grid // 2)

    @property
    def tokens(self) -> int:
        """Pooled frames and one newline."""
        return self.count * self.side * self.side + 1

    def draw(self, seed: int, split: str, world: str = FIRST) -> Drawn:
        """The clip of this seed with this number of frames."""
        drawn = clip(seed, split, world, self.count)
        return Drawn(clip_views(drawn), drawn.script)

    def visual(self, projected: Tensor, newline: Tensor) -> Tensor:
        """Every frame pooled to half its side, and one newline at the end."""
        frames = projected.flatten(0, 1).unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        pooled = F.interpolate(frames, size=(self.side, self.side), mode="bilinear")
        tokens = pooled.flatten(2).mT.unflatten(0, projected.shape[:2]).flatten(1, 2)
        return torch.cat([tokens, newline.expand(len(tokens), 1, -1)], dim=1)

    def owners(self, views: Sequence[Views]) -> Tensor:
        """What most of each token's pixels show, if it is a sixteenth of them, and the newline."""
        size = self.grid * PATCH
        cell = size // self.side
        owners = [cell_owners(each.owners, size, cell, cell * cell // 16) for each in views]
        return F.pad(torch.stack(owners).flatten(1), (0, 1))


TILED = tuple(Tiled(canvas) for canvas in CANVASES)
OVERVIEWS = tuple(Overview(canvas) for canvas in CANVASES)
CLIPS = tuple(Frames(count) for count in FRAMES)
LOW_TILED = tuple(Tiled(canvas, grid) for canvas in CANVASES for grid in LOW_VIEW_GRIDS)
LOW_CLIPS = tuple(Frames(count, grid) for count in FRAMES for grid in LOW_VIEW_GRIDS)


def step_form(
    rng: np.random.Generator, clip_share: float, low_share: float, small_share: float = 0.0
) -> Form:
    """The form of one step: clips or tiled scenes, now and then with fewer tokens.

    Args:
        rng: the step's random numbers.
        clip_share: how often it is a clip.
        low_share: how often views are resized or, for scenes, only the overview is shown.
        small_share: how often, otherwise, it is the smallest scene or the shortest clip.
    """
    clips, low, small = (rng.random() < share for share in (clip_share, low_share, small_share))
    forms: tuple[Form, ...]
    if low:
        whole = OVERVIEWS if rng.random() < 0.5 else LOW_TILED
        forms = LOW_CLIPS if clips else whole
    else:
        forms = CLIPS if clips else TILED
        forms = forms[:1] if small else forms
    return forms[rng.integers(len(forms))]


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
