"""What makes stored answers stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

import foveate
from foveate.evaluation import fingerprints
from foveate.evaluation.settings import Setting
from tests.families import checkpoints
from tests.families.llava import make_llava


class _Model(torch.nn.Linear):
    def __init__(self, backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(40, 40, dtype=dtype)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.config = transformers.CLIPVisionConfig(attn_implementation=backend)


def test_the_models_fingerprint_sees_every_weight_its_type_and_the_attention() -> None:
    changed = _Model()
    changed.weight.data[-1, -1] = 1e-8
    models = [_Model(), changed, _Model("eager"), _Model(dtype=torch.bfloat16)]
    assert len({fingerprints.model(each) for each in models}) == 4
    assert fingerprints.model(_Model()) == fingerprints.model(_Model())
    assert fingerprints.model(_Model().to("meta"))  # weights kept elsewhere are not read


def test_fingerprints_do_not_see_the_folder_that_was_loaded(tmp_path: Path) -> None:
    made = make_llava("sdpa")
    found = set()
    for place in ("a", "b"):
        made.save_pretrained(tmp_path / place)
        checkpoints.PROCESSORS["llava"]().save_pretrained(tmp_path / place)
        model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / place)
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / place)
        assert model.config._name_or_path.endswith(place)
        found.add((fingerprints.model(model), fingerprints.processor(processor)))
    assert len(found) == 1


def test_the_processors_fingerprint_sees_template_and_pictures() -> None:
    def made(template: str | None = None, side: int | None = None) -> str:
        processor = checkpoints.PROCESSORS["llava"]()
        processor.chat_template = template or processor.chat_template
        if side is not None:
            processor.image_processor.size = {"shortest_edge": side}
        return fingerprints.processor(processor)

    assert made() == made()
    assert len({made(), made(template="{{ 1 }}"), made(side=7)}) == 3


def test_an_edit_of_the_code_makes_answers_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprints.code()
    assert before.startswith(foveate.__version__)
    shutil.copytree(Path(foveate.__file__).parent, tmp_path / "foveate")
    monkeypatch.setattr(foveate, "__file__", str(tmp_path / "foveate" / "__init__.py"))
    assert fingerprints.code() == before
    with (tmp_path / "foveate" / "evaluation" / "report.py").open("a") as file:
        file.write("# told differently")
    assert fingerprints.code() == before
    pool = tmp_path / "foveate" / "methods" / "pool.py"
    text = pool.read_text()
    assert text.startswith('"""')
    pool.write_text(text.replace('"""', '"""Said otherwise. ', 1) + "# a remark")
    assert fingerprints.code() == before
    pool.write_text(text + "pooled = 'differently'")
    assert fingerprints.code() != before


def test_other_shipped_weights_are_other_answers_of_what_finds_them_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(foveate.__file__).parent, tmp_path / "foveate")
    monkeypatch.setattr(foveate, "__file__", str(tmp_path / "foveate" / "__init__.py"))
    seek, chained = Setting("seek", 0.5), Setting("seek/fastv", 0.5)
    others = [Setting("metacompress", 0.5), Setting("fastv", 0.5), Setting("relevance-map", 0.5)]
    before, same = [seek.key, chained.key], [each.key for each in others]
    for file in ("compressor.safetensors", "compressor.json"):
        found = sorted((tmp_path / "foveate" / "weights" / "seek").rglob(file))
        assert found
        found[0].write_bytes(found[0].read_bytes() + b" ")
        after = [seek.key, chained.key]
        assert not set(after) & set(before)
        assert [each.key for each in others] == same
        before = after
