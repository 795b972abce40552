"""What a user gets wrong: a few words on stderr, a status, nothing written, no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from PIL import Image

from foveate.cli import main
from foveate.cli.output import call, folder_for
from foveate.errors import InputError
from foveate.evaluation.answering import Batch

Folder = Callable[[str], str]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: Capture, *arguments: str, status: int = 1) -> str:
    """The message of a command that fails."""
    before = set(Path().rglob("*"))
    assert main(list(arguments)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert set(Path().rglob("*")) == before
    if status == 1:
        assert len(captured.err.strip().splitlines()) <= 4
    return " ".join(captured.err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "vizionzip", "-k", "4"], "Unknown method 'vizionzip'. Did you mean 'visionzip'?"),
        (["-m", "random:sed=1", "-k", "4"], "Unknown field of random 'sed'. Did you mean 'seed'?"),
        (["-m", "visionzip", "--preset", "64"], "Unknown preset '64'"),
        (["-k", "0"], "keep must be a count (int >= 1) or a fraction"),
        (["-k", "-1"], "keep must be a count"),
        (["-k", "nan"], "keep must be a count"),
        (["-k", "1.5"], "keep must be a count"),
        (["-k", "abc"], "A budget is a count like 64 or a share like 0.25 or 25%; got 'abc'"),
        ([], "Give a budget: --keep 64"),
        (["-m", "visionzip@authors-64", "-k", "4"], "states its own budget"),
        (["-k", "4", "--dtype", "float8"], "Unknown dtype 'float8'"),
        (
            ["-k", "4", "--model", "./absent"],
            "No folder ./absent. Expected reference, reference-tiles, a Hub id",
        ),
        (["-k", "4", "--positions", "new"], "Unknown positions 'new'"),
        (["-k", "257"], "keep=257 asks for more tokens than this image has (n=256)"),
    ],
)
def test_options(arguments: list[str], message: str, capsys: Capture) -> None:
    assert message in refused(capsys, "run", "scene:0", "what ?", *arguments)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.png", "No image absent.png"),
        ("scene:x", "Scenes are numbered from 0"),
        ("empty.png", "is empty"),
        ("words.png", "is no image that can be read"),
    ],
)
def test_images(name: str, message: str, capsys: Capture) -> None:
    Path("empty.png").touch()
    Path("words.png").write_text("no picture")
    assert message in refused(capsys, "draw", name, "-k", "4")


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "-m", "uniform", "-k", "4", "--count", "2", "--out", "afile/sub"],
        ["draw", "scene:0", "-m", "uniform", "-k", "4", "--out", "afile/sub.png"],
        ["train", "optimal", "--count", "1", "--steps", "1", "--out", "afile/sub"],
    ],
)
def test_a_place_where_nothing_can_be_written(command: list[str], capsys: Capture) -> None:
    Path("afile").write_text("no folder")
    assert "afile" in refused(capsys, *command)


def test_the_folder_that_was_said_or_one_of_its_own() -> None:
    assert folder_for(None, "train", "mine") == Path("output/train/mine")
    assert folder_for(Path("said"), "train", "mine") == Path("said")
    Path("afolder").mkdir()
    assert folder_for(Path("afolder")) == Path("afolder")
    Path("afile").write_text("no folder")
    with pytest.raises(InputError, match="afile is a file; --out needs a folder"):
        folder_for(Path("afile"))


def test_a_call_as_source_leaves_out_what_is_not_said() -> None:
    found = call("f", "model", "'a'", keep=0.25, seed=0, relu=False, count=None)
    assert found == "f(model, 'a', keep=0.25, seed=0, relu=False)"
    assert call("f", **{"fastv.layer": 2, "keep": 3}) == "f(**{'fastv.layer': 2}, keep=3)"


@pytest.mark.parametrize("share", ["-0.1", "0.95"])
def test_a_share_to_validate_on_is_a_share(share: str, capsys: Capture) -> None:
    refused(capsys, "train", "metacompress", "--validation", share, status=2)


def test_no_length_at_all(capsys: Capture) -> None:
    command = ["run", "scene:0", "what ?", "-m", "uniform", "-k", "4", "--max-new-tokens", "0"]
    refused(capsys, *command, status=2)


def test_a_method_that_the_model_cannot_serve(checkpoint: Folder, capsys: Capture) -> None:
    model = checkpoint("qwen2_vl")
    message = refused(capsys, "run", "scene:0", "x", "-m", "tome", "-k", "4", "--model", model)
    assert "StageNotAvailable" in message


def test_a_method_that_needs_more(checkpoint: Folder, capsys: Capture) -> None:
    model = checkpoint("llava")
    message = refused(capsys, "run", "scene:0", "x", "-m", "trim", "-k", "4", "--model", model)
    assert "TRIM needs the CLIP checkpoint" in message


def test_a_folder_without_a_model(capsys: Capture, tmp_path: Path) -> None:
    message = refused(capsys, "run", "scene:0", "x", "-k", "4", "--model", str(tmp_path))
    assert "Cannot load" in message


def test_an_unsupported_model(tmp_path: Path, checkpoint: Folder, capsys: Capture) -> None:
    from tests.families import checkpoints

    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            image_size=20, patch_size=4,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=200, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2,
        ),
        image_token_index=190,
        vision_feature_layers=[-1],
    )  # fmt: skip
    transformers.VipLlavaForConditionalGeneration(config).save_pretrained(tmp_path / "vip")
    checkpoints.PROCESSORS["llava"]().save_pretrained(tmp_path / "vip")
    arguments = ["run", "scene:0", "x", "-k", "4", "--model", "vip", "--max-new-tokens", "1"]
    message = refused(capsys, *arguments)
    assert "model_type 'vipllava'" in message
    assert "llava_next" in message
    assert "docs/adding-a-model.md" in message


def test_a_processor_without_torchvision(
    checkpoint: Folder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ImportError("Qwen2VLVideoProcessor requires the Torchvision library but it was not")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", load)
    model = checkpoint("qwen2_vl")
    message = refused(capsys, "run", "scene:0", "x", "-k", "4", "--model", model)
    assert "needs the package 'torchvision'" in message
    assert "pip install 'foveate[vision]'" in message


def test_errors_as_json(capsys: Capture) -> None:
    assert main(["run", "scene:0", "x", "-m", "pol", "-k", "4", "--json"]) == 1
    out = json.loads(capsys.readouterr().out)
    assert out["error"] == "UnknownName"
    assert "'pool'" in out["message"]


def test_usage(capsys: Capture) -> None:
    assert "QUESTION" in refused(capsys, "run", "scene:0", status=2).upper()
    assert "No such option" in refused(capsys, "list", "--all", status=2)


def test_broken_data(capsys: Capture, checkpoint: Folder) -> None:
    Path("data.jsonl").write_text('{"image": "a.png"}\n')
    model = checkpoint("llava")
    message = refused(capsys, "compare", "--data", "data.jsonl", "--model", model)
    assert 'data.jsonl:1 needs "image" (or "video", or "frames") and "turns"' in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--turns", "last"], "Unknown way of turning 'last'"),
        (["--data", "clip"], "Unknown kind of dialogues 'clip'. Did you mean 'clips'?"),
        (["--data", "clip.jsonl"], "No data file clip.jsonl"),
        (["--data", "tiles", "--split", "train"], "Unknown split 'train'"),
        (["-m", "visionzip/fast"], "Did you mean 'fastv'?"),
        (["-m", "visionzip/fastv:keeps=[0.5]"], "takes as many budgets"),
        (["--all-seeds", "absent"], "No folder absent. --all-seeds needs one with seed0"),
        (["--all-seeds", "empty"], "empty holds no checkpoint of a training seed"),
        (["--all-seeds", "empty", "--model", "reference"], "leave out --model"),
        (["--model", "a", "--model", "./a"], "The model ./a is given twice"),
    ],
)
def test_comparisons(arguments: list[str], message: str, capsys: Capture) -> None:
    Path("empty", "seed0").mkdir(parents=True)
    assert message in refused(capsys, "compare", *arguments)


def test_an_oracle_of_pictures_that_nobody_drew(capsys: Capture, checkpoint: Folder) -> None:
    Image.new("RGB", (20, 20)).save("a.png")
    line = {"image": "a.png", "turns": [{"question": "?", "answer": "x"}]}
    Path("data.jsonl").write_text(json.dumps(line))
    given = ["compare", "--data", "data.jsonl", "--model", checkpoint("llava")]
    assert "known of the shipped scenes only" in refused(capsys, *given, "--oracle")
    assert "no dialogue here has a second one" in refused(capsys, *given, "--turns", "both")


def test_a_comparison_that_is_interrupted(
    capsys: Capture, checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    Image.new("RGB", (20, 20)).save("a.png")
    line = {"image": "a.png", "turns": [{"question": "?", "answer": "x"}]}
    Path("data.jsonl").write_text(json.dumps(line))
    arguments = ["compare", "-m", "pool", "-k", "4", "--data", "data.jsonl", "--repeats", "2"]
    arguments += ["--model", checkpoint("llava"), "--out", "out", "--max-new-tokens", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "converse", stop)
        assert main(arguments) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert main(arguments) == 0
