"""The page on what learning brings MetaCompress: its settings are distinct, its names are known."""

from __future__ import annotations

from pathlib import Path

import foveate
from benchmarks import metacompress
from foveate.methods.metacompress import MetaCompress
from tests.families.models import FAMILIES


def test_every_setting_is_asked_once_and_by_itself(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    for seed, name in enumerate(metacompress.VARIANTS):
        method = MetaCompress().initialised(model, seed)
        foveate.save(method, tmp_path / name / "compressor", model=model)
    found = metacompress.groups(tmp_path)
    names = len(metacompress.VARIANTS) + len(metacompress.BESIDE)
    assert len(found) == names * len(metacompress.BUDGETS)
    keys = [setting.key for group in found.values() for setting in group]
    assert len(set(keys)) == len(keys)


def test_trained_variants_differ_from_what_they_start_from() -> None:
    trained = [each for each in metacompress.VARIANTS.values() if each.recipe is not None]
    assert len({str(each.recipe) + each.says for each in trained}) == len(trained)
    assert {each.recipe["clip"] for each in trained if each.recipe and "clip" in each.recipe} == {
        "norm",
        "value",
    }
