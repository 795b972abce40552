"""`foveate train relevance | seek`: a compressor from dialogues in one command that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate import catalog
from foveate.cli import main, train, train_relevance
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue, Turn, from_jsonl
from foveate.learned import LearnedCompressor
from foveate.predicting import RelevancePredictor
from foveate.training.processes import Process
from tests.families import checkpoints

Capture = pytest.CaptureFixture[str]


def test_every_learned_method_has_the_command_that_errors_name() -> None:
    learned = {name: catalog.method_class(name) for name in catalog.names()}
    learned = {name: cls for name, cls in learned.items() if issubclass(cls, LearnedCompressor)}
    assert set(learned) <= {each.name for each in train.app.registered_commands}
    predicting = {name for name, cls in learned.items() if issubclass(cls, RelevancePredictor)}
    assert set(train_relevance.METHODS) == predicting


@pytest.mark.parametrize(
    ("method", "other", "told"),
    [("relevance", "scaling=none", "scaling"), ("seek", "inner=16", "fields")],
)
def test_it_trains_a_compressor_for_a_checkpoint(
    method: str,
    other: str,
    told: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[Any] = []
    monkeypatch.setattr(Process, "hold", lambda self, model: held.append((self.device, model)))
    folder = checkpoints.save("llava", tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    from PIL import Image

    lines = []
    for shade in range(4):
        name = f"{shade}.png"
        Image.new("RGB", (20, 20), (60 * shade, 90, 0)).save(tmp_path / name)
        asked = Dialogue("a", (tmp_path / name,), (Turn("what colour ?", ("?",)),))
        (record,) = Batch(model, processor, [asked], [asked.load()], frozenset(), 3).converse(None)
        answer = record["answers"][0] or "?"
        turn = {"question": "what colour ?", "answer": answer}
        lines.append(json.dumps({"image": name, "turns": [turn]}))
    data, more = tmp_path / "mine.jsonl", tmp_path / "more.jsonl"
    data.write_text("\n".join(lines[:3]) + "\n")
    more.write_text("\n".join(lines[3:]) + "\n")
    assert [len(from_jsonl(file)) for file in (data, more)] == [3, 1]
    command = ["train", method, "--model", str(folder), "--data", str(data), "--data", str(more)]
    command += ["--cpu"]
    command += ["--out", str(tmp_path / "run"), "--epochs", "2", "--batch", "2", "--json"]
    command += ["--max-new-tokens", "3", "--validation", "0.25"]
    command += ["--pairs", "2", "--cache", str(tmp_path / "cache")]
    assert main(command) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert held and held[0][0] == torch.device("cpu")  # where the training computes
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
    assert found["pairs"] == {**found["pairs"], "questions": 4, "right": 4, "pairs": 4}
    assert "answers 4 of 4 questions right; 4 pairs are kept" in said.err
    assert set(found["values"]) >= {"loss", "overlap at 25 %"}
    assert found["values"]["accuracy_full"] == 1.0  # the answers are the model's own
    assert {"accuracy_0.25", "entering_0.25", "average_0.25"} <= set(found["values"])
    assert list((tmp_path / "run" / "runs").rglob("events*"))
    attention = "overlap at 25 %, attention" in found["values"]
    assert attention == (method == "relevance")  # the other is not told any
    names: dict[str, Any] = {}
    exec("\n".join(found["python"]), names)  # the record would refuse another training
    assert names["trained"].values == found["values"]
    card = (Path(found["compressor"]) / "README.md").read_text()
    assert "source: mine.jsonl, more.jsonl" in card and str(tmp_path) not in card
    made = foveate.load(found["compressor"], model=model)
    assert type(made) is catalog.method_class(method)
    assert getattr(made, "kinds") == ("image",)  # noqa: B009  (of a learned one)
    with foveate.attach(model, made, keep=5):
        pass
    assert main([*command, "--set", other]) != 0
    assert told in capsys.readouterr().err
    assert main([*command, "--out", str(data)]) == 1
    assert "is a file; --out needs a folder" in capsys.readouterr().err
