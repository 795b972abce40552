"""What a training run prints while it goes on."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveate.reference.architecture import GRID
from foveate.reference.data import Scenes
from foveate.reference.language_stage import language_loss, training_dialogues
from foveate.reference.packing import IGNORE, pack, text_encoder
from foveate.reference.store import Store

if TYPE_CHECKING:
    from foveate.reference.train import Trainer

_VALIDATION_SCENES = 48


class Report:
    """Running means, printed now and then, with validation in the second stage."""

    def __init__(self, trainer: Trainer, every: int = 50, validate_every: int = 400) -> None:
        self.trainer, self.every, self.validate_every = trainer, every, validate_every
        self.facts: dict[str, list[float]] = defaultdict(list)
        folder = trainer.folder / "validation"
        self.validation = Scenes(Store(folder, _VALIDATION_SCENES, "validation"))
        self.validation.store.fill()

    def add(self, loss: float, facts: dict[str, float]) -> None:
        """Take in one step and print if it is time to."""
        for name, value in {"loss": loss, **facts}.items():
            self.facts[name].append(value)
        trainer = self.trainer
        if trainer.step % self.every == 0:
            means = {name: round(float(np.nanmean(each)), 3) for name, each in self.facts.items()}
            at = f"stage {trainer.stage} step {trainer.step} {trainer.minutes_spent:.1f} min"
            print(at, means, flush=True)
            self.facts.clear()
        if trainer.answering and trainer.step % self.validate_every == 0:
            found = validate(trainer, self.validation)
            print({kind: round(value, 2) for kind, value in found.items()}, flush=True)


def validate(trainer: Trainer, validation: Scenes) -> dict[str, float]:
    """Share of right answers per kind on validation scenes (descriptions included)."""
    indices = list(range(_VALIDATION_SCENES))
    rng = np.random.default_rng([3, 0])
    batch = [training_dialogues(layout, rng, 12, 0.15) for layout in validation.layouts_of(indices)]
    right: dict[str, list[bool]] = defaultdict(list)
    encode = text_encoder()
    for start in range(0, len(indices), 8):
        part, packed = indices[start : start + 8], pack(batch[start : start + 8], encode)
        with torch.no_grad():
            features = trainer.features(validation, part, GRID)
            _, logits = language_loss(trainer.model, features, packed)
        hits = iter((logits.argmax(-1) == packed.labels[packed.labels != IGNORE]).tolist())
        for dialogues in batch[start : start + 8]:
            for question in (turn for turns in dialogues for turn in turns):
                # Every token of the answer and its end, as greedy decoding would need it.
                tokens = [next(hits) for _ in range(len(encode(question.answer)) + 1)]
                right[question.kind].append(all(tokens))
    return {kind: float(np.mean(hits)) for kind, hits in sorted(right.items())}
