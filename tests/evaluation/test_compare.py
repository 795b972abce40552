"""A whole comparison on tiny models: shared features, resuming, and a report that stands alone."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.compressor import Grid, Reads
from foveate.errors import InputError, SavedFileError
from foveate.evaluation import (
    Comparison,
    Dialogue,
    Turn,
    compare,
    from_reference,
    report,
    summary,
    tables,
)
from foveate.evaluation.answering import Batch
from foveate.evaluation.asking import Group
from foveate.evaluation.cost import Cost
from foveate.evaluation.oracle import Oracle, choose, ground_truth
from foveate.evaluation.settings import Setting
from foveate.evaluation.store import Store
from foveate.evaluation.timing import Ratio
from tests.families import checkpoints

METHODS = ["random", "divprune", "tome"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = checkpoints.save("llava", tmp_path_factory.mktemp("llava"))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, AutoProcessor.from_pretrained(folder)


@pytest.fixture
def towers(loaded: tuple[Any, Any]) -> Iterator[list[int]]:
    """How many pictures each run of the vision tower got."""
    seen: list[int] = []
    handle = loaded[0].model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len((*args, *kwargs.values())[0])),
        with_kwargs=True,
    )
    yield seen
    handle.remove()


def run(loaded: tuple[Any, Any], out: Path, **changes: Any) -> Comparison:
    model, processor = loaded
    given: dict[str, Any] = {
        "data": from_reference(4),
        "methods": METHODS,
        "budgets": [0.25],
        "draws": 2,
        "batch_size": 2,
        "max_new_tokens": 3,
        "repeats": 2,
    }
    return compare(model, processor, **{**given, **changes}, out=out)


def untimed(found: Comparison) -> dict[str, Any]:
    record = found.to_dict()
    for each in (record, *record["models"]):
        each["prefill_seconds"] = each["batch"] = None
        for row in each["rows"]:
            row["time"] = None
        for reuse in each["reuse"]:
            if reuse["price"]:
                reuse["price"]["time"] = None
    return record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def found(loaded: tuple[Any, Any], folder: Path) -> Comparison:
    return run(loaded, folder)


def test_what_is_stated(found: Comparison) -> None:
    assert [(row.method, row.draws) for row in found.rows] == [
        ("random", 2),
        ("divprune", 1),
        ("tome", 1),
    ]
    for row in found.rows:
        assert (row.visual, row.entering, row.average) == (25, 6, 6)  # floor(25 / 4 + 1/2)
        assert 0 < row.flops_share < 1
        assert 0 < row.kv_share < 1
        assert len(row.accuracy.turns) == 3
    random, _, tome = found.rows
    assert tome.flops < random.flops  # its tower is cheaper too
    assert (found.dialogues, found.questions) == (4, 12)


def test_the_cache_is_counted_in_bytes(found: Comparison) -> None:
    # 4 layers, keys and values, 4 heads x 16 numbers of 4 bytes a token; 25 visual ones fewer 6.
    per_token = 4 * 2 * 4 * 16 * 4
    for row in found.rows:
        assert found.kv_bytes - row.kv_bytes == 19 * per_token


def test_features_are_computed_once(loaded: tuple[Any, Any], towers: list[int]) -> None:
    data = from_reference(2)
    pictures = [each.load() for each in data]
    batch = Batch(*loaded, data, pictures, frozenset({Reads.ATTENTION, Reads.KEYS, Reads.CLS}), 2)
    for setting in (None, Setting("divprune", 4), Setting("visionzip", 4), Setting("pool", 0.5)):
        batch.converse(setting)
    assert towers == [2]  # three turns of four settings, one run for both pictures
    batch.converse(Setting("tome", 6))
    assert towers == [2, 2, 2, 2]  # a method that changes the tower runs it in each turn


def test_shared_features_change_no_answer(loaded: tuple[Any, Any]) -> None:
    """Against a conversation in which nothing is shared and one dialogue is alone in its batch."""
    data = from_reference(3)
    pictures = [each.load() for each in data]
    reads = frozenset({Reads.ATTENTION, Reads.KEYS, Reads.CLS})
    setting = Setting("visionzip", 5)
    shared = Batch(*loaded, data, pictures, reads, 6)
    shared.converse(None)
    together = shared.converse(setting)
    alone = [
        Batch(*loaded, [each], [shown], reads, 6).converse(setting)[0]
        for each, shown in zip(data, pictures, strict=True)
    ]
    assert together == alone


def test_turns_may_differ_in_number(loaded: tuple[Any, Any]) -> None:
    image = Image.new("RGB", (20, 20))
    turn = Turn("what colour ?", ("red",))
    data = [Dialogue("a", (image,), (turn,)), Dialogue("b", (image,), (turn,) * 3)]
    answers = Batch(*loaded, data, [[image], [image]], frozenset(), 3).converse(Setting("pool", 4))
    assert [len(each["answers"]) for each in answers] == [1, 3]
    assert [each["entering"] for each in answers] == [4, 12]


def test_an_interrupted_comparison_goes_on(
    loaded: tuple[Any, Any],
    towers: list[int],
    found: Comparison,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, left = Batch.converse, [5]

    def interrupted(batch: Batch, setting: Setting | None) -> list[dict[str, Any]]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(batch, setting)

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "converse", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, tmp_path)
    stored = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(stored) == 1 + 4 + 5 * 2  # facts, what the dialogues are, answers
    towers.clear()
    again = run(loaded, tmp_path)
    assert untimed(again) == untimed(found)
    assert (tmp_path / "answers.jsonl").read_text().splitlines()[: len(stored)] == stored
    answers = [
        sorted((each / "answers.jsonl").read_text().splitlines()) for each in (tmp_path, folder)
    ]
    assert answers[0] == answers[1]
    # Everything is stored now: only the cost is measured anew.
    monkeypatch.setattr(Batch, "converse", None)
    assert untimed(run(loaded, tmp_path)) == untimed(found)


def test_other_data_is_not_mixed_with_stored_answers(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    data = from_reference(3)
    run(loaded, tmp_path, data=data[:2], methods=["pool"])
    other = [data[0], dataclasses.replace(data[1], turns=data[2].turns)]
    stored = (tmp_path / "answers.jsonl").read_text()
    with pytest.raises(SavedFileError, match=f"another dialogue '{data[1].name}'"):
        run(loaded, tmp_path, data=other, methods=["pool"])
    assert (tmp_path / "answers.jsonl").read_text() == stored
    run(loaded, tmp_path, data=other, methods=["pool"], fresh=True)


def test_what_goes_wrong_lets_go_of_the_answers(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = from_reference(2)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", None)
        with pytest.raises(TypeError) as kept:
            run(loaded, tmp_path, data=data, methods=["pool"])
    # As where a notebook keeps the last error with all that it knew.
    assert kept.value is not None
    run(loaded, tmp_path, data=data, methods=["pool"])


def test_more_dialogues_are_added_to_stored_answers(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    data = from_reference(3)
    run(loaded, tmp_path, data=data[:2], methods=["pool"])
    stored = (tmp_path / "answers.jsonl").read_text()
    found = run(loaded, tmp_path, data=data, methods=["pool"])
    more = (tmp_path / "answers.jsonl").read_text()
    assert more.startswith(stored)
    added = {json.loads(line)["dialogue"] for line in more[len(stored) :].splitlines()}
    assert added == {data[2].name}
    whole = run(loaded, tmp_path / "whole", data=data, methods=["pool"])
    assert [row.accuracy for row in found.rows] == [row.accuracy for row in whole.rows]


def test_what_a_model_cannot_do_is_told(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    out = run(loaded, tmp_path, data=from_reference(2), methods=["trim", "pool"], budgets=[4, 26])
    assert [row.budget for row in out.rows] == ["4"]
    assert [(s.method, s.budget) for s in out.skipped] == [
        ("trim", "4"),
        ("trim", "26"),
        ("pool", "26"),
    ]
    assert "CLIP" in out.skipped[0].reason
    assert "n=25" in out.skipped[2].reason


def test_a_budget_out_of_reach_is_told_before_the_model_runs(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its cell says so, while everything else goes on, chains included."""
    said, order = io.StringIO(), []
    whole = Batch.converse

    def noted(batch: Batch, setting: Setting | None) -> list[dict[str, Any]]:
        order.append((None if setting is None else setting.method, said.getvalue()))
        return whole(batch, setting)

    monkeypatch.setattr(Batch, "converse", noted)
    methods = ["fastv", "visionzip/fastv", "visionzip/fastv:keeps=[0.5,0.3]"]  # brackets, too
    with Progress(console=Console(file=said, width=200), disable=True) as progress:
        out = run(
            loaded,
            tmp_path,
            data=from_reference(2),
            methods=methods,
            budgets=[0.05, 0.4],
            progress=progress,
        )
    # 25 slots over 4 layers: the first one sees all of them, so 25 / 4 and then some.
    assert "fastv 5%: not reachable, lowest 7\n" in order[0][1]
    assert [method for method, _ in order if method] == ["fastv", *["visionzip/fastv"] * 3]
    assert [(row.method, row.budget) for row in out.rows] == [
        ("fastv", "40%"),
        ("visionzip/fastv", "5%"),
        ("visionzip/fastv", "40%"),
        ("visionzip/fastv:keeps=[0.5,0.3]", "own"),
    ]
    # Each chain's first method leaves twice the budget, as many as the average lets in, or what it
    # was given.
    assert [row.entering for row in out.rows] == [25, 1, 20, 13]
    assert [round(row.average) for row in out.rows] == [10, 1, 10, 8]
    skipped = [(each.method, each.budget, each.lowest) for each in out.skipped]
    assert skipped == [("fastv", "5%", 7)]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(*tables.tables(out))
    text = capture.get()
    assert re.search(r"fastv +5% +not reachable, lowest 7", text)
    assert "visionzip/fastv:keeps=[0.5,0.3]" in text
    assert "left out" not in text
    page = report.write_html(out, tmp_path / "report.html").read_text()
    assert "not reachable, lowest 7" in page
    assert page.index(">fastv<") < page.index("not reachable") < page.index(">visionzip/fastv<")
    json.dumps(out.to_dict(), allow_nan=False)


