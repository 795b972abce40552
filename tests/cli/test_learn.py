"""`foveate train metacompress | optimal`: one command each, that resumes and explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate import reference
from foveate.cli import main
from foveate.mapping import Mapping
from foveate.training.processes import Process
from tests.training import launched, needs_features

pytestmark = needs_features

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def arguments(out: Path, cache: str, *more: str) -> list[str]:
    small = "--count 10 --batch 4 --steps 2 --log-every 1 --set dim=4 --cpu --no-tensorboard"
    return ["train", "metacompress", "--out", str(out), "--cache", cache, *small.split(), *more]


def test_it_trains_saves_and_goes_on(tmp_path: Path, cache: str, capsys: Capture) -> None:
    command = arguments(tmp_path, cache, "--keep", "8", "--keep", "5%", "--start", "pca")
    command += ["--cache-limit", "inf"]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    out = json.loads(said.out)
    assert {"eval_prediction_8", "eval_prediction_0.05", "eval_loss"} <= set(out["values"])
    assert "10 dialogues and 10 pictures" in said.err and "step 2 of 2" in said.err
    model, _ = reference.load()
    method = foveate.load(out["compressor"], model=model)
    with foveate.attach(model, method, keep=8):
        pass
    record = json.loads((Path(out["compressor"]) / "compressor.json").read_text())
    assert record["fields"]["dim"] == 4
    assert record["training"]["source"] == {
        "data": "scenes",
        "start": "pca",
        "sharpness": 8.0,
        "whiten": False,
    }
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == out and "step" not in said.err
    assert main(arguments(tmp_path, cache, "--keep", "9")) == 1
    assert "holds another training" in capsys.readouterr().err


def test_the_python_lines_are_the_same_training(
    tmp_path: Path, cache: str, capsys: Capture
) -> None:
    assert main([*arguments(tmp_path, cache, "--clip", "value"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    code = "\n".join(out["python"])
    names: dict[str, object] = {}
    exec(code, names)  # the record in the folder would refuse another training
    assert names["trained"].values == out["values"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--data", "gqa"], "Unknown source of examples"),
        (["--data", "absent.jsonl"], "No data file"),
        (["--start", "best"], "Unknown start"),
        (["--optimiser", "lion"], "optimiser must be one of"),
        (["--keep", "1.0"], "nothing to train"),
        (["--set", "size=3"], "size"),
        (["--answers", "none"], "answers must be"),
        (["--cache-limit", "0.00001"], "would take"),
        (["--cache-limit", "0"], "--cache-limit must be above 0, or inf for none; got 0"),
        (["--cache-limit", "-1"], "got -1"),
        (["--cache-limit", "nan"], "got nan"),
        (["--batch", "400"], "needs as many dialogues"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, capsys: Capture, extra: list[str], words: str
) -> None:
    folder = tmp_path / "run"
    assert main([*arguments(folder, str(tmp_path / "cache")), *extra]) == 1
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) <= 5


def test_the_best_mappings_are_stored_and_told(tmp_path: Path, cache: str, capsys: Capture) -> None:
    small = "--count 2 --steps 3 --batch 1 --keep 6 --rate 20 --json".split()
    command = ["train", "optimal", "--out", str(tmp_path), "--cache", cache, *small]
    assert main(command) == 0
    said = capsys.readouterr()
    out = json.loads(said.out)
    assert [each["dialogue"] for each in out["dialogues"]] == ["train-0", "train-1"]
    assert out["chance"] == pytest.approx(6 / 256) and Path(out["figure"]).is_file()
    assert out["before"] == pytest.approx(sum(d["before"] for d in out["dialogues"]) / 2)
    mapping = Mapping.load(tmp_path / out["dialogues"][0]["files"][0])
    assert mapping.m == 6
    torch.testing.assert_close(mapping.to_matrix().sum(1), torch.ones(6))
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "mappings").iterdir()}
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == out
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "mappings").iterdir()} == stamps


def test_questions_need_no_answers_but_those_that_are_learned_from(
    tmp_path: Path, capsys: Capture
) -> None:
    lines = []
    for shade in range(4):
        Image.new("RGB", (128, 128), (60 * shade, 30, 30)).save(tmp_path / f"{shade}.png")
        asked = {"image": f"{shade}.png", "turns": [{"question": "what colour is it ?"}]}
        lines.append(json.dumps(asked))
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(lines))
    more = ("--data", str(data), "--json")
    assert main([*arguments(tmp_path / "a", str(tmp_path / "c"), *more), "--batch", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not any(name.startswith("accuracy") for name in found["values"])
    assert "mine.jsonl', count=10, seed=0, answered=False)" in " ".join(found["python"])
    assert str(tmp_path) not in (Path(found["compressor"]) / "README.md").read_text()
    given = [*arguments(tmp_path / "b", str(tmp_path / "c"), *more), "--answers", "given"]
    assert main(given) == 1
    assert 'expected "question" and "answer"' in capsys.readouterr().err


def test_mappings_of_other_data_under_the_same_names_are_made_anew(
    tmp_path: Path, capsys: Capture
) -> None:
    Image.new("RGB", (128, 128), (200, 30, 30)).save(tmp_path / "a.png")
    data = tmp_path / "mine.jsonl"
    small = "--count 1 --steps 1 --keep 6 --answers given --json".split()
    command = ["train", "optimal", "--data", str(data), "--out", str(tmp_path / "o"), *small]
    before = []
    for answer in ("red", "blue", "red"):
        turns = [{"question": "what colour is it ?", "answer": answer}]
        data.write_text(json.dumps({"image": "a.png", "turns": turns}))
        assert main(command) == 0
        before.append(json.loads(capsys.readouterr().out)["before"])
    assert before[0] == before[2] != before[1]
    assert main([*command, "--steps", "2"]) == 1
    assert "delete this file" in capsys.readouterr().err


def test_the_best_mappings_are_made_where_the_process_computes(
    tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "optimal", "--count", "1", "--steps", "1", "--keep", "6", "--cpu"]
    command += ["--out", str(tmp_path), "--cache", cache]
    held: list[object] = []
    monkeypatch.setattr(Process, "hold", lambda self, model: held.append(self.device))
    assert main(command) == 0
    assert held == [torch.device("cpu")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_find_the_mappings_of_one(tmp_path: Path) -> None:
    """Five dialogues in twos: a round of four, and one in which the second process has nothing."""

    def found(name: str, processes: int = 1) -> dict[str, Any]:
        small = "--count 5 --steps 3 --batch 2 --keep 6 --rate 20 --cpu --json"
        done = launched(f"train optimal --out {tmp_path / name} {small}", processes)
        out: dict[str, Any] = json.loads(done.stdout)  # printed once
        return out

    one, two = found("one"), found("two", processes=2)
    lines = (tmp_path / "two" / "optimal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 5  # of each dialogue once: they are shared out
    assert [each["dialogue"] for each in two["dialogues"]] == [f"train-{i}" for i in range(5)]
    for a, b in zip(one["dialogues"], two["dialogues"], strict=True):
        for name in ("before", "after", "entropy"):
            assert b[name] == pytest.approx(a[name], rel=1e-4)
        for file in a["files"]:
            whole, shared = (Mapping.load(tmp_path / run / file) for run in ("one", "two"))
            torch.testing.assert_close(shared.to_matrix(), whole.to_matrix(), rtol=1e-3, atol=1e-5)
    again = found("two", processes=2)  # nothing is left to do
    assert again == two
