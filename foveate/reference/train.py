"""Training of the reference model: the vision tower first, then the language model.

A run leaves a Hugging Face folder in its `model/`. Started again with the same arguments it goes on
from the last checkpoint; every batch is a function of seed and step, so the result is the same.
"""

from __future__ import annotations

import abc
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foveate.errors import InputError
from foveate.holding import training_in
from foveate.reference.ahead import drawn_ahead
from foveate.reference.alignment import align, patch_targets
from foveate.reference.architecture import GRID, build_model, build_processor
from foveate.reference.batches import (
    LANGUAGE,
    LOW_GRIDS,
    VISION,
    AskedScenes,
    Batches,
    LabelledScenes,
    SceneBatches,
)
from foveate.reference.data import Scenes
from foveate.reference.gaze import Gaze, place_head
from foveate.reference.labels import patch_labels, patch_owners
from foveate.reference.language_stage import (
    PREFIX_WORDS,
    WORD_SIZE,
    features_of,
    packed_loss,
    start_language,
)
from foveate.reference.optimiser import Optimiser
from foveate.reference.packing import IGNORE, Packed
from foveate.reference.recipe import Recipe
from foveate.reference.report import Progress, Report, Tell, Validate, scenes_validation, tell
from foveate.reference.store import Store
from foveate.reference.vision_stage import Heads, vision_loss
from foveate.reference.whitening import Whitening

CHECKPOINT = "checkpoint.pt"
_WHITENING_SCENES = 64


@dataclass(frozen=True)
class Shown:
    """What the decoder is shown in one step.

    Attributes:
        visual: float[b, n, width] the visual tokens as the decoder receives them.
        packed: the dialogues about them.
        owners: gives int64[b, n], the owner of each token; 0 is background.
        places: float[b, owners, numbers], where each owner is, -1 to 1; NaN where it has no place.
    """

    visual: Tensor
    packed: Packed
    owners: Callable[[], Tensor]
    places: Tensor


