"""The page on what can be predicted before the first layer: its settings, and what layers see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from benchmarks import relevance
from foveate.evaluation.answering import Batch
from foveate.training.learning import FOLDER
from foveate.training.pairs import observations
from tests.evaluation.test_turns import dialogue
from tests.families import checkpoints
from tests.families.models import FAMILIES


def test_every_setting_is_asked_once_and_by_itself(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    for seed, (name, variant) in enumerate(relevance.VARIANTS.items()):
        method: Any = variant.method.initialised(model, seed)
        foveate.save(method, tmp_path / name / FOLDER, model=model)
    found = relevance.groups(tmp_path)
    names = len(relevance.VARIANTS) + len(relevance.BESIDE)
    assert len(found) == names * len(relevance.BUDGETS)
    keys = [setting.key for group in found.values() for setting in group]
    assert len(set(keys)) == len(keys)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = checkpoints.save("llava", tmp_path_factory.mktemp("llava"))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def test_the_first_layer_is_what_the_method_observes(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    asked = dialogue(0, 1)
    inputs = Batch(model, processor, [asked], [asked.load()], frozenset(), 4).inputs([0], 0, [[]])
    seen = relevance._Looking(total=2)
    with torch.no_grad(), foveate.attach(model, seen, processor=processor, _force=True):
        model(**inputs, use_cache=False)
    (told,) = observations(relevance.VARIANTS["published"].method, model, inputs, processor)
    assert len(seen.noted) == 2
    torch.testing.assert_close(seen.noted[0][0], told["attention"])
    assert not torch.allclose(seen.noted[1][0], told["attention"])
