"""`foveate train reference`: one command that trains, resumes, measures, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from foveate.cli import main
from foveate.cli.train import _accuracies, view
from foveate.reference import train as training
from foveate.reference.report import Progress

TINY = {
    "scenes": 6,
    "vision_steps": 2,
    "vision_batch": 2,
    "language_steps": 2,
    "language_batch": 2,
    "dialogues": 2,
    "vision_width": 64,
    "vision_layers": 2,
    "width": 64,
    "layers": 2,
}
Capture = pytest.CaptureFixture[str]


def arguments(folder: Path, **changes: Any) -> list[str]:
    settings = [f"--set={name}={value}" for name, value in {**TINY, **changes}.items()]
    return ["train", "reference", "--out", str(folder), "--threads", "1", *settings]


def test_it_trains_measures_and_does_nothing_twice(tmp_path: Path, capsys: Capture) -> None:
    assert main([*arguments(tmp_path), "--scenes", "4", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    model = Path(out["model"])
    assert model == tmp_path / "model" and (model / "model.safetensors").exists()
    assert set(out["evaluation"]["all"]) >= {"accuracy", "majority", "blind", "wrong_image"}
    record = json.loads((model / "training.json").read_text())
    assert record["evaluation"] == out["evaluation"] and record["training"]["seed"] == 0
    weights = (model / "model.safetensors").read_bytes()
    assert main([*arguments(tmp_path), "--scenes", "0"]) == 0
    said = capsys.readouterr()
    assert f"the model is in {model}" in said.out
    assert (model / "model.safetensors").read_bytes() == weights
    # What was measured before is still there.
    assert json.loads((model / "training.json").read_text()) == record


def test_the_tiled_model_too(tmp_path: Path, capsys: Capture) -> None:
    tiles = {"vision_batch": 1, "vision_clips": 1, "language_tokens": 800}
    command = arguments(tmp_path, **tiles)
    command[2:2] = ["reference-tiles"]
    assert main([*command, "--scenes", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] is None
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "llava_onevision"


def test_the_tiled_model_has_no_store(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "run"
    command = ["train", "reference", "reference-tiles", "--out", str(folder), "--store", "scenes"]
    assert main(command) == 1
    assert "Leave --store out" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["nothing"], "Unknown reference model"),
        (["--recipe", "tpu"], "Unknown recipe"),
        (["--set", "size=3"], "Unknown number of the recipe"),
        (["--set", "scenes=many"], "Expected scenes=number"),
        (["--device", "cuda:7"], "There is no device"),
        (["--set", "language_batch=0"], "language_batch must be at least 1; got 0"),
        (["--set", "scenes=0"], "scenes must be at least 1"),
        (["--set", "dialogues=0"], "dialogues must be at least 1"),
        (["--set", "vision_steps=-1"], "vision_steps must be at least 0"),
        (["--set", "vision_width=100"], "vision_width must be a multiple of 32"),
        (["--set", "width=96"], "width must be a multiple of 64"),
        (["--set", "low_share=2"], "low_share must be a share from 0 to 1; got 2.0"),
        (["--set", "gaze=nan"], "gaze must be at least 0 and finite"),
        (["--set", "gaze_until=0"], "gaze_until must be above 0"),
        (["reference-tiles", "--set", "vision_frames=0"], "vision_frames must be at least 1"),
        (["reference-tiles", "--set", "clip_share=-0.1"], "clip_share must be a share"),
        (["reference-tiles", "--set", "language_batch=0"], "language_batch must be at least 1"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_drawn(
    tmp_path: Path, capsys: Capture, extra: list[str], words: str
) -> None:
    folder = tmp_path / "run"
    assert main(["train", "reference", "--out", str(folder), *extra]) == 1
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) <= 4
    assert not folder.exists()


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main([*arguments(tmp_path), "--scenes", "0"]) == 0
    assert main([*arguments(tmp_path, dialogues=3), "--scenes", "0"]) == 1
    assert "another seed or recipe" in capsys.readouterr().err


def test_interrupted_it_says_how_to_go_on(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.SceneTrainer, "run", interrupted)
    assert main([*arguments(tmp_path), "--scenes", "0"]) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", [(), ("wrong_image",), ("wrong_image", "blind")])
def test_accuracies_stand_beside_what_guessing_gives(lacking: tuple[str, ...]) -> None:
    titles = {"majority": "majority answer", "blind": "mean image", "wrong_image": "wrong image"}
    row = {"accuracy": 0.9, "majority": 0.31, "blind": 0.22, "wrong_image": 0.13}
    row = {name: value for name, value in row.items() if name not in lacking}
    part = {"kinds": {"colour": row}, "all": row}
    console = Console(width=160)
    with console.capture() as capture:
        console.print(_accuracies({"split": "test", "scenes": part, "clips": part}))
    head, *rows = capture.get().splitlines()
    assert len(rows) == 4 and rows[0].split()[:3] == ["scenes", "colour", "0.900"]
    for name, title in titles.items():
        assert (title in head) == (name not in lacking)
    assert rows[3].split()[2:] == [f"{value:.3f}" for value in row.values()]


def test_the_live_view_shows_the_last_validations_by_kind() -> None:
    seen = [
        Progress(2, 100 * i, 2000, float(i), {}, {"colour": i / 20, "count": 0.3})
        for i in range(1, 12)
    ]
    seen.append(Progress(2, 1150, 2000, 11.5, {"loss": 0.512}, {}))
    console = Console(width=160, record=True)
    with console.capture() as capture:
        console.print(view(seen))
    text = capture.get()
    assert "stage 2 of 2, step 1150 of 2000" in text and "loss 0.512" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["colour"] == [f"{i / 20:.2f}" for i in range(4, 12)]
    assert rows["count"] == ["0.30"] * 8
