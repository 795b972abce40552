"""The shipped model of tiles and clips, as any user of transformers would load and ask it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionProcessor

from foveate import reference
from foveate.reference.tiles_measure import clip_hits, tiled_hits
from tests.reference.test_weights import generated

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return reference.load("reference-tiles")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((reference.path("reference-tiles") / "training.json").read_text())


def test_what_it_is(loaded: Loaded) -> None:
    model, processor = loaded
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration"
    assert isinstance(processor, LlavaOnevisionProcessor)
    assert model.dtype == torch.float32 and not model.training


def _share(found: list[list[bool]]) -> float:
    every = [hit for conversation in found for hit in conversation]
    return sum(every) / len(every)


def test_scenes_are_answered_by_what_they_show(loaded: Loaded) -> None:
    """Twelve fresh ones in tiles; with another's picture most answers are wrong."""
    drawn = list(reference.tiled_samples("test", 12, start=5000))
    turns, images = [each.turns for each in drawn], [each.image for each in drawn]
    right = _share(tiled_hits(*loaded, turns, images))
    assert right > 0.7
    assert right > _share(tiled_hits(*loaded, turns, [*images[1:], images[0]])) + 0.2


def test_clips_are_answered_by_what_they_show(loaded: Loaded) -> None:
    drawn = list(reference.clip_samples("test", 12, start=5000, frames=8))
    turns = [each.turns for each in drawn]
    frames = [np.stack([np.asarray(frame) for frame in each.frames]) for each in drawn]
    right = _share(clip_hits(*loaded, turns, frames))
    assert right > 0.6
    assert right > _share(clip_hits(*loaded, turns, [*frames[1:], frames[0]])) + 0.15


def test_generate_says_what_measure_counts(loaded: Loaded) -> None:
    (sample,) = reference.tiled_samples("test", 1)
    (counted,) = tiled_hits(*loaded, [sample.turns], [sample.image])
    assert generated(loaded, sample) == counted


def test_record_is_complete(record: dict[str, Any]) -> None:
    assert {"seed", "recipe", "wall_minutes", "hardware"} <= set(record["training"])
    evaluation = record["evaluation"]
    for part, kinds in (("scenes", 12), ("clips", 9)):
        found = evaluation[part]
        assert found["count"] >= 500 and len(found["kinds"]) == kinds
        for row in found["kinds"].values():
            assert {"accuracy", "majority", "blind", "wrong_image"} <= set(row)
        clear = [k for k, row in found["kinds"].items() if row["accuracy"] >= row["majority"] + 0.2]
        assert set(clear) <= set(found["learned"])
    assert len(evaluation["scenes"]["learned"]) >= 8