class Trainer(abc.ABC):
    """A run in a folder: `checkpoint.pt` to go on from and `model/` to use, both kept up to date.

    Subclasses say which model is trained, and on which pictures.

    Args:
        folder: the run's folder.
        seed: of initialisation and batches.
        recipe: lengths, rates and sizes.
        minutes: time between checkpoints.
        tell: what is done with its progress.
        workers: processes that draw batches ahead; the result does not depend on them.
    """

    # How many numbers tell the place of what is named.
    place_numbers: ClassVar[int] = 2

    def __init__(
        self,
        folder: Path,
        seed: int,
        recipe: Recipe,
        minutes: float = 3.0,
        tell: Tell = tell,
        workers: int = 1,
    ) -> None:
        self.tell, self.workers = tell, workers
        self.folder, self.seed, self.recipe = folder, seed, recipe
        self.minutes, self.saved, self.started = minutes, time.monotonic(), time.monotonic()
        self.stage, self.step, self.seconds = VISION, 0, 0.0
        torch.manual_seed(seed)
        self.model = self._build()
        self.heads = Heads(recipe.vision_width)
        self.place = place_head(recipe.width, self.place_numbers)
        self.whitening: Whitening | None = None
        self.optimiser = self._optimiser()
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """Where the state is kept."""
        return self.folder / CHECKPOINT

    @property
    def steps(self) -> int:
        """How many steps the stage has."""
        return self.recipe.language_steps if self.answering else self.recipe.vision_steps

    @property
    def answering(self) -> bool:
        """Whether the run has reached the stage that learns to answer."""
        return self.stage == LANGUAGE

    @abc.abstractmethod
    def _build(self) -> PreTrainedModel:
        """The model, freshly initialised."""

    @abc.abstractmethod
    def _save_processor(self, folder: Path) -> None:
        """Write the model's processor."""

    @abc.abstractmethod
    def _validation(self) -> Validate:
        """What gives the share of right answers per kind on validation pictures."""

    @abc.abstractmethod
    def _batches(self) -> Batches:
        """What the steps are shown."""

    @abc.abstractmethod
    def _vision_step(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Loss and facts of a step of the first stage that is shown this."""

    @abc.abstractmethod
    def _join(self) -> None:
        """Make tower, projector and decoder ready for the second stage; sets the whitening."""

    @abc.abstractmethod
    def _shown(self, batch: Any) -> Shown:
        """What the decoder is shown in a step of the second stage."""

    @property
    def minutes_spent(self) -> float:
        """Wall time of the whole run so far, in minutes."""
        return (self.seconds + time.monotonic() - self.started) / 60

    def _optimiser(self) -> Optimiser:
        recipe, base = self.recipe, self.model.model
        if self.stage == VISION:
            modules: list[nn.Module] = [base.vision_tower, self.heads]
            return Optimiser(modules, recipe.vision_muon, recipe.vision_adam, recipe.vision_steps)
        base.vision_tower.requires_grad_(False)
        modules = self._language_parts()
        return Optimiser(modules, recipe.language_muon, recipe.language_adam, recipe.language_steps)

    def _language_parts(self) -> list[nn.Module]:
        """What learns in the second stage."""
        base = self.model.model
        return [base.multi_modal_projector, base.language_model, self.model.lm_head, self.place]

    def save(self) -> None:
        """Write the checkpoint; a half-written one never replaces a whole one."""
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "place": self.place.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "whitening": vars(self.whitening) if self.whitening else None,
            "random": torch.get_rng_state(),
            "recipe": json.dumps(asdict(self.recipe)),
            "at": {
                "stage": self.stage,
                "step": self.step,
                "seed": self.seed,
                "seconds": 60 * self.minutes_spent,
            },
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        self.saved = time.monotonic()

    def _load(self) -> None:
        state = checked(self.checkpoint, self.seed, self.recipe)
        self.stage, self.step = state["at"]["stage"], state["at"]["step"]
        self.seconds = state["at"]["seconds"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.place.load_state_dict(state["place"])
        if state["whitening"]:
            device = torch.get_default_device()
            self.whitening = Whitening(**{k: v.to(device) for k, v in state["whitening"].items()})
        self.optimiser = self._optimiser()
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])

    def run(self, stop_at: tuple[int, int] | None = None) -> None:
        """Both stages from wherever the run stands.

        Args:
            stop_at: stage and step at which to save and leave; None goes to the end.
        """
        recipe = self.recipe
        if self._exported():
            return
        if self.stage == VISION:
            draw = self._batches().labelled
            if not self._stage(recipe.vision_steps, draw, self._vision_step, stop_at):
                return
            self._begin_language()
        draw = self._batches().asked
        if self._stage(recipe.language_steps, draw, self._language_step, stop_at):
            self.export()

    def _exported(self) -> bool:
        """Whether the run is over and its model written; what was measured of it then stays."""
        file = self.folder / "model" / "training.json"
        if not self.answering or self.step < self.steps or not file.exists():
            return False
        done = json.loads(file.read_text())["training"]["steps_done"]
        return bool(done == {"stage": self.stage, "step": self.step})

    def _begin_language(self) -> None:
        self.stage, self.step = LANGUAGE, 0
        self._join()
        self.optimiser = self._optimiser()
        self.save()

    def _stage(
        self,
        steps: int,
        draw: Callable[[int], Any],
        one: Callable[[Any], tuple[Tensor, dict[str, float]]],
        stop_at: tuple[int, int] | None,
    ) -> bool:
        """All steps of a stage; False if it was left at `stop_at`."""
        report = Report(self, self._validation())
        stage, until = stop_at or (self.stage, steps)
        if stage != self.stage or not self.step <= until < steps:
            until = steps
        with closing(drawn_ahead(draw, range(self.step, until), self.workers)) as batches:
            for batch in batches:
                loss, facts = one(batch)
                loss.backward()
                self.optimiser.step(self.step)
                self.step += 1
                report.add(loss.item(), facts)
                if time.monotonic() - self.saved > 60 * self.minutes:
                    self.save()
                    self.export()
        self.save()
        return until == steps

    def _language_step(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        recipe = self.recipe
        shown = self._shown(batch)
        with Gaze(self.model).watching() as gaze:
            loss, logits = packed_loss(self.model, shown.visual, shown.packed)
        wanted = shown.packed.labels[shown.packed.labels != IGNORE]
        facts = {"words": (logits.argmax(-1) == wanted).float().mean().item()}
        hint = recipe.gaze * max(0.0, 1 - self.step / (recipe.gaze_until * recipe.language_steps))
        if hint:
            prefix = PREFIX_WORDS + shown.visual.shape[1]
            looked, shares = gaze.loss(shown.owners(), shown.packed, prefix)
            placed, off = gaze.place_loss(self.place, shown.places, shown.packed, prefix)
            facts |= shares | off
            loss = loss + hint * (looked + recipe.place * placed)
        return loss, facts

    def export(self) -> Path:
        """Write the model as a Hugging Face folder in bf16, with what produced it."""
        target = self.folder / "model"
        # When it is time to export depends on the clock, which the run's random numbers must not.
        with torch.random.fork_rng():
            shipped = self._build()
        shipped.load_state_dict(self.model.state_dict())
        if self.whitening:
            self.whitening.fold(shipped.model.multi_modal_projector.linear_1)
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shipped.to(torch.bfloat16).save_pretrained(partial)
        self._save_processor(partial)
        record = {
            "seed": self.seed,
            "recipe": asdict(self.recipe),
            "steps_done": {"stage": self.stage, "step": self.step},
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "wall_minutes": round(self.minutes_spent, 1),
            "hardware": hardware(),
            "torch": torch.__version__,
        }
        (partial / "training.json").write_text(json.dumps({"training": record}, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        return target


class SceneTrainer(Trainer):
    """The run that makes `reference`.

    Args:
        folder, seed, recipe, minutes, tell, workers: as for every `Trainer`.
        scenes: the training scenes.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        recipe: Recipe,
        scenes: Scenes,
        minutes: float = 3.0,
        tell: Tell = tell,
        workers: int = 1,
    ) -> None:
        self.scenes = scenes
        super().__init__(folder, seed, recipe, minutes, tell, workers)

    def _build(self) -> PreTrainedModel:
        recipe = self.recipe
        return build_model(recipe.vision_width, recipe.vision_layers, recipe.width, recipe.layers)

    def _save_processor(self, folder: Path) -> None:
        build_processor().save_pretrained(folder)

    def _validation(self) -> Validate:
        return scenes_validation(self)

    def _batches(self) -> SceneBatches:
        return SceneBatches(self.seed, self.recipe, self.scenes)

    def _vision_step(self, batch: LabelledScenes) -> tuple[Tensor, dict[str, float]]:
        loss, facts = vision_loss(self.model.model.vision_tower, self.heads, batch)
        # Accuracies are reported at the model's own resolution.
        return loss, facts if batch.grid == GRID else {}

    def _join(self) -> None:
        start_language(self.model)
        errors = align(self.model, self._alignment())
        means = {"error of alignment, before": errors[0], "after": errors[-1]}
        self.tell(Progress(self.stage, 0, self.steps, self.minutes_spent, means, {}))

    def _alignment(self) -> list[tuple[Tensor, Tensor]]:
        """Whitened features float[b, n, d] and targets float[b, n, width]; sets the whitening."""
        indices = range(min(_WHITENING_SCENES, self.scenes.store.count))
        pixels, _ = self.scenes.arrays(indices)
        self.whitening = Whitening.of(features_of(self.model, pixels, GRID))
        table = self.model.get_input_embeddings().weight.detach()
        batches = []
        for grid in (GRID, GRID, *LOW_GRIDS):
            # Other scenes for each resolution, in equal numbers; twice as many at the full one.
            indices = range(indices.stop, indices.stop + len(indices))
            chosen = [index % self.scenes.store.count for index in indices]
            pixels, owners = self.scenes.arrays(chosen)
            shown = patch_labels(self.scenes.layouts_of(chosen), owners, grid)
            targets = patch_targets(table, *shown, grid, WORD_SIZE)
            batches.append((self.features(pixels, grid), targets))
        return batches

    def features(self, pixels: Tensor, grid: int) -> Tensor:
        """What the projector is shown of scenes uint8[b, 128, 128, 3]: float[b, grid * grid, d]."""
        assert self.whitening is not None
        return self.whitening(features_of(self.model, pixels, grid))

    def _shown(self, batch: AskedScenes) -> Shown:
        features = self.features(batch.pixels, batch.grid)
        return Shown(
            visual=self.model.model.multi_modal_projector(features),
            packed=batch.packed,
            owners=lambda: patch_owners(batch.owners, batch.grid),
            places=batch.places,
        )


