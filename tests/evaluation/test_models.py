"""One comparison on models of several training seeds: means, and how much the seeds differ."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from transformers import AutoProcessor

from foveate.errors import InputError, SavedFileError
from foveate.evaluation import (
    Comparison,
    Dialogue,
    Turn,
    compare,
    compare_models,
    from_reference,
    report,
    summary,
    tables,
)
from foveate.evaluation.answering import Batch
from foveate.evaluation.asking import Group
from foveate.evaluation.cost import Cost
from foveate.evaluation.settings import Setting
from foveate.evaluation.store import Store
from foveate.evaluation.timing import Ratio
from tests.families import checkpoints
from tests.families.models import FAMILIES

Models = dict[str, Callable[[], tuple[Any, Any]]]
GIVEN: dict[str, Any] = {
    "methods": ["random", "mmtok"],
    "budgets": [0.25],
    "draws": 2,
    "turns": "both",
    "max_new_tokens": 2,
    "repeats": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = checkpoints.save("llava", tmp_path_factory.mktemp("llava"))
    processor = AutoProcessor.from_pretrained(folder)

    def load(seed: int) -> tuple[Any, Any]:
        model = FAMILIES["llava"].build(seed=seed)
        model.generation_config.update(eos_token_id=checkpoints.EOS)
        return model, processor

    return {f"seed{seed}": lambda seed=seed: load(seed) for seed in (0, 1)}  # type: ignore[misc]


@pytest.fixture(scope="module")
def data(models: Models) -> list[Dialogue]:
    """What the first model answers is right, so that the models differ."""
    asked = from_reference(3)
    batch = Batch(*models["seed0"](), asked, [each.load() for each in asked], frozenset(), 2)
    return [
        dataclasses.replace(
            each,
            turns=tuple(
                dataclasses.replace(turn, answers=(answer,))
                for turn, answer in zip(each.turns, said["answers"], strict=True)
            ),
        )
        for each, said in zip(asked, batch.converse(None), strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("both")


@pytest.fixture(scope="module")
def found(models: Models, data: list[Dialogue], folder: Path) -> Comparison:
    return compare_models(models, data, **GIVEN, out=folder, data_name="scenes")


def test_each_model_has_its_own_comparison(
    models: Models, data: list[Dialogue], found: Comparison, folder: Path
) -> None:
    assert [each.model for each in found.models] == ["seed0", "seed1"]
    assert found.models[0].full.mean == 1 > found.models[1].full.mean
    assert found.model == "2 models (seed0, seed1)"
    assert {path.name for path in folder.iterdir()} == {"seed0", "seed1"}
    alone = compare(*models["seed1"](), data, **{**GIVEN, "turns": "each"}, out=folder / "seed1")
    ours = [row for row in found.models[1].rows if row.turns != "first"]
    assert [row.accuracy for row in ours] == [row.accuracy for row in alone.rows]
    assert [row.difference for row in ours] == [row.difference for row in alone.rows]
    assert found.models[1].full == alone.full
    assert all(row.spread is None for row in found.models[0].rows)
    assert found.models[0].spread is None


def test_tables_have_the_mean_and_the_spread(found: Comparison) -> None:
    assert [(row.method, row.turns) for row in found.rows] == [
        ("random", "either"),
        ("mmtok", "each"),
        ("mmtok", "first"),
    ]
    for number, row in enumerate(found.rows):
        own = [each.rows[number] for each in found.models]
        assert row.accuracy.mean == pytest.approx(statistics.fmean(r.accuracy.mean for r in own))
        assert row.difference[0] == pytest.approx(statistics.fmean(r.difference[0] for r in own))
        assert row.spread is not None
        assert row.spread.accuracy == pytest.approx(statistics.stdev(r.accuracy.mean for r in own))
        assert row.spread.difference == pytest.approx(
            statistics.stdev(r.difference[0] for r in own)
        )
        assert row.spread.interval[1] <= row.difference[0] <= row.spread.interval[2]
        assert row.entering == 6
        assert row.flops == own[0].flops
    assert found.spread == pytest.approx(statistics.stdev(e.full.mean for e in found.models))
    assert found.reuse[0].spread is not None
    assert found.reuse[0].price is not None and found.reuse[0].price.turns == 2 * 4


def test_it_goes_on_where_it_was(
    models: Models,
    data: list[Dialogue],
    found: Comparison,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Batch, "converse", None)
    again = compare_models(models, data, **{**GIVEN, "turns": "each"}, out=folder)
    assert [row.accuracy for row in again.rows] == [row.accuracy for row in found.rows[:2]]
    swapped = {"seed0": models["seed1"], "seed1": models["seed0"]}
    with pytest.raises(SavedFileError, match="model"):
        compare_models(swapped, data, **GIVEN, out=folder)


def columns(row: str) -> int:
    """How many columns a row of a table spans."""
    wide = [int(count) - 1 for count in re.findall(r'colspan="(\d+)"', row)]
    return len(re.findall(r"<t[hd]", row)) + sum(wide)


def test_both_kinds_of_doubt_are_shown(found: Comparison, tmp_path: Path) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(*tables.tables(found))
    text = capture.get()
    assert "Between the 2 models" in text
    assert "…" not in text
    page = report.write_html(found, tmp_path / "report.html").read_text()
    assert "Each model" in page
    for row in found.rows:
        assert row.spread is not None
        assert f"{row.spread.difference:.3f}" in text
        for own in tables.of_models(found, row):
            assert tables.delta(own) in page
        assert tables.interval(row.spread.interval) in page
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        assert len({columns(row) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)}) == 1
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [len(each["rows"]) for each in record["models"]] == [3, 3]


def test_means_spread_and_interval_by_hand(tmp_path: Path) -> None:
    """Two models, two dialogues of one question each."""
    image = Image.new("RGB", (20, 20))
    data = [Dialogue(name, (image,), (Turn("?", ("x",)),)) for name in "ab"]
    setting = Setting("pool", 4)
    counted = {"n": 25, "entering": 4, "average": 4.0}
    said = [  # full model's two answers, the compressed one's
        (("x", "x"), ("x", "y")),  # loses half
        (("x", "y"), ("y", "y")),  # loses half, too, on the other dialogue
    ]
    stores = []
    for number, (full, short) in enumerate(said):
        store = Store(tmp_path / str(number) / "answers.jsonl", {})
        for key, answers in (("full", full), (setting.key, short)):
            for each, answer in zip(data, answers, strict=True):
                store.add(key, each.name, answers=[answer], **counted)
        store.close()
        stores.append(store)
    price = Cost(1, 1, Ratio(1.0, 1.0, 1.0, 1.0))
    made = summary.row(stores, data, Group([setting]), price, price)
    assert made.accuracy.mean == pytest.approx(1 / 4)
    # Each dialogue loses half a right answer on average over the models, and each model half of
    # all: neither other dialogues nor other models would change it, though accuracies differ.
    assert made.difference == pytest.approx((-0.5, -0.5, -0.5))
    assert made.spread is not None
    assert made.spread.accuracy == pytest.approx(0.5 / 2**0.5)
    assert made.spread.difference == 0
    assert made.spread.interval == pytest.approx((-0.5, -0.5, -0.5))
    one = summary.row(stores[:1], data, Group([setting]), price, price)
    assert one.difference == pytest.approx((-0.5, -1.0, 0.0))
    assert one.spread is None


def test_what_one_model_cannot_do_is_left_out(models: Models, tmp_path: Path) -> None:
    data = from_reference(2)
    options = {"methods": ["fastv", "pool"], "budgets": [0.05], "max_new_tokens": 2, "repeats": 2}
    out = compare_models(models, data, **options, out=tmp_path)
    assert [row.method for row in out.rows] == ["pool"]
    (skipped,) = out.skipped
    assert (skipped.method, skipped.lowest) == ("fastv", 7)


def test_no_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model"):
        compare_models({}, from_reference(1), ["pool"], [4], out=tmp_path)
