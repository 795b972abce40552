"""Every verb end to end, on local checkpoints of three families with real processors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

import foveate
from foveate import catalog
from foveate.cli import main
from foveate.cli.seeds import named
from foveate.evaluation.settings import parse_method
from tests.families.checkpoints import PROCESSORS
from tests.films import film

Folder = Callable[[str], str]
Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *arguments: str) -> dict[str, Any]:
    """The JSON that a verb prints, which is all that it prints."""
    assert main([*arguments, "--json"]) == 0
    out: dict[str, Any] = json.loads(capsys.readouterr().out)
    return out


def executed(lines: list[str]) -> dict[str, Any]:
    """The names that a verb's Python lines leave behind."""
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    return names


# ---------------------------------------------------------------------- list, show


def test_list(capsys: Capture) -> None:
    found = said(capsys, "list")
    assert [each["name"] for each in found["methods"]] == foveate.names()
    assert executed(found["python"])
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in foveate.names())
    assert "llava_next" in said(capsys, "list", "--models")["models"]


@pytest.mark.parametrize("name", catalog.names())
def test_show(name: str, capsys: Capture) -> None:
    found = said(capsys, "show", name)
    assert executed(found["python"])["method"] == catalog.make(name)
    assert main(["show", name]) == 0
    out = capsys.readouterr().out
    assert all(heading in out for heading in found["card"])
    assert all(preset in out for preset in found["presets"])
    assert all(field in out.split("Fields")[-1] for field in found["fields"])


# ---------------------------------------------------------------------- run, draw, compare


@pytest.mark.parametrize("family", PROCESSORS)
def test_run(family: str, checkpoint: Folder, tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "kept.png"
    arguments = ["run", "scene:2", "what colour ?", "-m", "divprune", "-k", "5"]
    arguments += ["--model", checkpoint(family), "--max-new-tokens", "4"]
    found = said(capsys, *arguments, "--out", str(picture))
    assert found["compressed"]["visual_tokens"] == 5
    assert found["full"]["visual_tokens"] > 20
    assert found["compressed"]["cache_bytes"] < found["full"]["cache_bytes"]
    with Image.open(picture) as image:
        assert image.width > 500
    picture.unlink()
    executed(found["python"])
    assert found["compressed"]["answer"] in capsys.readouterr().out
    assert picture.exists()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert found["full"]["answer"] in out
    assert found["compressed"]["answer"] in out


@pytest.mark.parametrize("kind", ["clip:1", "a.mp4"])
def test_run_and_draw_on_a_video(kind: str, tmp_path: Path, capsys: Capture) -> None:
    place = kind if kind.startswith("clip:") else str(film(tmp_path / kind, [0, 90, 180, 250]))
    model = ["--model", "reference-tiles", "--frames", "8"]
    drawn = tmp_path / "kept.png"
    asked = ["run", place, "what moved ?", "-m", "uniform", "-k", "50%", *model]
    found = said(capsys, *asked, "--out", str(drawn))
    assert found["compressed"]["visual_tokens"] == found["full"]["visual_tokens"] / 2
    first = drawn.read_bytes()
    drawn.unlink()
    executed(found["python"])
    assert found["full"]["answer"] in capsys.readouterr().out
    assert drawn.read_bytes() == first
    other = said(capsys, "draw", place, "-m", "uniform", "-k", "50%", *model, "-o", str(drawn))
    assert other["pictures"][0]["visual"] == found["full"]["visual_tokens"]
    first = drawn.read_bytes()
    drawn.unlink()
    executed(other["python"])
    assert drawn.read_bytes() == first


@pytest.mark.parametrize(
    ("place", "says"),
    [("clip:x", "Clips are numbered from 0"), ("no.mp4", "No video no.mp4"), ("clip:", "numbered")],
)
def test_videos_that_are_not_there(place: str, says: str, capsys: Capture) -> None:
    assert main(["run", place, "what ?", "-k", "8", "--model", "reference-tiles"]) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


@pytest.mark.parametrize("family", PROCESSORS)
def test_draw(family: str, checkpoint: Folder, tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "new" / "kept.png"
    found = said(
        capsys, "draw", "scene:2", "-m", "visionzip", "-m", "uniform-2d", "-k", "25%",
        "--model", checkpoint(family), "--out", str(picture),
    )  # fmt: skip
    counts = {(each["visual"], each["kept"]) for each in found["pictures"]}
    ((visual, kept),) = counts
    assert kept == int(visual / 4 + 0.5)
    first = picture.read_bytes()
    picture.unlink()
    executed(found["python"])
    assert picture.read_bytes() == first


@pytest.mark.parametrize("family", PROCESSORS)
def test_compare(family: str, checkpoint: Folder, tmp_path: Path, capsys: Capture) -> None:
    Image.effect_noise((40, 30), 80).save(tmp_path / "a.png")
    turns = [{"question": "what colour ?", "answer": "red"}, {"question": "yes ?", "answer": "no"}]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"image": "a.png", "turns": turns}) + "\n" for _ in "ab"))
    found = said(
        capsys, "compare", "-m", "uniform-2d", "-m", "divprune", "-k", "6", "--data", str(data),
        "--model", checkpoint(family), "--out", str(tmp_path / "out"), "--repeats", "2",
        "--max-new-tokens", "3",
    )  # fmt: skip
    assert [row["entering"] for row in found["rows"]] == [6, 6]
    assert len(found["full"]["turns"]) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".answers.lock",
        "answers.jsonl",
        "comparison.json",
        "report.html",
    }
    assert len(executed(found["python"])["found"].rows) == 2


