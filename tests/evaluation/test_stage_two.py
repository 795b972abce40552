"""The page on Polymorphic's second stage: what is told stays, and as much as the raters keep."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from benchmarks import stage_two
from foveate.attach import Item
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import from_reference
from tests.families import checkpoints

KEEP = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def batch(folder: Path) -> Batch:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    data = from_reference(3)
    loaded = [each.load() for each in data]
    reads = stage_two.Staged().reads
    return Batch(model, AutoProcessor.from_pretrained(folder), data, loaded, reads, 2)


def items(batch: Batch, setting: stage_two.Chosen, turn: int) -> list[Item]:
    """The pictures of a prefill as the setting leaves them."""
    rows, said = range(3), [["yes"] * turn] * 3
    chosen = batch.told(setting, turn, rows, said)
    with torch.no_grad(), batch.attach(setting, rows, chosen) as run:
        batch.model(**batch.inputs(rows, turn, said))
    return run.items


def slots(item: Item) -> list[list[int]]:
    """Where the tokens live in every layer."""
    return [item.at(layer).anchors.tolist() for layer in range(4)]


def test_as_many_tokens_stay_in_every_layer_whoever_chooses(batch: Batch) -> None:
    named = stage_two.as_published(KEEP)
    del named[stage_two.ALONE], named[stage_two.ENTERING]
    found = {
        name: [[slots(item) for item in items(batch, each, 1)] for each in settings]
        for name, settings in named.items()
    }
    for row in range(3):
        (published,) = found[stage_two.MERGED]
        sizes = [len(each) for each in published[row]]
        assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
        for draws in found.values():
            for one in draws:
                assert [len(each) for each in one[row]] == sizes
                assert one[row][0] == published[row][0]  # stage 1 is its own
                assert all(set(b) < set(a) for a, b in zip(one[row], one[row][1:], strict=False))
    random = [str(draw) for draw in found["random"]]
    assert len(set(random)) == stage_two.DRAWS
    assert len({str(each) for each in found.values()}) == len(found)


def test_what_is_told_of_the_scene_stays(batch: Batch) -> None:
    for turn in (0, 1):
        (setting,) = stage_two.as_published(KEEP)["asked"]
        for item in items(batch, setting, turn):
            (first, *_, last) = slots(item)
            dialogue = batch.dialogues[item.row]
            objects = {
                slot
                for each in stage_two.things(dialogue, turn, item)
                for slot in each.nonzero().flatten().tolist()
            }
            there = objects & set(first)
            assert there <= set(last) or set(last) <= there


def test_dropping_keeps_the_highest_rated(batch: Batch) -> None:
    """Nothing is merged, and no place is left to a cluster."""
    named = stage_two.single(1)
    (merged,), (dropped,) = (
        items(batch, named[name][0], 0)[:1] for name in (stage_two.MERGED, stage_two.DROPPED)
    )
    (_, whole), (layer, cut) = dropped.steps
    assert layer == 1 and cut.is_selection and not merged.steps[1][1].is_selection
    assert cut.m == merged.steps[1][1].m == max(1, round(0.25 * whole.m))


def test_what_a_ranking_finds_and_misses_by_hand() -> None:
    """The highest quarter of eight are slots 6 and 7."""
    ranks = torch.arange(8.0)
    first, second = torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    first[[0, 5, 6]] = True
    assert stage_two.seen(ranks, [first]) == (pytest.approx(1 / 3), False)
    second[1] = True
    assert stage_two.seen(ranks, [first, second]) == (pytest.approx(1 / 4), True)
    second[7] = True
    assert stage_two.seen(ranks, [first, second]) == (pytest.approx(2 / 5), False)


def run(folder: Path, out: Path, *more: str) -> Any:
    given = ["--model", str(folder), "--dialogues", "2", "--batch", "2", "--out", str(out)]
    return CliRunner().invoke(stage_two.app, [*given, "--store", str(out / "store"), *more])


def test_the_page_is_made_of_a_run_and_again_of_what_is_stored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [dataclasses.replace(each, turns=each.turns[:1]) for each in from_reference(2)]
    monkeypatch.setattr(stage_two, "from_reference", lambda count: short)
    monkeypatch.setattr(stage_two, "BUDGETS", {"50.0 %": KEEP})
    monkeypatch.setattr(stage_two, "SMALL", KEEP)
    brief = functools.partial(stage_two.answers, max_new_tokens=2)
    monkeypatch.setattr(stage_two, "answers", brief)
    result = run(folder, tmp_path, "--from-store")
    assert result.exit_code == 2 and "holds no finished run" in result.output
    result = run(folder, tmp_path)
    assert result.exit_code == 0, result.output
    text = (tmp_path / stage_two.PAGE).read_text()
    assert "4 decoder layers, counted from 0, and 25 visual tokens. 2 dialogues" in text
    assert "out of reach" not in text and str(folder.parent) not in text
    assert f"| {stage_two.SAYS['random']} | 0.000 | +0.000 [+0.000, +0.000] |" in text
    assert "| choice | before layer 1 | before layer 2 | before layer 3 |" in text
    lines = [line for line in text.splitlines() if line[:4] in ("| 0 ", "| 3 ")]
    assert [line[2] for line in lines] == ["0", "3", "0", "3"]
    for line in lines:  # in layer 0 states are embeddings
        cells = line.split(" | ")
        assert (cells[1] == cells[2]) or line[2] == "3"
    monkeypatch.setattr(Batch, "converse", None)  # nothing is asked again
    monkeypatch.setattr(stage_two, "attach", None)
    for more in ((), ("--from-store",)):
        (tmp_path / stage_two.PAGE).unlink()
        assert run(folder, tmp_path, *more).exit_code == 0
        assert (tmp_path / stage_two.PAGE).read_text() == text
