"""A page of claims from nothing: asked, stored, judged and written, on two tiny models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.claims import __main__ as command
from benchmarks.claims import cls_attention, tables
from benchmarks.claims.kinds import KINDS
from benchmarks.claims.prefill import prefill
from benchmarks.claims.stored import attention_evidence
from foveate.evaluation import Dialogue, Setting, claims, from_reference
from foveate.evaluation.answering import Batch
from foveate.evaluation.reach import in_last_layer
from tests.families import checkpoints
from tests.families.models import FAMILIES

PAGE = """
title = "A paper"
text = "Its text."
[[left_out]]
what = "this"
why = "that"
[prefill]
title = "Times"
text = "Of a prefill."
paper = { pool = "2.28", fastv = "1.51" }
faster = [["pool", "full"], ["pool", "fastv"]]
[[parts]]
title = "Scenes"
data = "scenes"
text = "Some."
[[parts.claims]]
source = "Table 1"
says = "both stages are better"
better = "polymorphic"
worse = "polymorphic:stages=merge"
keep = 0.5
[[parts.claims]]
source = "Table 2"
says = "cannot be"
better = "pool"
worse = "fastv"
keep = 0.05
[[parts]]
title = "Tiles"
data = "tiles"
text = "More."
[[parts.claims]]
source = "Table 3"
says = "has no model"
better = "pool"
worse = "full"
keep = 0.5
[[parts]]
title = "CLS"
data = "attention"
text = "Attention."
[[parts.claims]]
source = "Figure 1"
says = "is concentrated"
better = "layer -1"
worse = "layer 0"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Claims, timings and two models that differ by their seed."""
    out = tmp_path_factory.mktemp("claims")
    (out / "paper.toml").write_text(PAGE)
    row = {"kind": "prefill", "base_seconds": 1.0, "keep": 64}
    times = [
        {**row, "name": "pool", "median": 0.5, "low": 0.4, "high": 0.6},
        {**row, "name": "fastv, 192 kept", "median": 0.8, "low": 0.7, "high": 0.9, "keep": 192},
    ]
    (out / "times.json").write_text(json.dumps({"setting": {"shape": "deep"}, "rows": times}))
    for seed in (0, 1):
        saved = checkpoints.save("llava", out / f"seed{seed}")
        FAMILIES["llava"].build(seed=seed).save_pretrained(saved)
    return out


def questions(count: int, split: str = "test") -> list[Dialogue]:
    """Scenes whose questions are of no kind, so that untrained models' answers count."""
    return [
        dataclasses.replace(
            each, turns=tuple(dataclasses.replace(turn, kind="") for turn in each.turns)
        )
        for each in from_reference(count, split)
    ]


def run(folder: Path, *more: str) -> Any:
    given = ["--claims", str(folder), "--out", str(folder), "--store", str(folder / "store")]
    given += ["--timing", str(folder / "times.json"), "--resamples", "200"]
    return CliRunner().invoke(command.app, ["paper", *given, *more])