def test_names_of_models_tell_them_apart() -> None:
    assert list(named(["reference", "Qwen/Qwen2-VL-2B"])) == ["reference", "Qwen2-VL-2B"]
    assert list(named(["/a/x/seed0", "/a/y/seed0"])) == ["x-seed0", "y-seed0"]
    assert list(named(["/a/x/seed0", "/b/x/seed0", "/c"])) == ["a-x-seed0", "b-x-seed0", "c"]


@pytest.mark.parametrize("method", ["visionzip/fastv:fastv.layer=2", "fastv:schedule=[9]"])
def test_fields_of_chains_and_own_budgets(
    method: str, checkpoint: Folder, tmp_path: Path, capsys: Capture
) -> None:
    given = ["draw", "scene:2", "-m", method, "--model", checkpoint("llava")]
    budget = [] if "schedule" in method else ["-k", "14"]
    found = said(capsys, *given, *budget, "--out", str(tmp_path / "kept.png"))
    executed(found["python"])
    assert found["pictures"][0]["method"] == method


def test_compare_what_was_saved_beside_what_has_no_weights(
    checkpoint: Folder, tmp_path: Path, capsys: Capture
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint("llava"))
    for seed in (0, 1):
        method = foveate.MetaCompress().initialised(model, seed)
        foveate.save(method, tmp_path / f"mine{seed}", model=model)
    saved = [str(tmp_path / f"mine{seed}") for seed in (0, 1)]
    arguments = ["compare", "-m", "metacompress", "-m", saved[0], "-m", saved[1], "-k", "6"]
    arguments += ["--model", checkpoint("llava"), "--out", str(tmp_path / "out"), "--count", "2"]
    found = said(capsys, *arguments, "--repeats", "2", "--max-new-tokens", "2")
    assert [row["method"] for row in found["rows"]] == ["mine0", "mine1"]
    assert [each["method"] for each in found["skipped"]] == ["metacompress"]
    assert "has to be trained" in found["skipped"][0]["reason"]
    # Other weights in the same folder are other answers.
    key = parse_method(saved[0]).key
    foveate.save(foveate.load(saved[1]), saved[0], model=model)
    assert parse_method(saved[0]).key != key
    assert main(["compare", "-m", str(tmp_path / "none"), "-k", "6"]) == 1
    assert "holds no saved compressor" in capsys.readouterr().err


