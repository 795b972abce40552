"""What a training run tells while it goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from foveate.reference.architecture import GRID
from foveate.reference.data import Scenes
from foveate.reference.dialogues import training_dialogues
from foveate.reference.language_stage import packed_loss
from foveate.reference.packing import IGNORE, pack, text_encoder
from foveate.reference.questions import Question
from foveate.reference.store import Store

if TYPE_CHECKING:
    from foveate.reference.train import SceneTrainer, Trainer

_VALIDATION_SCENES = 48
# Share of right answers by kind.
Validate = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Progress:
    """What a run tells now and then.

    Attributes:
        stage, step, steps: where it stands; `steps` is the stage's length.
        minutes: wall time so far.
        means: loss and facts, means since the last time; empty when accuracies are told.
        accuracies: share of right answers by kind; empty between validations.
    """

    stage: int
    step: int
    steps: int
    minutes: float
    means: dict[str, float]
    accuracies: dict[str, float]

    def __str__(self) -> str:
        found = self.accuracies or self.means
        figures = {name: round(value, 2 if self.accuracies else 3) for name, value in found.items()}
        at = f"stage {self.stage} step {self.step} of {self.steps}, {self.minutes:.1f} min"
        return f"{at} {figures}"


Tell = Callable[[Progress], None]


def tell(progress: Progress) -> None:
    """One printed line."""
    print(progress, flush=True)


class Report:
    """Running means, told now and then, with validation in the second stage."""

    def __init__(
        self, trainer: Trainer, validate: Validate, every: int = 50, validate_every: int = 400
    ) -> None:
        self.trainer, self.every, self.validate_every = trainer, every, validate_every
        self.facts: dict[str, list[float]] = defaultdict(list)
        self.validate = validate

    def add(self, loss: float, facts: dict[str, float]) -> None:
        """Take in one step, and tell if it is time to."""
        for name, value in {"loss": loss, **facts}.items():
            self.facts[name].append(value)
        trainer = self.trainer
        if trainer.step % self.every == 0:
            means = {name: float(np.nanmean(each)) for name, each in self.facts.items()}
            self._tell(means, {})
            self.facts.clear()
        if trainer.answering and trainer.step % self.validate_every == 0:
            self._tell({}, self.validate())

    def _tell(self, means: dict[str, float], accuracies: dict[str, float]) -> None:
        trainer = self.trainer
        at = trainer.stage, trainer.step, trainer.steps
        trainer.tell(Progress(*at, trainer.minutes_spent, means, accuracies))


def scenes_validation(trainer: SceneTrainer) -> Validate:
    """Share of right answers per kind on validation scenes (descriptions included)."""
    validation = Scenes(Store(trainer.folder / "validation", _VALIDATION_SCENES, "validation"))
    validation.store.fill()

    def validate() -> dict[str, float]:
        indices = list(range(_VALIDATION_SCENES))
        rng = np.random.default_rng([3, 0])
        batch = [
            training_dialogues(layout, rng, 12, 0.15) for layout in validation.layouts_of(indices)
        ]
        right: dict[str, list[bool]] = defaultdict(list)
        for start in range(0, len(indices), 8):
            part = slice(start, start + 8)
            with torch.no_grad():
                pixels, _ = validation.arrays(indices[part])
                features = trainer.features(pixels, GRID)
                visual = trainer.model.model.multi_modal_projector(features)
            for kind, hit in answered(trainer.model, visual, batch[part]):
                right[kind].append(hit)
        return {kind: float(np.mean(hits)) for kind, hits in sorted(right.items())}

    return validate


@torch.no_grad()
def answered(
    model: PreTrainedModel, visual: Tensor, batch: Sequence[Sequence[Sequence[Question]]]
) -> list[tuple[str, bool]]:
    """Kind and whether it is answered right, for every question of `batch[picture][dialogue]`.

    Args:
        model: the whole model; its tower is not run.
        visual: float[b, n, width] the pictures' tokens as the decoder receives them.
        batch: the dialogues about each picture.
    """
    encode = text_encoder()
    packed = pack(batch, encode)
    _, logits = packed_loss(model, visual, packed)
    hits = iter((logits.argmax(-1) == packed.labels[packed.labels != IGNORE]).tolist())
    found = []
    for question in (turn for dialogues in batch for turns in dialogues for turn in turns):
        # Every token of the answer and its end, as greedy decoding would need it.
        tokens = [next(hits) for _ in range(len(encode(question.answer)) + 1)]
        found.append((question.kind, all(tokens)))
    return found
