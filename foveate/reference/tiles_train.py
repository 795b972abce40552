"""Training of the second reference model, on tiled scenes and on clips.

The stages, the hint where to look and the checkpoints are those of
`foveate.reference.train`; pictures are drawn as they are needed, so nothing is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaOnevisionForConditionalGeneration

from foveate.errors import InputError
from foveate.fingerprint import of_weights
from foveate.holding import training_in
from foveate.reference import path
from foveate.reference.architecture import PATCH
from foveate.reference.data import pixel_values
from foveate.reference.forms import CLIPS, OVERVIEWS, TILED, Form, training_turns
from foveate.reference.layout import SIDE
from foveate.reference.onevision import (
    VIEW_GRID,
    build_tiles_model,
    save_tiles_processor,
    start_from,
)
from foveate.reference.recipe import TilesRecipe
from foveate.reference.report import Tell, Validate, answered, tell
from foveate.reference.tiles_batches import AskedPictures, LabelledViews, TilesBatches
from foveate.reference.train import Shown, Trainer, on
from foveate.reference.views import Views
from foveate.reference.vision_stage import encode, labelled_loss
from foveate.reference.whitening import Whitening

_VALIDATION = {"scenes": TILED, "overviews": OVERVIEWS[:1], "clips": (CLIPS[0], CLIPS[2])}
_VALIDATION_PICTURES, _VALIDATION_BATCH = 24, 8
# Of each form.
_WHITENED_PICTURES = 30


class TilesTrainer(Trainer):
    """The run that makes `reference-tiles`.

    Args:
        folder, seed, recipe, minutes, tell, workers: as for every `Trainer`; the recipe names the
            source.
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
        workers: int = 1,
    ) -> None:
        super().__init__(folder, seed, recipe, minutes, tell, workers)
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

    def _batches(self) -> TilesBatches:
        return TilesBatches(self.seed, self.recipe)

    def _vision_step(self, batch: LabelledViews) -> tuple[Tensor, dict[str, float]]:
        views, grid = batch.views, batch.grid
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
            count = min(_WHITENED_PICTURES, self.recipe.scenes)
            for drawn in self._batches().drawn(form, count, self.step):
                parts.append(drawn.views[:: 2 if form in TILED else 4])
        self.whitening = Whitening.of(self.raw_features(Views.joined(parts)))
        self.whitening.unfold(self.model.model.multi_modal_projector.linear_1)

    def visual(self, form: Form, views: Sequence[Views]) -> Tensor:
        """The visual tokens of pictures, given the views of each: float[b, tokens, width]."""
        assert self.whitening is not None
        raw = self.raw_features(Views.joined(views), form.grid)
        projected = self.model.model.multi_modal_projector(self.whitening(raw))
        newline = self.model.model.image_newline
        return form.visual(projected.unflatten(0, (len(views), -1)), newline)

    def _shown(self, batch: AskedPictures) -> Shown:
        views = batch.views.split(len(batch.places))
        return Shown(
            visual=self.visual(batch.form, views),
            packed=batch.packed,
            owners=lambda: batch.form.owners(views),
            places=batch.places,
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
            visual = self.visual(form, [each.views for each in drawn])
            found += answered(self.model, visual, turns)
        return found


def train_tiles(
    output_dir: str | Path,
    seed: int = 0,
    recipe: TilesRecipe | None = None,
    stop_at: tuple[int, int] | None = None,
    *,
    start: str | Path | None = None,
    device: str = "cpu",
    workers: int = 1,
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
        workers: processes that draw batches ahead; the result does not depend on them.
        tell: what is done with its progress.

    Returns:
        The folder of the model.

    Raises:
        InputError: there is no `reference` in that folder, or the run in `output_dir` is another.
        SavedFileError: another run is training in `output_dir`.
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
    with training_in(folder), on(device):
        TilesTrainer(folder, seed, mine, source, tell=tell, workers=workers).run(stop_at)
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