def test_a_page_is_made_of_runs_and_again_of_what_is_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = dataclasses.replace(KINDS["scenes"], drawn=questions)
    monkeypatch.setitem(KINDS, "scenes", scenes)
    asked = ["--all-seeds", str(folder), "--dialogues", "2"]
    result = run(folder, *asked)
    assert result.exit_code == 0, result.output
    text = (folder / "paper.md").read_text()
    assert "2 models: seed0 (llava" in text and "seed1 (llava" in text
    assert "Student's t" in text and "One model" not in text
    assert "| Scenes | 2 | 0 | 0 |" in text and "| Tiles | 0 | 0 | 0 | 0 | 1 | 0 | 0 |" in text
    assert "out of reach | these alone: holds | these alone: reversed |" in text
    assert "| **all** | **2** | " in text and "| **all** | **0** | " not in text
    assert str(folder) not in text  # a page knows nobody's paths
    words = [line.split("**")[1] for line in text.splitlines() if line.endswith("** |")]
    assert words.count("out of reach") >= 3
    assert "fastv at 5.0 %: not reachable, lowest" in text
    assert "no model for large scenes in tiles" in text
    assert "| pool is faster than full | **holds** |" in text
    assert "| pool is faster than fastv | **out of reach** |" in text  # of unlike budgets
    assert "| this | that |" in text
    for what in ("cls-layers", "cls-scenes", "cls-curves"):
        assert (folder / f"paper-{what}.png").stat().st_size > 1000
        assert f"(paper-{what}.png)" in text
    monkeypatch.setattr(Batch, "converse", None)  # nothing is asked again
    (folder / "paper.md").unlink()
    assert run(folder, "--from-store").exit_code == 0
    assert (folder / "paper.md").read_text() == text
    assert run(folder, *asked).exit_code == 0
    assert (folder / "paper.md").read_text() == text
    # Packed beside the page is all that it is made of, and no more.
    packed = (folder / "paper.tar.xz").read_bytes()
    (folder / "store" / "paper" / "scenes" / "another").mkdir()  # that this page is not about
    (folder / "store" / "paper" / "scenes" / "another" / "run.json").write_text("{}")
    assert run(folder, *asked).exit_code == 0
    assert (folder / "paper.tar.xz").read_bytes() == packed
    (folder / "paper.md").unlink()
    elsewhere = "--store", str(folder / "elsewhere")
    assert run(folder, "--from-store", *elsewhere).exit_code == 0
    assert (folder / "paper.md").read_text() == text
    kept = {each.name for each in (folder / "elsewhere").rglob("*") if each.is_file()}
    assert {"answers.jsonl", "run.json", "asked.json"} <= kept
    assert run(folder, *asked, *elsewhere).exit_code == 0
    assert (folder / "paper.tar.xz").read_bytes() == packed

    def others(count: int, split: str = "test") -> list[Dialogue]:
        return [dataclasses.replace(one, turns=one.turns[::-1]) for one in questions(count, split)]

    monkeypatch.setitem(KINDS, "scenes", dataclasses.replace(scenes, drawn=others))
    result = run(folder, "--from-store")
    assert result.exit_code == 2 and "to other dialogues" in result.output
    assert (folder / "paper.md").read_text() == text


@pytest.mark.slow
@pytest.mark.parametrize("packed", sorted(command.CLAIMS.glob("*.tar.xz")), ids=lambda f: f.name)
def test_what_is_packed_makes_the_page_beside_it(packed: Path, tmp_path: Path) -> None:
    name = packed.name.removesuffix(".tar.xz")
    shutil.copy(packed, tmp_path)
    places = ["--out", str(tmp_path), "--store", str(tmp_path / "store")]
    result = CliRunner().invoke(command.app, [name, "--from-store", *places])
    assert result.exit_code == 0, result.output
    made, there = (folder / f"{name}.md" for folder in (tmp_path, command.CLAIMS))
    # Code that has gone on since the run is said to have.
    assert made.read_text().replace(" (not the present one)", "") == there.read_text()