def test_compare_on_the_scenes(checkpoint: Folder, tmp_path: Path, capsys: Capture) -> None:
    """Both ways of choosing, the oracle, a chain, and a budget that is out of reach."""
    out = str(tmp_path / "out")
    arguments = ["compare", "-m", "visionzip/fastv", "-m", "fastv", "-k", "20%", "--count", "2"]
    arguments += ["--turns", "both", "--oracle", "--model", checkpoint("llava"), "--out", out]
    arguments += ["--repeats", "2", "--max-new-tokens", "2"]
    found = said(capsys, *arguments)
    assert [(row["method"], row["turns"], row["oracle"]) for row in found["rows"]] == [
        ("visionzip/fastv", "each", False),
        ("visionzip/fastv", "first", False),
        ("oracle", "either", True),
    ]
    assert {each["lowest"] for each in found["skipped"]} == {7}
    assert [each["method"] for each in found["reuse"]] == ["visionzip/fastv"]
    assert "turns='both', oracle=True" in "".join(found["python"])
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err.count("fastv 20%: not reachable, lowest 7\n") == 1
    assert "not reachable, lowest 7" in captured.out
    assert "The price" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("data", "python"),
    [
        ("tiles", "from_tiles(2, 'validation')"),
        ("second-scenes", "from_reference(2, 'validation', world='second')"),
    ],
)
def test_compare_on_other_scenes(
    data: str, python: str, checkpoint: Folder, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ["compare", "-m", "pool", "-k", "6", "--count", "2", "--split", "validation"]
    arguments += ["--data", data, "--model", checkpoint("llava"), "--repeats", "2"]
    found = said(capsys, *arguments, "--max-new-tokens", "2", "--out", str(tmp_path))
    assert found["data"] == f"validation {data}"
    (line,) = [each for each in found["python"] if each.startswith("data = ")]
    assert line == f"data = evaluation.{python}"
    told = {each.name for each in executed(["from foveate import evaluation", line])["data"]}
    records = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert {each["dialogue"] for each in records if "dialogue" in each} == told
    assert all(("second" in name) == ("second" in data) for name in told)
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert kept["data"] == f"validation {data}"


def test_compare_on_all_seeds(
    checkpoint: Folder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As training leaves them, or as checkpoints; what is no seed is not taken for one."""
    seeds = tmp_path / "seeds"
    shutil.copytree(checkpoint("llava"), seeds / "seed10" / "model")
    shutil.copytree(checkpoint("llava"), seeds / "seed2")
    (seeds / "seed3").mkdir()
    (seeds / "seeds.txt").touch()
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "-m", "pool", "-k", "6", "--count", "2", "--repeats", "2"]
    arguments += ["--max-new-tokens", "2", "--all-seeds", str(seeds)]
    found = said(capsys, *arguments)
    assert [each["model"] for each in found["models"]] == ["seed2", "seed10"]
    assert found["rows"][0]["spread"]["difference"] == 0  # they are one and the same model
    folder = tmp_path / "output" / "compare" / "seeds"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("report.html", "comparison.json"),
        *("seed2/answers.jsonl", "seed10/answers.jsonl"),
        *("seed2/.answers.lock", "seed10/.answers.lock"),
    }
    again = executed(found["python"])["found"]
    assert [each.model for each in again.models] == ["seed2", "seed10"]
    # Models that are named go by the end of their path.
    named = [*arguments[:-2], "--model", str(seeds / "seed2"), "--model", checkpoint("llava")]
    assert [each["model"] for each in said(capsys, *named)["models"]] == [
        "seed2",
        Path(checkpoint("llava")).name,
    ]


# ---------------------------------------------------------------------- the program itself


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from foveate.cli import main; main({!r}); "
        "heavy = {{'torch', 'transformers', 'matplotlib'}} & set(sys.modules); "
        "sys.exit(f'imported: {{heavy}}' if heavy else 0)"
    )
    for arguments in (["--help"], ["run", "--help"], ["compare", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "foveate", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, foveate.__version__)
    done = subprocess.run([sys.executable, "-m", "foveate", "rum"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "rum" in done.stderr
