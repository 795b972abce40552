"""Learned compressors: weights, whose model they are for, files."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

import foveate
from foveate import catalog, reference
from foveate.errors import SavedFileError
from foveate.fingerprint import of_bits, of_weights
from foveate.learned import SHIPPED, LearnedCompressor
from foveate.methods.metacompress import MetaCompress
from foveate.methods.seek import Seek
from tests.families.models import FAMILIES

LEARNED = [name for name in catalog.names() if catalog.method_class(name).trainable]


def fresh(name: str, model: torch.nn.Module, seed: int = 0) -> LearnedCompressor:
    method = catalog.make(name)
    assert isinstance(method, LearnedCompressor)
    return method.initialised(model, seed)


@pytest.mark.parametrize("name", LEARNED)
@torch.no_grad()
def test_saved_weights_come_back_and_do_the_same(name: str, tmp_path: Path) -> None:
    model, inputs = FAMILIES["llava"].build(), FAMILIES["llava"].inputs()
    method = fresh(name, model, seed=3)
    foveate.save(method, tmp_path, model=model, training={"data": {"questions": 12}})
    loaded = foveate.load(tmp_path, model=model)
    logits = []
    for each in (method, loaded, fresh(name, model, seed=4)):
        with foveate.attach(model, each, keep=5):
            logits.append(model(**inputs).logits)
    assert torch.equal(logits[0], logits[1])
    card = (tmp_path / "README.md").read_text()
    assert "questions: 12" in card and of_weights(model) in card and "library_name: foveate" in card


def test_the_card_names_a_model_of_the_hub_but_no_folder_of_this_machine(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    for name, said in (("someone/a-model", "someone/a-model"), (str(tmp_path), tmp_path.name)):
        model.name_or_path = name
        foveate.save(fresh("metacompress", model), tmp_path / "saved", model=model)
        card = (tmp_path / "saved" / "README.md").read_text()
        assert f"- name: {said}\n" in card
        assert ("base_model: someone/a-model" in card) == (said == name)


def test_what_is_uploaded_says_what_it_is_and_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["llava"].build()
    model.name_or_path, model.config._commit_hash = "someone/a-model", "0123abc"
    rows = [
        {"keep": None, "accuracy": 0.9, "entering": 576.0, "average": 576.0},
        {"keep": 0.05, "accuracy": 0.85, "entering": 28.0, "average": 28.0},
    ]
    found = {"dialogues": 100, "held": 230, "questions": 300, "rows": rows}
    training = {"settings": {"keeps": [0.05]}, "accuracy": found}
    method = fresh("metacompress", model)
    method.save_pretrained(tmp_path / "saved", model=model)  # what foveate.save does
    foveate.save(method, tmp_path / "saved", model=model, training=training)
    (tmp_path / "saved" / "optimizer.pt").write_bytes(b"not mine to share")
    uploaded: dict[str, str] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            assert (repo, private, exist_ok) == ("me/mine", True, True)

        def upload_folder(self, repo_id: str, folder_path: str, allow_patterns: list[str]) -> str:
            for file in filter_repo_objects(os.listdir(folder_path), allow_patterns=allow_patterns):
                uploaded[file] = (Path(folder_path) / file).read_bytes().decode("latin-1")
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    where = foveate.push_to_hub(tmp_path / "saved", "me/mine", private=True, token="secret")
    assert where == "https://hub/me/mine"
    assert set(uploaded) == {"README.md", "compressor.json", "compressor.safetensors"}
    card = uploaded["README.md"]
    assert "- revision: 0123abc\n" in card and "base_model: someone/a-model" in card
    assert "keep=0.05, processor=processor)" in card and "100 of 230 dialogues held out" in card
    assert "| full model | 0.900 | 576.0 | 576.0 |\n| 5 % | 0.850 | 28.0 | 28.0 |\n" in card
    assert "Training: accuracy" not in card
    assert 'from_pretrained("someone/a-model")\n' in card and "# pip install foveate\n" in card
    # The commit says where the base model lies, not what it is: another copy of it will do.
    del model.config._commit_hash
    again = MetaCompress.from_pretrained(tmp_path / "saved", model=model)
    assert again == method and again.trained_on == of_weights(model)
    with pytest.raises(SavedFileError, match="holds a MetaCompress, not a Seek"):
        Seek.from_pretrained(tmp_path / "saved")


def test_a_revision_of_the_hub_and_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llava"].build()
    foveate.save(fresh("metacompress", model), tmp_path, model=model)
    asked: list[tuple[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"], options["token"]))  # type: ignore[arg-type]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    foveate.load("someone/mine", revision="v2", token="secret")
    MetaCompress.from_pretrained("someone/mine", revision="v2")
    assert asked == [("someone/mine", "v2", "secret"), ("someone/mine", "v2", None)]


SHIPPED_FOLDERS = sorted(SHIPPED.glob("*/*/"))


@functools.cache
def shipped_for() -> dict[str, str]:
    """Weights -> the reference model that has them."""
    return {of_weights(reference.load(name)[0]): name for name in ("reference", "reference-tiles")}


@pytest.mark.parametrize("folder", SHIPPED_FOLDERS, ids=lambda at: f"{at.parent.name}-{at.name}")
@torch.no_grad()
def test_shipped_weights_are_found_by_name(folder: Path) -> None:
    model, processor = reference.load(shipped_for()[folder.name])
    sample = next(reference.samples("test", 1))
    text = f"user: <image>\n{sample.turns[0][0]} assistant:"
    inputs = processor(images=sample.image, text=text, return_tensors="pt")
    with foveate.attach(model, folder.parent.name, keep=26, processor=processor) as run:
        model(**inputs)
    assert run.items[0].mapping.m == 26
    assert isinstance(run.method, LearnedCompressor) and run.method.trained_on == folder.name


def test_shipped_weights_of_other_settings_are_not_taken() -> None:
    model, _ = reference.load()
    with foveate.attach(model, MetaCompress(pool="2d"), keep=5) as run:  # what it is
        spelled = run.method
    with foveate.attach(model, "metacompress", keep=5) as run:
        assert run.method == spelled
    with pytest.raises(SavedFileError, match="other settings") as error:
        foveate.attach(model, MetaCompress(dim=8), keep=5)
    assert len(str(error.value).splitlines()) <= 4


def test_a_chain_needs_weights_for_its_learned_part() -> None:
    model, other = FAMILIES["llava"].build(), FAMILIES["llava"].build()
    with torch.no_grad():
        other.lm_head.weight.add_(0.5)
    with pytest.raises(SavedFileError, match="has to be trained"):
        foveate.attach(model, foveate.chain("metacompress", "fastv"), keep=3)
    learned = dataclasses.replace(fresh("metacompress", model), trained_on=of_weights(model))
    both = foveate.chain(learned, "fastv")
    with foveate.attach(model, both, keep=3):
        pass
    with pytest.raises(SavedFileError, match="trained for another model"):
        foveate.attach(other, both, keep=3)


@pytest.mark.parametrize("name", LEARNED)
def test_another_model_is_refused(name: str, tmp_path: Path) -> None:
    model, other = FAMILIES["llava"].build(), FAMILIES["llava"].build()
    foveate.save(fresh(name, model), tmp_path, model=model)
    loaded = foveate.load(tmp_path)
    with foveate.attach(other, loaded, keep=3):  # equal weights are the same model
        pass
    with torch.no_grad():
        other.lm_head.weight.add_(0.5)
    with pytest.raises(SavedFileError, match="trained for another model") as error:
        foveate.attach(other, loaded, keep=3)
    assert len(str(error.value).splitlines()) <= 4
    with pytest.raises(SavedFileError, match="another model"):
        foveate.load(tmp_path, model=other)


@pytest.mark.parametrize("name", LEARNED)
def test_without_weights_it_says_what_to_do(name: str) -> None:
    model = FAMILIES["llava"].build()
    with pytest.raises(SavedFileError, match=f"foveate train {name}") as error:
        foveate.attach(model, name, keep=3)
    assert len(str(error.value).splitlines()) <= 4
    with foveate.attach(model, name, keep=1.0):  # nothing acts, so nothing is needed
        pass
    with pytest.raises(SavedFileError, match="which fit one model"):
        foveate.save(fresh(name, model), "unwritten")
    assert not Path("unwritten").exists()


def test_the_fingerprint_is_of_the_numbers_not_of_how_they_were_loaded() -> None:
    model = FAMILIES["llava"].build(dtype=torch.float32)
    found = of_weights(model)
    assert of_weights(model.to(torch.bfloat16)) == found
    assert of_weights(FAMILIES["qwen2_vl"].build()) != found


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    foveate.save(fresh("metacompress", model), tmp_path, model=model)
    weights = tmp_path / "compressor.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(SavedFileError, match="does not fit"):
        foveate.load(tmp_path)
    weights.unlink()
    with pytest.raises(SavedFileError, match="holds no compressor"):
        foveate.load(tmp_path)


def test_no_such_folder_and_no_hub(tmp_path: Path) -> None:
    with pytest.raises(SavedFileError, match="holds no saved compressor"):
        foveate.load(tmp_path / "absent")
    with pytest.raises(SavedFileError, match="owner/name"):
        foveate.load("nobody/nothing-of-this-name")


def test_initialising_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llava"].build()
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fresh("metacompress", model, 7)
    assert seeded == []  # those of accelerators
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = fresh("metacompress", model)
    assert torch.equal(torch.rand(3), expected)
    again = fresh("metacompress", model)
    assert first.net is not None and again.net is not None
    for a, b in zip(first.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert dataclasses.replace(first, dim=8) != first


@pytest.mark.parametrize("part", ["README.md", "compressor.safetensors", "compressor.json"])
def test_a_save_that_is_cut_off_leaves_no_weights_under_another_record(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["llava"].build()
    foveate.save(fresh("metacompress", model, seed=1), tmp_path, model=model)
    replace = os.replace

    def cut(source: Path, target: Path) -> None:
        if Path(target).name == part:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    other = FAMILIES["llava"].build(seed=5)
    with pytest.raises(KeyboardInterrupt):
        foveate.save(fresh("metacompress", other, seed=2), tmp_path, model=other)
    with pytest.raises(SavedFileError, match="holds no saved compressor"):
        foveate.load(tmp_path, model=model)


def test_parameters_may_lie_in_memory_as_they_like(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    method = fresh("metacompress", model)
    assert method.net is not None
    for parameter in method.net.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.T.contiguous().T
    assert not all(parameter.is_contiguous() for parameter in method.net.parameters())
    foveate.save(method, tmp_path, model=model)
    loaded = foveate.load(tmp_path)
    assert isinstance(loaded, MetaCompress) and loaded.net is not None
    for a, b in zip(method.net.parameters(), loaded.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_older_one_is_replaced_as_a_whole(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    foveate.save(fresh("metacompress", model), tmp_path, model=model)
    foveate.save(catalog.make("pool"), tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["compressor.json"]
    (tmp_path / "README.md").write_text("mine")  # no card of ours: there are no weights beside it
    foveate.save(catalog.make("pool"), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_bits_tell_apart_what_a_fingerprint_may_not() -> None:
    net = torch.nn.Linear(40, 40)
    before, bits = of_weights(net), of_bits(net)
    assert of_bits(net) == bits
    with torch.no_grad():
        net.weight[3, 3] += 1e-6
    assert of_weights(net) == before and of_bits(net) != bits
