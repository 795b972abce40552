"""Saved compressors come back equal, and nothing else comes back at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import foveate
from foveate import catalog
from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.errors import SavedFileError, UnknownName
from foveate.mapping import Mapping
from tests.families.models import FAMILIES


@pytest.mark.parametrize("name", catalog.names())
def test_every_method_comes_back_equal(name: str, tmp_path: Path) -> None:
    method = catalog.make(name)
    foveate.save(method, tmp_path)
    assert foveate.load(tmp_path) == method


@pytest.mark.parametrize("name", catalog.names())
def test_every_preset_comes_back_equal(name: str, tmp_path: Path) -> None:
    for preset in catalog.method_class(name).presets.values():
        method = catalog.make(name, **preset.fields)
        foveate.save(method, tmp_path)
        assert foveate.load(tmp_path) == method


def test_changed_fields_come_back(tmp_path: Path) -> None:
    foveate.save(catalog.make("random", seed=7), tmp_path)
    assert foveate.load(tmp_path) == catalog.make("random", seed=7)
    assert foveate.load(tmp_path) != catalog.make("random")


@torch.no_grad()
def test_a_loaded_method_does_the_same(tmp_path: Path) -> None:
    model, inputs = FAMILIES["llava"].build(), FAMILIES["llava"].inputs()
    foveate.save(catalog.make("visionzip"), tmp_path, model=model)
    logits = []
    for method in (catalog.make("visionzip"), foveate.load(tmp_path, model=model)):
        with foveate.attach(model, method, keep=5):
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)


def test_another_model_is_refused(tmp_path: Path) -> None:
    foveate.save(catalog.make("pool"), tmp_path, model=FAMILIES["llava"].build())
    with pytest.raises(SavedFileError, match=r"model_type 'llava' \(here 'qwen2_vl'\)") as error:
        foveate.load(tmp_path, model=FAMILIES["qwen2_vl"].build())
    assert len(str(error.value).splitlines()) <= 4
    # Without a model there is nothing to compare with, and one saved for any model fits all.
    foveate.load(tmp_path)
    foveate.save(catalog.make("pool"), tmp_path)
    foveate.load(tmp_path, model=FAMILIES["qwen2_vl"].build())


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("text_config", "hidden_size"),
        ("text_config", "num_hidden_layers"),
        ("vision_config", "hidden_size"),
    ],
)
def test_a_model_of_other_sizes_is_refused(part: str, field: str, tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    foveate.save(catalog.make("pool"), tmp_path, model=model)
    config = getattr(model.config, part)
    setattr(config, field, getattr(config, field) + 1)
    with pytest.raises(SavedFileError, match=rf"another model: \w*{field} \d+ \(here \d+\)\."):
        foveate.load(tmp_path, model=model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no saved compressor"),
        ("[]", "is no saved compressor"),
        ('{"method": "pool"}', "is no saved compressor"),
        ('{"format": 1, "method": "pool", "fields": [1]}', "is no saved compressor"),
        ('{"format": 1, "method": 3, "fields": {}}', "is no saved compressor"),
        ('{"format": 1, "method": "pool", "fields": {}, "model": "x"}', "is no saved compressor"),
        ('{"format": 1, "method": "pool", "fields": {}, "model": ""}', "is no saved compressor"),
        (
            '{"format": 1, "method": "metacompress", "fields": {}, "model": {"weights": "x"}}',
            "is no saved compressor",
        ),
        ('{"format": 99, "method": "pool", "fields": {}}', "format 99"),
        ('{"format": 0, "method": "pool", "fields": {}}', "format 0"),
    ],
)
def test_a_broken_file_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "compressor.json").write_text(content)
    with pytest.raises(SavedFileError, match=message) as error:
        foveate.load(tmp_path)
    assert len(str(error.value).splitlines()) <= 4


@pytest.mark.parametrize("fields", ['{"dim": "64"}', '{"dim": 64.0}', '{"pool": "3d"}'])
def test_fields_that_make_no_method_are_refused(fields: str, tmp_path: Path) -> None:
    start = '{"format": 1, "method": "metacompress", "model": {"weights": "x", "hidden_size": '
    for size, given in ((8, fields), (-1, "{}")):
        (tmp_path / "compressor.json").write_text(f'{start}{size}}}, "fields": {given}}}')
        with pytest.raises(SavedFileError, match="make no metacompress") as error:
            foveate.load(tmp_path)
        assert len(str(error.value).splitlines()) <= 4


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    method: Any = catalog.make("metacompress")
    found = method.initialised(model)
    with torch.no_grad():
        found.net.key[0, 0] = torch.nan
    with pytest.raises(SavedFileError, match=r"1 of the 4 weights of metacompress .*\(key\)"):
        foveate.save(found, tmp_path / "new", model=model)
    assert not (tmp_path / "new").exists()


def test_unknown_names_in_a_file(tmp_path: Path) -> None:
    record = {"format": 1, "method": "divprun", "fields": {}}
    (tmp_path / "compressor.json").write_text(json.dumps(record))
    with pytest.raises(UnknownName, match="divprune"):
        foveate.load(tmp_path)
    record = {"format": 1, "method": "random", "fields": {"sed": 1}}
    (tmp_path / "compressor.json").write_text(json.dumps(record))
    with pytest.raises(UnknownName, match="seed"):
        foveate.load(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(SavedFileError, match=r"compressor\.json"):
        foveate.load(tmp_path)


@dataclasses.dataclass(frozen=True)
class Uncatalogued(Compressor):
    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        return Mapping.identity(tokens.n)


def test_what_nobody_could_load_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(SavedFileError, match="Uncatalogued"):
        foveate.save(Uncatalogued(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_field_that_is_no_plain_value_leaves_the_old_file(tmp_path: Path) -> None:
    foveate.save(catalog.make("trim", clip="some/checkpoint"), tmp_path)
    before = (tmp_path / "compressor.json").read_text()
    method = catalog.make("trim")
    object.__setattr__(method, "clip", object())
    with pytest.raises(SavedFileError, match="'clip' holds a object"):
        foveate.save(method, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["compressor.json"]
    assert (tmp_path / "compressor.json").read_text() == before