def test_answers_of_earlier_code_are_taken_over_if_they_are_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "scenes", dataclasses.replace(KINDS["scenes"], drawn=questions))
    places = ["--store", str(tmp_path), "--out", str(tmp_path), "--dialogues", "3"]
    places += ["--model", str(folder / "seed0")]
    assert run(folder, *places).exit_code == 0
    (file,) = tmp_path.rglob("answers.jsonl")
    first, *rest = file.read_text().splitlines()
    old = json.dumps(json.loads(first) | {"foveate": "0.0 (old)"})
    file.write_text("\n".join([old, *rest]) + "\n")
    made = file.read_text()
    result = run(folder, *places)
    assert result.exit_code == 2 and "0.0 (old)" in result.output
    assert file.read_text() == made
    # Another answer to what is asked again is told, and nothing is taken over.
    number = next(i for i, line in enumerate(rest) if '"test-0"' in line and '"answers"' in line)
    wrong = json.loads(rest[number]) | {"answers": ["another"] * 3}
    file.write_text("\n".join([old, *rest[:number], json.dumps(wrong), *rest[number + 1 :]]) + "\n")
    result = run(folder, *places, "--again", "2")
    assert result.exit_code == 2 and "the present code gives 1 others" in result.output
    assert file.read_text().startswith(old)
    gone = json.dumps({"setting": "gone", "dialogue": "test-0", "answers": ["a"]})
    file.write_text(made + gone + "\n")  # of a setting that the page has no longer
    asked: list[str] = []
    converse = Batch.converse

    def watched(self: Batch, *given: Any, **options: Any) -> Any:
        asked.extend(each.name for each in self.dialogues)
        return converse(self, *given, **options)

    monkeypatch.setattr(Batch, "converse", watched)
    assert run(folder, *places, "--again", "2").exit_code == 0
    assert set(asked) == {"test-0", "test-1"}  # the third stays as it is
    assert file.read_text().splitlines() == [first, *rest]
    text = (tmp_path / "paper.md").read_text()
    assert "of 0.0 (old); they were taken over" in text and "about 2 dialogues again" in text
    asked.clear()
    assert run(folder, *places, "--again", "2").exit_code == 0 and not asked


def test_a_page_of_one_model_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "scenes", dataclasses.replace(KINDS["scenes"], drawn=questions))
    places = ["--store", str(tmp_path), "--out", str(tmp_path)]
    result = run(folder, "--model", str(folder / "seed0"), "--dialogues", "2", *places)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "paper.md").read_text()
    assert "- **One model** for large" not in text and "- **One model**: what is sure" in text
    assert "| Scenes | 1 | " in text


def test_curves_stand_over_the_tokens_that_were_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "scenes", dataclasses.replace(KINDS["scenes"], drawn=questions))
    claim = """
        [[parts.claims]]
        source = "Figure 1"
        says = "is better"
        better = "uniform"
        worse = { method = "fastv:layer=1,schedule=[%s]", turns = "%s" }
        keep = %s
        """
    shares = [("0.8", "first"), ("0.4", "first"), ("0.2", "first"), ("0.12", "each")]
    sides = "".join(claim % (share, turns, share) for share, turns in shares)
    text = 'title = "A paper"\ntext = "Its."\n[[parts]]\ntitle = "S"\ndata = "scenes"\ntext = "."\n'
    (tmp_path / "paper.toml").write_text(text + sides)
    drawn: list[Any] = []

    def kept(found: Any, page: Any) -> Any:
        drawn.append(tables.curves(found, page))
        return drawn[-1]

    monkeypatch.setattr("benchmarks.claims.page.curves", kept)
    places = ["--claims", str(tmp_path), "--store", str(tmp_path), "--out", str(tmp_path)]
    result = run(folder, "--model", str(folder / "seed0"), "--dialogues", "2", *places)
    assert result.exit_code == 0, result.output
    (panel,) = drawn[0].axes
    points = {each.get_label(): each[0].get_xdata() for each in panel.containers}
    # What chose at each turn is another curve, of one point: not drawn.
    assert set(points) == {"uniform", "fastv, own schedule, chosen at the first turn"}
    layers = FAMILIES["llava"].build().config.text_config.num_hidden_layers
    (fastv,) = (x for label, x in points.items() if "fastv" in label)
    # The first layer runs on all tokens. Curves are a hundredth apart, to tell bars apart.
    assert fastv == pytest.approx(
        [100 * (1 + share * (layers - 1)) / layers for share in (0.2, 0.4, 0.8)], rel=0.02
    )
    assert points["uniform"] == pytest.approx([12, 20, 40, 80], rel=0.02)


