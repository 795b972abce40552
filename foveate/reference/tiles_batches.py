"""What the steps of the second model's run are shown: tiled scenes and clips, drawn as needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.reference.batches import LANGUAGE, VISION, Batches
from foveate.reference.clips import Script
from foveate.reference.forms import (
    CLIPS,
    LOW_VIEW_GRIDS,
    TILED,
    Drawn,
    Form,
    step_form,
    training_turns,
)
from foveate.reference.layout import Layout
from foveate.reference.onevision import VIEW_GRID
from foveate.reference.packing import Packed, pack, text_encoder
from foveate.reference.recipe import TilesRecipe
from foveate.reference.tiled import TILE
from foveate.reference.views import Views

# Steps use other seeds than each other for up to this many pictures.
_STRIDE = 32
# Text tokens of a dialogue, roughly: what a batch's size is reckoned with.
_DIALOGUE_TOKENS = 40


@dataclass(frozen=True)
class LabelledViews:
    """Views of scenes and clips, and the patches a side at which the tower is shown them."""

    views: Views
    grid: int


@dataclass(frozen=True)
class AskedPictures:
    """Pictures of one form with dialogues about them.

    Attributes:
        form: how they are shown.
        views: of all of them, one picture after the other.
        places: float[b, owners, 6], as `places_of`.
        packed: the dialogues.
    """

    form: Form
    views: Views
    places: Tensor
    packed: Packed


class TilesBatches(Batches):
    """Scenes and clips, other ones in each step until the recipe's seeds are used up."""

    recipe: TilesRecipe

    def drawn(self, form: Form, count: int, step: int) -> list[Drawn]:
        """So many pictures of this form for a step."""
        first = step * _STRIDE
        return [form.draw((first + each) % self.recipe.scenes, "train") for each in range(count)]

    def labelled(self, step: int) -> LabelledViews:
        """Overviews and some tiles of scenes, frames of clips: all patches of each."""
        recipe, rng = self.recipe, self._random(VISION, step)
        parts = []
        form = TILED[rng.integers(len(TILED))]
        for drawn in self.drawn(form, recipe.vision_batch, step):
            tiles = 1 + rng.permutation(len(drawn.views) - 1)[: recipe.vision_tiles]
            parts.append(drawn.views[torch.as_tensor(np.array([0, *tiles]))])
        for drawn in self.drawn(CLIPS[0], recipe.vision_clips, step):
            frames = rng.permutation(len(drawn.views))[: recipe.vision_frames]
            parts.append(drawn.views[torch.as_tensor(frames)])
        low = rng.random() < recipe.low_share
        grid = int(rng.choice(LOW_VIEW_GRIDS)) if low else VIEW_GRID
        return LabelledViews(Views.joined(parts), grid)

    def asked(self, step: int) -> AskedPictures:
        """As many pictures of one form as fit in the recipe's tokens."""
        recipe, rng = self.recipe, self._random(LANGUAGE, step)
        small_share = recipe.small_first if self._early(step) else 0.0
        form = step_form(rng, recipe.clip_share, self._low_share(step), small_share)
        tokens = form.tokens + recipe.dialogues * _DIALOGUE_TOKENS
        count = max(1, min(recipe.language_batch, recipe.language_tokens // tokens))
        drawn = self.drawn(form, count, step)
        captions = self._captions(step)
        turns = [training_turns(each.subject, rng, recipe.dialogues, captions) for each in drawn]
        return AskedPictures(
            form,
            Views.joined([each.views for each in drawn]),
            torch.stack([places_of(each) for each in drawn]),
            pack(turns, text_encoder()),
        )


def places_of(drawn: Drawn) -> Tensor:
    """Where each owner is first, how far it goes, and from when to when: float[owners, 6].

    Pictures and clips are 2 long: x and y from -1 to 1, the way, start and end from -1 to 1. In a
    scene the place alone is known. (The way, and not the last place, which is nearly told by the
    mean of all places.)
    """
    places = torch.full((len(drawn.views.shown[0]), 6), torch.nan)
    views = drawn.views[:1] if isinstance(drawn.subject, Layout) else drawn.views
    for owner in range(1, len(places)):
        when = (views.shown[:, owner] > 0).nonzero().flatten()
        if not len(when):
            continue
        first, last = int(when[0]), int(when[-1])
        places[owner, :2] = views.centres[first, owner] * 2 / TILE - 1
        if isinstance(drawn.subject, Script):
            way = views.centres[last, owner] - views.centres[first, owner]
            places[owner, 2:4] = way * 2 / TILE
            places[owner, 4:] = torch.tensor([first, last + 1]) * 2 / len(views) - 1
    return places
