"""The benchmarks that no page's test covers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import ablation, overhead, seeds, teacher
from foveate import catalog, reference
from foveate.cli.seeds import seeds_in
from foveate.errors import InputError
from foveate.reference.table import insert
from foveate.training import data
from foveate.training.batches import collate
from foveate.training.teacher import Teacher
from tests.training import needs_features


def test_a_measurement_on_other_scenes_is_none(tmp_path: Path) -> None:
    known = {"scenes": 5, "all": {"accuracy": 0.5}}
    (tmp_path / "measured.json").write_text(json.dumps(known))
    assert ablation.figures(tmp_path, 5) == known
    with pytest.raises(OSError, match="model"):  # it would measure, and there is no model
        ablation.figures(tmp_path, 6)


def test_overhead_times_every_method_that_needs_no_weights() -> None:
    learned = {name for name in catalog.names() if catalog.method_class(name).trainable}
    assert set(catalog.names()) - set(overhead.METHODS) == {"trim"} | learned


@needs_features
@pytest.mark.parametrize("answers", ["given", "generated"])
def test_a_teacher_run_anew_says_what_is_cached(answers: str, tmp_path: Path) -> None:
    """Both sides of the comparison make the same step."""
    found = Teacher(*reference.load(), tmp_path, answers=answers)
    scenes = data.examples("scenes", count=2)
    found.fill(scenes)
    cached = collate([found.lesson(each) for each in scenes])
    made = teacher.anew(found, scenes, generated=answers == "generated")
    assert torch.equal(made.inputs["input_ids"], cached.inputs["input_ids"])
    assert made.full is not None and cached.full is not None
    torch.testing.assert_close(made.full.log_probs, cached.full.log_probs, atol=1e-3, rtol=1e-3)


def test_ways_of_a_step_are_told_as_ratios_of_their_rounds() -> None:
    seconds = ((1.0, 2.0, 4.0), (2.0, 4.0, 10.0), (4.0, 12.0, 12.0))
    names = (teacher.CACHED, teacher.GIVEN, teacher.GENERATED)
    rounds = [dict(zip(names, each, strict=True)) for each in seconds]
    said = teacher.table([teacher._way(name, rounds) for name in names])
    assert said.splitlines()[2:] == [
        "| cached | 1 | 2.00 |",
        "| given answers | 2.00 [2.00, 2.50] | 4.00 |",
        "| generated answers | 4.00 [3.50, 4.50] | 10.00 |",
    ]


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


def _record(seed: int, shape: float, steps: int = 5) -> dict[str, Any]:
    every = {"accuracy": 0.5, "questions": 6, "blind": 0.1, "wrong_image": 0.2, "majority": 0.3}
    kinds = {
        "where": {"accuracy": 0.5, "majority": 0.125},
        "shape": {"accuracy": shape, "majority": 0.25},
    }
    evaluation = {"scenes": 2, "split": "test", "all": every, "kinds": kinds}
    training = {
        "seed": seed,
        "recipe": {"vision_steps": 3, "language_steps": steps},
        "steps_done": {"stage": 2, "step": steps},
    }
    return {"training": training, "evaluation": evaluation}


def _trained(folder: Path, record: dict[str, object]) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "training.json").write_text(json.dumps(record))


def test_the_page_over_seeds_is_the_records(tmp_path: Path) -> None:
    runs, page, kept = tmp_path / "runs", tmp_path / "page.md", tmp_path / "kept.json"
    page.write_text("before\n<!-- seeds: start -->\nold\n<!-- seeds: end -->\nafter\n")
    for seed, shape in enumerate((0.25, 0.75)):
        _trained(runs / f"seed{seed}", _record(seed, shape))
    asked = ["--page", str(page), "--kept", str(kept)]
    done = CliRunner().invoke(seeds.app, [str(runs), *asked])
    assert done.exit_code == 0, done.output
    said = page.read_text()
    assert said.startswith("before\n<!-- seeds: start -->\nThe same recipe from 2 seeds; 2 scenes")
    assert said.endswith(
        "shape (seed0): less than 20 points above its majority answer.\n"
        "<!-- seeds: end -->\nafter\n"
    )
    rows = said.splitlines()
    shape = rows.index("| shape | 0.250 | 0.750 | 0.500 | 0.354 | 0.250 |")
    assert rows[shape + 1 : shape + 3] == [
        "| where | 0.500 | 0.500 | 0.500 | 0.000 | 0.125 |",
        "| all | 0.500 | 0.500 | 0.500 | 0.000 | 0.300 |",
    ]
    assert CliRunner().invoke(seeds.app, asked).exit_code == 0
    assert page.read_text() == said


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"training": _record(1, 0.5)["training"]}, "seed1/model was not measured"),
        (_record(1, 0.5, steps=6), "differ in more than their seeds"),
    ],
)
def test_seeds_that_are_no_seeds_of_one_recipe(
    tmp_path: Path, second: dict[str, object], says: str
) -> None:
    for number, record in enumerate((_record(0, 0.5), second)):
        _trained(tmp_path / "runs" / f"seed{number}", record)
    kept = tmp_path / "kept.json"
    done = CliRunner().invoke(seeds.app, [str(tmp_path / "runs"), "--kept", str(kept)])
    assert done.exit_code == 2
    assert says in done.output
    assert not kept.exists()


@pytest.mark.parametrize(
    ("done", "says"),
    [
        ({"stage": 2, "step": 4}, "seed1 (stage 2 of 2, step 4 of 5)"),
        ({"stage": 1, "step": 2}, "seed1 (stage 1 of 2, step 2 of 3)"),
    ],
)
def test_a_seed_that_is_still_in_training_is_refused(
    tmp_path: Path, done: dict[str, int], says: str
) -> None:
    for seed in range(2):
        _trained(tmp_path / f"seed{seed}", _record(seed, 0.5))
    assert list(seeds_in(tmp_path)) == ["seed0", "seed1"]
    record = _record(1, 0.5)
    record["training"]["steps_done"] = done
    file = tmp_path / "seed1" / "model" / "training.json"
    file.write_text(json.dumps(record))
    with pytest.raises(InputError) as error:
        seeds_in(tmp_path)
    assert says in str(error.value) and "seed0" not in str(error.value)
    assert len(str(error.value).splitlines()) <= 4
    file.unlink()  # a model that does not say how it was trained
    assert list(seeds_in(tmp_path)) == ["seed0", "seed1"]


def test_seeds_of_several_recipes_are_refused(tmp_path: Path) -> None:
    for seed, steps in enumerate((5, 5, 6)):
        _trained(tmp_path / f"seed{seed}", _record(seed, 0.5, steps))
    with pytest.raises(InputError) as error:
        seeds_in(tmp_path)
    assert "seed0 and seed2" in str(error.value) and "language_steps 5 and 6" in str(error.value)
    assert len(str(error.value).splitlines()) <= 4


def test_the_shipped_page_over_seeds_shows_its_records() -> None:
    records = json.loads(seeds.KEPT.read_text())
    page = seeds.PAGE.read_text()
    assert insert(page, seeds.markdown(records), "seeds") == page