def test_a_picture_of_another_size_may_put_a_budget_out_of_reach(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Known only when it comes; the rest goes on."""
    folder = checkpoints.save("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    turn = (Turn("what colour ?", ("red",)),)
    sizes = [(40, 24), (64, 48)]  # 15 slots, and 48
    data = [Dialogue(str(s), (Image.effect_noise(s, 50),), turn) for s in sizes]
    said = io.StringIO()
    with Progress(console=Console(file=said), disable=True) as progress:
        out = run(
            (model, AutoProcessor.from_pretrained(folder)),
            tmp_path,
            data=data,
            methods=["fastv", "pool"],
            budgets=[10],
            batch_size=1,
            progress=progress,
        )
    assert said.getvalue() == ""
    assert [row.method for row in out.rows] == ["pool"]
    assert [(each.method, each.lowest) for each in out.skipped] == [("fastv", 13)]


def test_the_oracle_stands_apart(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    data = from_reference(3)
    out = run(loaded, tmp_path, data=data, methods=["pool"], budgets=[4, 26], oracle=True)
    assert [(row.method, row.budget, row.oracle) for row in out.rows] == [
        ("pool", "4", False),
        ("oracle", "4", True),
    ]
    assert [(each.method, each.budget) for each in out.skipped] == [
        ("pool", "26"),
        ("oracle", "26"),
    ]
    assert (out.rows[1].visual, out.rows[1].entering) == (25, 4)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(*tables.tables(out))
    assert "oracle: no method; it is told" in capture.get()
    page = report.write_html(out, tmp_path / "report.html").read_text()
    assert 'class="oracle"' in page and "oracle: no method" in page
    image = Image.new("RGB", (20, 20))
    mine = [Dialogue("a", (image,), (Turn("?", ("x",)),))]
    with pytest.raises(InputError, match="shipped scenes only"):
        run(loaded, tmp_path / "mine", data=mine, methods=["pool"], oracle=True)
    assert not (tmp_path / "mine").exists()


def test_the_oracle_keeps_what_it_is_told_in_every_turn(loaded: tuple[Any, Any]) -> None:
    data = from_reference(2)
    batch = Batch(*loaded, data, [each.load() for each in data], frozenset(), 2)
    given: list[Any] = []

    class Watched(Oracle):
        def attach(self, model: Any, **options: Any) -> Any:
            given.append(options["_recorded"])
            return super().attach(model, **options)

    (one, two) = batch.converse(Watched(keep=6))
    assert one["entering"] == two["entering"] == 3 * 6
    assert len(given) == 3
    for told in given:
        for each, (mapping,) in zip(data, told, strict=True):
            expected = choose(ground_truth(each), (Grid(1, 5, 5),), 6)
            assert mapping.anchors.tolist() == expected.anchors.tolist()


def test_a_comparison_of_which_nothing_is_left(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """One picture, so none is wrong; one method, which cannot be served."""
    out = run(loaded, tmp_path, data=from_reference(1), methods=["trim"])
    assert out.wrong is None
    assert not out.rows
    json.dumps(out.to_dict(), allow_nan=False)
    console = Console(width=80, file=io.StringIO())
    console.print(*tables.tables(out))
    assert "wrong picture" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert "wrong picture" not in report.write_html(out, tmp_path / "report.html").read_text()


def test_every_turn_and_kind_is_set_against_the_full_model(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    """Stored answers by hand: right and wrong where the sums are known."""
    images = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (0, 99)]
    turns = (Turn("?", ("x",), "p"), Turn("?", ("x",), "q"))
    data = [Dialogue("a", (images[0],), turns), Dialogue("b", (images[1],), turns[:1])]
    store = Store(tmp_path / "answers.jsonl", {})
    setting = Setting("pool", 4)
    counted = {"n": 25, "entering": 4, "average": 4.0}
    for key, answers in {"full": (["x", "x"], ["x"]), setting.key: (["x", "y"], ["y"])}.items():
        for each, said in zip(data, answers, strict=True):
            store.add(key, each.name, answers=said, **counted)
    store.close()
    price = Cost(1, 1, Ratio(1.0, 1.0, 1.0, 1.0))
    made = summary.row([store], data, Group([setting]), price, price)
    assert made.accuracy.turns == (0.5, 0.0)
    assert made.difference[0] == pytest.approx(-2 / 3)
    # Turn 1: the second of two dialogues is lost; both, one or none of them is drawn.
    assert made.turn_differences[0] == (-0.5, -1, 0)
    assert made.turn_differences[1] == (-1, -1, -1)  # asked in one dialogue alone
    assert made.kind_differences == {"p": (-0.5, -1, 0), "q": (-1, -1, -1)}


def test_data_that_cannot_be_compared_on(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20))
    turn = (Turn("?", ("x",)),)
    mixed = [Dialogue("a", (image,), turn), Dialogue("b", (image,), turn, is_video=True)]
    with pytest.raises(InputError, match="mixes images and videos"):
        run(loaded, tmp_path, data=mixed)
    with pytest.raises(InputError, match="no dialogue"):
        run(loaded, tmp_path, data=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["draws", "batch_size", "max_new_tokens", "repeats"])
def test_numbers_that_are_too_small(loaded: tuple[Any, Any], tmp_path: Path, name: str) -> None:
    least = 2 if name == "repeats" else 1
    with pytest.raises(InputError, match=f"{name} must be at least {least}; got {least - 1}"):
        run(loaded, tmp_path, **{name: least - 1})
    assert list(tmp_path.iterdir()) == []


def test_the_tables_show_every_row_in_eighty_columns(found: Comparison) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(*tables.tables(found))
    text = capture.get()
    for row in found.rows:
        assert f"{row.accuracy.mean:.3f}" in text
        assert tables.delta(row) in text
        assert tables.costs(row)[2] in text
        assert row.method in text
    assert "grey picture" in text
    assert "wrong picture" in text


@torch.no_grad()
def test_the_html_needs_nothing_else(
    loaded: tuple[Any, Any], found: Comparison, tmp_path: Path
) -> None:
    settings = [Setting("divprune", 0.25), Setting("tome", 0.25)]
    pictures = report.kept_pictures(*loaded, from_reference(2), settings, 2)
    odd = dataclasses.replace(found, model="<script>alert(1)</script>")
    text = report.write_html(odd, tmp_path / "report.html", pictures).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "<script" not in text
    assert text.count("data:image/png") == 2
    assert text.count("data:image/svg") == 2
    for row in found.rows:
        assert tables.delta(row) in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_comparison_is_plain_data(found: Comparison) -> None:
    assert json.loads(json.dumps(found.to_dict()))["questions"] == 12