def checked(checkpoint: Path, seed: int, recipe: Recipe) -> dict[str, Any]:
    """The state in a run's checkpoint.

    Raises:
        InputError: it belongs to a run with another seed or recipe.
    """
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location="cpu")
    if (state["at"]["seed"], state["recipe"]) != (seed, json.dumps(asdict(recipe))):
        raise InputError(
            f"{checkpoint} belongs to a run with another seed or recipe: "
            f"seed {state['at']['seed']}, {state['recipe']}.\n"
            "Go on with those, or choose another folder."
        )
    return state


def hardware() -> str:
    """What this runs on."""
    if torch.get_default_device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"


@contextmanager
def on(device: str) -> Iterator[None]:
    """Make what a run makes on this device; matrices in TF32 where there is such a thing."""
    torch.set_float32_matmul_precision("high" if device.startswith("cuda") else "highest")
    with torch.device(device):
        yield


def train(
    output_dir: str | Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    store: str | Path | None = None,
    stop_at: tuple[int, int] | None = None,
    *,
    device: str = "cpu",
    workers: int = 1,
    tell: Tell = tell,
) -> Path:
    """Train `reference` in `output_dir`, going on from its checkpoint if there is one.

    Args:
        output_dir: the run's folder; the finished model lies in its `model/`.
        seed: of initialisation and batches.
        recipe: lengths, rates, sizes.
        store: folder of drawn training scenes; `output_dir/scenes` if None. Filled if it is not.
        stop_at: (stage, step) to stop at, with a checkpoint.
        device: where to train.
        workers: processes that draw scenes, and then batches; the result does not depend on them.
        tell: what is done with its progress.

    Returns:
        The folder of the model.

    Raises:
        InputError: the run in `output_dir`, or what lies in `store`, is another.
        SavedFileError: another run is training in `output_dir`.
    """
    folder, recipe = Path(output_dir), recipe or Recipe()
    with training_in(folder):
        # Before anything is drawn.
        if (folder / CHECKPOINT).exists():
            checked(folder / CHECKPOINT, seed, recipe)
        drawn = Store(store or folder / "scenes", recipe.scenes)
        drawn.fill(workers)
        with on(device):
            scenes = Scenes(drawn)
            SceneTrainer(folder, seed, recipe, scenes, tell=tell, workers=workers).run(stop_at)
    return folder / "model"
