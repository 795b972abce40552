"""The benchmarks that no page's test covers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import ablation, overhead
from foveate import catalog


def test_a_measurement_on_other_scenes_is_none(tmp_path: Path) -> None:
    known = {"scenes": 5, "all": {"accuracy": 0.5}}
    (tmp_path / "measured.json").write_text(json.dumps(known))
    assert ablation.figures(tmp_path, 5) == known
    with pytest.raises(OSError, match="model"):  # it would measure, and there is no model
        ablation.figures(tmp_path, 6)


def test_overhead_times_every_method_that_needs_no_weights() -> None:
    learned = {name for name in catalog.names() if catalog.method_class(name).trainable}
    assert set(catalog.names()) - set(overhead.METHODS) == {"trim"} | learned


@pytest.mark.slow
def test_ablation_trains_goes_on_and_writes_its_page(tmp_path: Path) -> None:
    """Tiny lengths, real trainings: of one stage, and of the other from a stage they share."""
    out, page = tmp_path / "runs", tmp_path / "ablation.md"
    asked = ["--out", str(out), "--page", str(page), "--scenes", "2", "--drawn", "64"]
    asked += [
        "--tower-steps",
        "2",
        "--vision-steps",
        "2",
        "--language-steps",
        "1",
        "--threads",
        "1",
    ]
    for case in ("tower-muon", "answers-gaze", "answers-muon"):
        asked += ["--case", case]
    done = CliRunner().invoke(ablation.app, asked)
    assert done.exit_code == 0, done.output
    said = page.read_text()
    assert said.count("| Muon: AdamW on all parameters | 1 |") == 2
    assert "| the hint where to look, and places | 1 |" in said
    assert "| nothing |" not in said
    times = {file: file.stat().st_mtime_ns for file in out.glob("answers-*/model/*.safetensors")}
    assert len(times) == 2
    again = CliRunner().invoke(ablation.app, asked)
    assert again.exit_code == 0, again.output
    assert page.read_text() == said
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_ablation_page_is_what_was_measured(tmp_path: Path) -> None:
    def kept(training: str, record: dict[str, object]) -> None:
        (tmp_path / training).mkdir()
        (tmp_path / training / ablation.MEASURED).write_text(json.dumps(record))

    for seed, shape in ((0, 0.25), (1, 0.75)):
        kept(f"tower-muon-seed{seed}", {"steps": 7, "read": {"sort": 0.5, "shape": shape}})
    recipe = {"vision_steps": 31, "language_steps": 9}
    for case, right in (("everything", 0.5), ("gaze", 0.25), ("places", 0.375)):
        every = {"accuracy": right, "questions": 12, "majority": 0.125}
        kinds = {"where": {"accuracy": right / 2}}
        kept(
            f"answers-{case}-seed0",
            {"scenes": 4, "all": every, "kinds": kinds, "training": {"recipe": recipe}},
        )
    said = ablation.page(ablation.found(tmp_path, [0, 1]))
    assert "| left out | seeds | shape | sort |" in said
    assert "| Muon: AdamW on all parameters | 2 | 0.500 ± 0.354 | 0.500 |" in said
    rows = [line for line in said.splitlines() if line.endswith(("0.250 |", "0.188 |", "0.125 |"))]
    assert [row.split(" | ")[0] for row in rows] == [
        "| nothing",
        "| places of what is named",
        "| the hint where to look, and places",
    ]
    assert "7 steps of the first stage" in said
    assert "9 steps of the second stage, all from the same tower (31 steps)" in said
    assert "4 test scenes, 12 questions; the majority answer of each kind gets 0.125" in said


def test_ablation_tells_what_is_wrong(tmp_path: Path) -> None:
    runner = CliRunner()
    unknown = runner.invoke(ablation.app, ["--out", str(tmp_path), "--case", "tower-gaze"])
    assert unknown.exit_code == 2
    assert "tower-muon" in unknown.output
    nothing = runner.invoke(ablation.app, ["--out", str(tmp_path), "--from-store"])
    assert nothing.exit_code == 2
    assert "Nothing has been measured" in nothing.output
    assert not list(tmp_path.iterdir())


def test_ablation_leaves_out_what_it_says() -> None:
    """Each case differs from everything, in its recipe or in its trainer."""
    for cases in ablation.STAGES.values():
        forms = [(str(case.changes), case.trainer) for case in cases.values()]
        assert len(set(forms)) == len(cases)
    changed = {name for case in ablation.ANSWERS.values() for name in case.changes}
    fields = ablation.SHORT.__dict__
    assert changed <= set(fields)
    assert all(
        fields[n] != v for case in ablation.ANSWERS.values() for n, v in case.changes.items()
    )
