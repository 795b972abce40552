"""The best P of each picture for a page of claims: found, stored, and where it looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from foveate.evaluation.claims import Claim, Side
from foveate.evaluation.data import Dialogue
from foveate.evaluation.optimum import Optimum
from foveate.evaluation.verdicts import Evidence
from foveate.mapping import Mapping
from foveate.training import optimal
from foveate.training.teacher import Teacher

BATCH = 10  # dialogues side by side
KEPT = "kept.json"
_NONE = torch.zeros(0)
CHANCE = "chance"


def find(
    setting: Optimum,
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
    cache: Path,
    progress: Progress | None = None,
) -> None:
    """Find and store what is not there yet: every dialogue's P, and which attention it follows.

    Args:
        setting: budget, steps, and where the mappings go.
        model, processor: as loaded.
        dialogues: one picture each.
        cache: folder that trainings share.
        progress: where to show how far it is.
    """
    assert setting.keep is not None and setting.folder is not None
    teacher = Teacher(model, processor, cache / "teacher", reads=optimal.READS)
    missing = [each for each in dialogues if not setting.file(each.name).is_file()]
    noted = setting.folder / KEPT
    known: dict[str, dict[str, float]] = json.loads(noted.read_text()) if noted.is_file() else {}
    if not missing and all(each.name in known for each in dialogues):
        return
    teacher.fill(dialogues, batch_size=20)
    task = None if progress is None else progress.add_task("best P", total=len(missing))
    for start in range(0, len(missing), BATCH):
        part = missing[start : start + BATCH]
        optimal.save(
            optimal.optimise(teacher, part, setting.keep, steps=setting.steps), setting.folder
        )
        if progress is not None and task is not None:
            progress.advance(task, len(part))
    found = [
        optimal.Optimal(each.name, (Mapping.load(setting.file(each.name)),), 0.0, 0.0, _NONE, 0.0)
        for each in dialogues
    ]
    places = optimal.looked(teacher, dialogues, found)
    told = {
        each.name: {
            CHANCE: place.chance,
            **{name: place.share(name) for name in optimal.ATTENTIONS},
        }
        for each, place in zip(dialogues, places, strict=True)
    }
    partial = noted.with_suffix(".partial")
    partial.write_text(json.dumps(told, indent=1) + "\n")
    partial.replace(noted)


def stored(settings: Sequence[Optimum]) -> list[dict[str, dict[str, float]]]:
    """Of each model: dialogue -> the share of kept tokens that have much of each attention."""
    files = [each.folder / KEPT for each in settings if each.folder is not None]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def evidence(claim: Claim, found: Sequence[dict[str, dict[str, float]]]) -> Evidence | str:
    """The share of kept tokens among the m of largest attention; its sides name the attention."""
    if not found:
        return "the best P of no picture was found"

    def share(side: Side) -> Any:
        return np.array([[each[side.method] for each in model.values()] for model in found])

    better, worse = share(claim.better), share(claim.worse)
    return Evidence(better, worse, np.ones(better.shape[1]))
