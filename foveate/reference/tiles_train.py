"""Training of the second reference model, on tiled scenes and on clips.

The stages, the hint where to look and the checkpoints are those of
`foveate.reference.train`; pictures are drawn as they are needed, so nothing is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaOnevisionForConditionalGeneration

from foveate.errors import InputError
from foveate.fingerprint import of_weights
from foveate.reference import path
from foveate.reference.architecture import PATCH
from foveate.reference.clips import Script
from foveate.reference.data import pixel_values
from foveate.reference.forms import (
    CLIPS,
    LOW_VIEW_GRIDS,
    OVERVIEWS,
    TILED,
    Drawn,
    Form,
    step_form,
    training_turns,
)
from foveate.reference.layout import SIDE, Layout
from foveate.reference.onevision import (
    VIEW_GRID,
    build_tiles_model,
    save_tiles_processor,
    start_from,
)
from foveate.reference.packing import pack, text_encoder
from foveate.reference.recipe import Recipe
from foveate.reference.report import Tell, Validate, answered, tell
from foveate.reference.tiled import TILE
from foveate.reference.train import Shown, Trainer, on
from foveate.reference.views import Views
from foveate.reference.vision_stage import encode, labelled_loss
from foveate.reference.whitening import Whitening

# Steps use other seeds than each other for up to this many pictures.
_STRIDE = 32
# Text tokens of a dialogue, roughly: what a batch's size is reckoned with.
_DIALOGUE_TOKENS = 40
_VALIDATION = {"scenes": TILED, "overviews": OVERVIEWS[:1], "clips": (CLIPS[0], CLIPS[2])}
_VALIDATION_PICTURES, _VALIDATION_BATCH = 24, 8
# Of each form.
_WHITENED_PICTURES = 30


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


# For a GPU, as `recipe.GPU`.
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


class TilesTrainer(Trainer):
    """The run that makes `reference-tiles`.

    Args:
        folder, seed, recipe, minutes, tell: as for every `Trainer`; the recipe names the source.
        source: the trained `reference` that it goes on from.
    """

    recipe: TilesRecipe
    place_numbers = 6

    def __init__(
        self,
        folder: Path,
        seed: int,
        recipe: TilesRecipe,
        source: LlavaForConditionalGeneration,
        minutes: float = 3.0,
        tell: Tell = tell,
    ) -> None:
        super().__init__(folder, seed, recipe, minutes, tell)
        if not self.checkpoint.exists():
            start_from(self.model, source)

    def _build(self) -> LlavaOnevisionForConditionalGeneration:
        recipe = self.recipe
        return build_tiles_model(
            recipe.vision_width, recipe.vision_layers, recipe.width, recipe.layers
        )

    def _save_processor(self, folder: Path) -> None:
        save_tiles_processor(folder)

    def _language_parts(self) -> list[nn.Module]:
        return [*super()._language_parts(), nn.ParameterList([self.model.model.image_newline])]

    def _drawn(self, form: Form, count: int) -> list[Drawn]:
        """The pictures of this step."""
        first = self.step * _STRIDE
        return [form.draw((first + each) % self.recipe.scenes, "train") for each in range(count)]

    def _vision_step(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Overviews and some tiles of scenes, frames of clips: all patches of each."""
        recipe = self.recipe
        parts = []
        form = TILED[rng.integers(len(TILED))]
        for drawn in self._drawn(form, recipe.vision_batch):
            tiles = 1 + rng.permutation(len(drawn.views) - 1)[: recipe.vision_tiles]
            parts.append(drawn.views[torch.as_tensor(np.array([0, *tiles]))])
        for drawn in self._drawn(CLIPS[0], recipe.vision_clips):
            frames = rng.permutation(len(drawn.views))[: recipe.vision_frames]
            parts.append(drawn.views[torch.as_tensor(frames)])
        views = Views.joined(parts)
        low = rng.random() < recipe.low_share
        grid = int(rng.choice(LOW_VIEW_GRIDS)) if low else VIEW_GRID
        loss, facts = labelled_loss(
            self.model.model.vision_tower,
            self.heads,
            pixel_values(views.pixels, grid),
            *views.patch_labels(grid),
            views.image_labels(),
        )
        # Accuracies are reported at the model's own resolution.
        return loss, facts if grid == VIEW_GRID else {}

    @torch.no_grad()
    def raw_features(self, views: Views, grid: int = VIEW_GRID) -> Tensor:
        """The frozen tower's features: float[v, grid * grid, d]."""
        pixels = pixel_values(views.pixels, grid)
        return encode(self.model.model.vision_tower, pixels, last=False)[0][:, 1:]

    def _join(self) -> None:
        parts = []
        for form in (*TILED, *CLIPS[:2]):
            for drawn in self._drawn(form, min(_WHITENED_PICTURES, self.recipe.scenes)):
                parts.append(drawn.views[:: 2 if form in TILED else 4])
        self.whitening = Whitening.of(self.raw_features(Views.joined(parts)))
        self.whitening.unfold(self.model.model.multi_modal_projector.linear_1)

    def visual(self, form: Form, drawn: Sequence[Drawn]) -> Tensor:
        """The visual tokens of these pictures: float[b, tokens, width]."""
        assert self.whitening is not None
        raw = self.raw_features(Views.joined([each.views for each in drawn]), form.grid)
        projected = self.model.model.multi_modal_projector(self.whitening(raw))
        return form.visual(projected.unflatten(0, (len(drawn), -1)), self.model.model.image_newline)

    def _shown(self, rng: np.random.Generator, captions: float, low_share: float) -> Shown:
        recipe = self.recipe
        early = self.step < recipe.low_until * recipe.language_steps
        form = step_form(rng, recipe.clip_share, low_share, recipe.small_first if early else 0.0)
        tokens = form.tokens + recipe.dialogues * _DIALOGUE_TOKENS
        count = max(1, min(recipe.language_batch, recipe.language_tokens // tokens))
        drawn = self._drawn(form, count)
        turns = [training_turns(each.subject, rng, recipe.dialogues, captions) for each in drawn]
        return Shown(
            visual=self.visual(form, drawn),
            packed=pack(turns, text_encoder()),
            owners=lambda: form.owners([each.views for each in drawn]),
            places=lambda: torch.stack([places_of(each) for each in drawn]),
        )

    def _validation(self) -> Validate:
        def validate() -> dict[str, float]:
            rng = np.random.default_rng([3, 1])
            right: dict[str, list[bool]] = defaultdict(list)
            for title, forms in _VALIDATION.items():
                for form in forms:
                    for kind, hit in self._answered(form, rng):
                        right[f"{title} {kind}"].append(hit)
                        right[f"{title} all"].append(hit)
            return {kind: float(np.mean(hits)) for kind, hits in sorted(right.items())}

        return validate

    @torch.no_grad()
    def _answered(self, form: Form, rng: np.random.Generator) -> list[tuple[str, bool]]:
        """Kind and whether it is answered right, for questions about validation pictures."""
        found = []
        for start in range(0, _VALIDATION_PICTURES, _VALIDATION_BATCH):
            seeds = range(start, start + _VALIDATION_BATCH)
            drawn = [form.draw(seed, "validation") for seed in seeds]
            turns = [training_turns(each.subject, rng, 6, 0.15) for each in drawn]
            found += answered(self.model, self.visual(form, drawn), turns)
        return found


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


def train_tiles(
    output_dir: str | Path,
    seed: int = 0,
    recipe: TilesRecipe | None = None,
    stop_at: tuple[int, int] | None = None,
    *,
    start: str | Path | None = None,
    device: str = "cpu",
    tell: Tell = tell,
) -> Path:
    """Train `reference-tiles` in `output_dir`, going on from its checkpoint if there is one.

    Args:
        output_dir: the run's folder; the finished model lies in its `model/`.
        seed: of initialisation and batches.
        recipe: lengths and rates; sizes are the source's.
        stop_at: (stage, step) to stop at, with a checkpoint.
        start: the folder of a trained `reference` to begin with; the shipped one if None.
        device: where to train.
        tell: what is done with its progress.

    Returns:
        The folder of the model.

    Raises:
        InputError: there is no `reference` in that folder, or the run in `output_dir` is another.
    """
    source = _source(path() if start is None else Path(start)).to(device)
    vision, text = source.config.vision_config, source.config.text_config
    mine = replace(
        recipe or TilesRecipe(),
        started_from=of_weights(source),
        vision_width=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
    )
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with on(device):
        TilesTrainer(folder, seed, mine, source, tell=tell).run(stop_at)
    return folder / "model"


def _source(folder: Path) -> LlavaForConditionalGeneration:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds no model.\nGive the model/ folder of a `foveate train reference` run."
        )
    found = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    vision = found.config.vision_config
    if (vision.image_size, vision.patch_size) != (SIDE, PATCH):
        raise InputError(
            f"{folder} is no reference model: it looks at {vision.image_size} pixels in patches of "
            f"{vision.patch_size}, not {SIDE} in {PATCH}."
        )
    return found
