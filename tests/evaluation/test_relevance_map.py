"""Pruning by relevance itself, as a setting of a comparison."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate import relevance
from foveate.errors import InputError, UnknownName
from foveate.evaluation import compare, tables
from foveate.evaluation.answering import Batch
from foveate.evaluation.relevance_map import RelevanceMap
from foveate.evaluation.settings import BOTH, FIRST, Setting, expand, parse_method
from foveate.relevance import Rule
from tests.evaluation.test_turns import DATA, dialogue
from tests.families import checkpoints

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = checkpoints.save("llava", tmp_path_factory.mktemp("llava"))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def watched(loaded: Loaded, setting: Setting) -> list[tuple[Any, Any, Any]]:
    """(rows, inputs without picture, mappings) of each turn of a conversation."""
    batch = Batch(*loaded, DATA, [each.load() for each in DATA], frozenset(), 4)
    seen: list[tuple[Any, Any, Any]] = []
    turn = batch._turn

    def noting(setting: Any, number: int, rows: Any, found: Any, chosen: Any) -> Any:
        said = [list(found[row]["answers"]) for row in rows]
        seen.append((rows, said, {row: chosen[row] for row in rows}))
        return turn(setting, number, rows, found, chosen)

    batch._turn = noting  # type: ignore[method-assign]
    records = batch.converse(setting)
    for each, record in zip(DATA, records, strict=True):
        assert record["entering"] == len(each.turns) * len(each.pictures) * 6
    return seen


def alone(loaded: Loaded, row: int, turn: int, said: list[str], rule: Rule) -> list[list[int]]:
    """What one dialogue keeps at a turn, asked by itself."""
    batch = Batch(*loaded, [DATA[row]], [DATA[row].load()], frozenset(), 4)
    inputs = batch.inputs([0], turn, [said])
    maps = relevance.explain(loaded[0], inputs, rule=rule, max_new_tokens=4)
    return [relevance.strongest(each, 6).anchors.tolist() for each in maps]


@pytest.mark.parametrize("turns", ["each", "first"])
def test_it_keeps_what_the_full_models_answer_came_from(loaded: Loaded, turns: str) -> None:
    setting = RelevanceMap("relevance-map", 6, fields=(("relu", True),), turns=turns)
    differs = False
    for number, (rows, said, chosen) in enumerate(watched(loaded, setting)):
        for row, answers in zip(rows, said, strict=True):
            got = [mapping.anchors.tolist() for (mapping,) in chosen[row]]
            when = number if turns == "each" else 0
            first = alone(loaded, row, 0, [], Rule(relu=True))
            assert got == alone(loaded, row, when, answers[:when], Rule(relu=True))
            differs |= got != first
    assert differs == (turns == "each")


def test_it_is_typed_like_a_method() -> None:
    setting = parse_method("relevance-map:relu=true,explained=logprob")
    assert isinstance(setting, RelevanceMap)
    assert setting.rule() == Rule(relu=True, explained="logprob")
    assert setting.label == "relevance-map:relu=true,explained=logprob"
    groups = expand(["relevance-map", "uniform"], [0.5], turns=BOTH)
    assert [(g[0].label, g[0].turns) for g in groups] == [
        ("relevance-map", "each"),
        ("relevance-map", FIRST),
        ("uniform", "each"),
    ]
    keys = {g[0].key for g in groups} | {RelevanceMap("relevance-map", 0.5, fields=(("a", 1),)).key}
    assert len(keys) == 4
    for text, name in (("relevance-map:relo=1", "relu"), ("relevance-map@authors", "preset")):
        with pytest.raises(UnknownName, match=name):
            parse_method(text)
    with pytest.raises(UnknownName, match="weighting"):
        parse_method("relevance-map:weighting=max")
    with pytest.raises(InputError, match="field=value"):
        parse_method("relevance-map:relu")
    with pytest.raises(InputError, match="relu of relevance-map is true or false; got 'no'"):
        parse_method("relevance-map:relu=no")


def test_a_comparison_says_that_it_is_no_method(loaded: Loaded, tmp_path: Path) -> None:
    out = compare(
        *loaded,
        [dialogue(0, 2), dialogue(2, 1)],
        ["relevance-map", "uniform"],
        [6, 26],
        out=tmp_path,
        turns=BOTH,
        repeats=2,
        max_new_tokens=2,
    )
    rows = [(row.method, row.turns, row.oracle, row.entering) for row in out.rows]
    assert rows == [
        ("relevance-map", "each", True, 6),
        ("relevance-map", "first", True, 6),
        ("uniform", "either", False, 6),
    ]
    assert {each.budget for each in out.skipped} == {"26"}
    assert all(each.price is None for each in out.reuse)  # a chat cannot do it
    console = Console(width=120, file=io.StringIO())
    console.print(*tables.tables(out))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "relevance-map: no method; it keeps what the full model's own answer came" in text
    assert "oracle:" not in text