def test_models_that_look_at_nothing_carry_no_claim(folder: Path, tmp_path: Path) -> None:
    model = ["--model", str(folder / "seed0"), "--dialogues", "2"]
    result = run(folder, *model, "--store", str(tmp_path))
    assert result.exit_code == 2 and "carry no claim" in result.output


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    empty = ["--from-store", "--store", str(tmp_path), "--out", str(tmp_path)]
    result = run(folder, *empty)
    assert result.exit_code == 2 and "holds no finished run" in result.output
    whole = (folder / "paper.tar.xz").read_bytes()
    for torn in (b"", b"\xfd7zXZ\x00 and so on", b"no archive", whole[: len(whole) * 9 // 10]):
        (tmp_path / "paper.tar.xz").write_bytes(torn)
        result = run(folder, *empty)
        assert result.exit_code == 2 and "holds no stored runs" in result.output
        assert not list(tmp_path.glob("*paper"))  # nothing half-unpacked passes for a run
    result = CliRunner().invoke(command.app, ["nothing", "--claims", str(folder)])
    assert result.exit_code == 2 and "paper" in result.output
    result = run(folder, "--all-seeds", str(folder), "--model", "reference")
    assert result.exit_code == 2 and "leave out" in result.output


def test_concentration_by_hand() -> None:
    even, one = torch.full((20,), 0.05), torch.eye(20)[0]
    top, entropy = cls_attention.concentration(torch.stack([even, one]))
    assert top.tolist() == pytest.approx([0.1, 1.0])  # 2 of 20 patches
    assert entropy.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_evidence_of_attention_is_the_share_in_the_top_tenth() -> None:
    (part,) = [
        each
        for each in claims.read(command.CLAIMS / "polymorphic.toml").parts
        if each.data == "attention"
    ]
    found = {"a": {"top": [[0.1, 0.2, 0.7, 0.9], [0.3, 0.2, 0.5, 0.9]]}}
    seen = attention_evidence(part.claims[0], found)
    assert not isinstance(seen, str)
    assert np.asarray(seen.better - seen.worse) == pytest.approx(np.array([[0.6, 0.2]]))


def test_what_reaches_the_last_layer() -> None:
    """FastV before layer 2 of 32: 2 x 576 + 30 x m = 32 x 192, so m = 166; VisionZip cuts once."""
    assert in_last_layer(Setting("fastv", 192), 576, 32) == 166
    assert in_last_layer(Setting("visionzip", 192), 576, 32) == 192
    assert in_last_layer(Setting("fastv", 0.1), 256, 4) is None
    assert in_last_layer(Setting("fastv", 1.0), 256, 4) == 256
    # Layers 1, 2, 3 of 4, and 170 enter: 170 + m1 + m2 + m3 = 4 x 85 with one share throughout.
    assert in_last_layer(Setting("polymorphic", 85), 256, 4) == 27


def test_times_to_an_answer_and_alike(tmp_path: Path) -> None:
    """Quartiles by hand: 0.40..0.42 and 0.43..0.44 are alike, 0.50..0.60 and 0.70..0.80 not."""
    spans = {"a": (0.40, 0.42), "b": (0.43, 0.44), "c": (0.50, 0.60), "d": (0.70, 0.80)}
    rows = [
        {"name": name, "kind": kind, "base_seconds": 1.0, "keep": 64, "median": low}
        | {"low": low, "high": high, "peak": 3, "stock_peak": 4, "flops": 1, "stock_flops": 2}
        for name, (low, high) in spans.items()
        for kind in ("prefill", "answer")
    ]
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"setting": {}, "rows": rows}))
    said = claims.Prefill(
        "Costs",
        "Of a prefill.",
        dict.fromkeys(spans, ""),
        faster=[["a", "c"]],
        alike=[["a", "b"], ["b", "a"], ["a", "c"], ["c", "d"], ["a", "e"]],
        answers=[["d", "full"], ["d", "c"], ["e", "full"]],
    )
    lines = prefill(said, path).splitlines()
    assert "| a | 64 | 0.400 [0.400, 0.420] | 2.50 |  | 0.400 [0.400, 0.420] | 0.750 | 0.500 |" in (
        lines
    )
    words = [line.split("**")[1] for line in lines if line.endswith("** |")]
    assert words == [
        *("holds", "holds", "reversed", "out of reach"),
        *("holds", "holds", "reversed", "reversed", "out of reach"),
    ]
