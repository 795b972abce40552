"""Tokens chosen at a dialogue's first turn: the same as on its cache, and what that saves."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate import Chat
from foveate.adapters.llava import Llava
from foveate.errors import InputError, StageNotAvailable
from foveate.evaluation import Comparison, Dialogue, Turn, compare, price, report, tables
from foveate.evaluation.answering import Batch
from foveate.evaluation.settings import Setting
from tests.families import checkpoints

Load = Callable[[str], tuple[Any, Any]]

QUESTIONS = ("what colour is the thing ?", "is the topmost thing red ?", "is it blue ?")
# P acts on projected tokens, between layers, at both places, before the projector and between.
METHODS = ("mmtok", "sparsevlm", "polymorphic", "visionzip/fastv")
CASES = [*(("llava", method) for method in METHODS), ("qwen2_vl", "polymorphic")]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    made: dict[str, tuple[Any, Any]] = {}

    def loaded(family: str) -> tuple[Any, Any]:
        if family not in made:
            folder: Path = checkpoints.save(family, tmp_path_factory.mktemp(family))
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)
            made[family] = model.eval(), AutoProcessor.from_pretrained(folder)
        return made[family]

    return loaded


def dialogue(seed: int, turns: int, pictures: int = 1) -> Dialogue:
    rng = np.random.default_rng(seed)
    shown = [Image.fromarray(rng.integers(0, 255, (40, 56, 3), np.uint8)) for _ in range(pictures)]
    asked = tuple(Turn(f"{'red ' * seed}{q}", ("red",)) for q in QUESTIONS[:turns])
    return Dialogue(str(seed), tuple(shown), asked)


# Several lengths in one batch, so that rows are padded and some end early.
DATA = [dialogue(0, 3), dialogue(1, 1), dialogue(2, 3, pictures=2), dialogue(3, 2)]


def conversed(loaded: tuple[Any, Any], setting: Setting) -> list[dict[str, Any]]:
    pictures = [each.load() for each in DATA]
    return Batch(*loaded, DATA, pictures, setting.make().reads, 4).converse(setting)


@pytest.mark.parametrize(("family", "method"), CASES)
def test_dialogues_say_what_going_on_from_the_cache_says(
    load: Load, family: str, method: str
) -> None:
    loaded = load(family)
    found = conversed(loaded, Setting(method, 0.4, turns="first"))
    for each, record in zip(DATA, found, strict=True):
        chat = Chat(*loaded, method, keep=0.4, turns="first", max_new_tokens=4)
        said = [
            chat.ask(turn.question, () if number else each.load())
            for number, turn in enumerate(each.turns)
        ]
        assert record["answers"] == [reply.text for reply in said]
        assert all(reply.reused for reply in said[1:])
        # What enters is counted for every turn, since it is there in every turn.
        first = sum(item.entering for item in said[0].items)
        assert record["entering"] == len(each.turns) * first


@pytest.mark.parametrize("method", ["mmtok", "polymorphic"])
def test_the_method_is_asked_at_the_first_turn_only(
    load: Load, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    parts = {type(part) for part in Setting(method, 0.4).make().parts}
    for part in parts:
        call: Any = part.__call__

        def counted(self: Any, tokens: Any, keep: Any, call: Any = call) -> Any:
            asked.append(type(self).__name__)
            return call(self, tokens, keep)

        monkeypatch.setattr(part, "__call__", counted)
    conversed(load("llava"), Setting(method, 0.4, turns="first"))
    first = len(asked)
    asked.clear()
    conversed(load("llava"), Setting(method, 0.4))
    # Five pictures are asked about in the first turn, four in the second, three in the third.
    assert len(asked) * 5 == first * 12


# ---------------------------------------------------------------------- a whole comparison


def run(load: Load, out: Path, **changes: Any) -> Comparison:
    given: dict[str, Any] = {
        "data": [dialogue(0, 3), dialogue(2, 2)],
        "methods": ["mmtok", "divprune"],
        "budgets": [0.4],
        "turns": "both",
        "max_new_tokens": 3,
        "repeats": 2,
    }
    return compare(*load("llava"), **{**given, **changes}, out=out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("both")


@pytest.fixture(scope="module")
def found(load: Load, folder: Path) -> Comparison:
    return run(load, folder)


def test_both_ways_stand_side_by_side(found: Comparison) -> None:
    assert [(row.method, row.turns) for row in found.rows] == [
        ("mmtok", "each"),
        ("mmtok", "first"),
        ("divprune", "either"),
    ]
    assert [each.method for each in found.reuse] == ["mmtok"]
    for reuse in found.reuse:
        each, first = (row for row in found.rows if row.method == reuse.method)
        assert (reuse.each, reuse.first) == (each.accuracy, first.accuracy)
        assert reuse.difference[0] == pytest.approx(first.accuracy.mean - each.accuracy.mean)
        assert reuse.turn_differences[0] == (0, 0, 0)  # the first turns are one and the same
        assert len(reuse.turn_differences) == 3
        assert first.time == each.time


def test_what_reads_no_prompt_is_run_once(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run_with = Batch.converse, []

    def noted(batch: Batch, setting: Setting | None) -> list[dict[str, Any]]:
        run_with.append(None if setting is None else (setting.method, setting.turns))
        return whole(batch, setting)

    monkeypatch.setattr(Batch, "converse", noted)
    once = run(load, tmp_path, turns="first")
    assert [each for each in run_with if each] == [("mmtok", "first"), ("divprune", "each")]
    assert [(row.method, row.turns) for row in once.rows] == [
        ("mmtok", "first"),
        ("divprune", "either"),
    ]
    assert not once.reuse
    run_with.clear()
    both = run(load, tmp_path)  # what was answered before is not asked again
    assert run_with == [("mmtok", "each")]
    assert both.rows[1].accuracy == once.rows[0].accuracy


def test_the_price_is_counted_in_tokens(load: Load, found: Comparison) -> None:
    """Against chats whose tokens are counted here."""
    data = [dialogue(0, 3), dialogue(2, 2)]
    for reuse in found.reuse:
        whole, new = [], []
        for each in data:
            for turns in range(2, len(each.turns) + 1):
                chats = [
                    Chat(*load("llava"), reuse.method, keep=0.4, turns=way, max_new_tokens=3)
                    for way in ("each", "first")
                ]
                for number, turn in enumerate(each.turns[:turns]):
                    images = () if number else each.load()
                    again, on = (chat.ask(turn.question, images) for chat in chats)
                whole.append(again.prompt - sum(i.n - i.entering for i in again.items))
                new.append(on.prompt - on.reused)
        assert reuse.price is not None
        assert reuse.price.turns == len(whole) == 3
        assert reuse.price.whole == pytest.approx(np.mean(whole))
        assert reuse.price.new == pytest.approx(np.mean(new))
        assert reuse.price.new < reuse.price.whole
        assert reuse.price.time.low <= reuse.price.time.median <= reuse.price.time.high


def test_both_ways_are_timed_in_turns(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int]] = []
    ask = Chat.ask

    def noted(chat: Chat, question: str, *images: Any, **options: Any) -> Any:
        reply = ask(chat, question, *images, **options)
        if "max_new_tokens" in options:  # one token: this is timed
            order.append((chat.turns, len(chat.history)))
        return reply

    monkeypatch.setattr(Chat, "ask", noted)
    data = [dialogue(0, 3), dialogue(1, 1), dialogue(2, 2), dialogue(3, 3)]
    found = price.price(*load("llava"), Setting("mmtok", 4), data, 3, 2)
    assert found is not None and found.turns == 3
    anew, cached = ([(way, turn) for turn in (2, 3, 2)] for way in ("each", "first"))
    # Counted once, warmed up once, timed twice; the conversations stay where they were.
    assert order == [*anew, *cached] * 4


def test_what_has_no_price(load: Load) -> None:
    model, processor = load("llava")
    images = dialogue(0, 1).pictures
    video = Dialogue("v", images * 2, dialogue(0, 3).turns, is_video=True)
    for data in ([dialogue(0, 1)], [video]):
        assert price.price(model, processor, Setting("mmtok", 4), data, 3, 2) is None


def test_the_tables_tell_the_ways_apart(found: Comparison, tmp_path: Path) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(*tables.tables(found))
    text = capture.get()
    assert "both ways are one, as no prompt is read: divprune." in text
    assert "mmtok first" in text
    page = report.write_html(found, tmp_path / "report.html").read_text()
    assert "The price of a later turn" in page
    for reuse in found.reuse:
        for shown in (tables.delta(reuse), *tables.paid(reuse.price)):
            assert shown in text
            assert shown in page
        assert all(cell in page for cell in tables.turn_deltas(reuse))
    assert "…" not in text


def test_later_turns_that_are_not_there(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dialogue here has a second one") as error:
        run(load, tmp_path, data=[dialogue(0, 1)])
    assert len(str(error.value).splitlines()) <= 4
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_go_on_is_told_at_once(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Llava, "later_turns", False)
    with pytest.raises(StageNotAvailable, match="cannot go on from a cache") as error:
        run(load, tmp_path)
    assert len(str(error.value).splitlines()) <= 4
    assert not list(tmp_path.iterdir())
