"""The page on which layer looks at what an answer comes from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import foveate
from benchmarks import relevance
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Turn
from foveate.methods.relevance import Relevance
from foveate.training.pairs import observations
from tests.evaluation.test_turns import dialogue
from tests.families import checkpoints
from tests.training.test_relevance import answered


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = checkpoints.save("llava", tmp_path_factory.mktemp("llava"))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def test_the_first_layer_is_what_the_method_observes(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    asked = dialogue(0, 1)
    inputs = Batch(model, processor, [asked], [asked.load()], frozenset(), 4).inputs([0], 0, [[]])
    seen = relevance._Looking(total=2)
    with torch.no_grad(), foveate.attach(model, seen, processor=processor, _force=True):
        model(**inputs, use_cache=False)
    (told,) = observations(Relevance(), model, inputs, processor)
    assert len(seen.noted) == 2
    torch.testing.assert_close(seen.noted[0][0], told["attention"])
    assert not torch.allclose(seen.noted[1][0], told["attention"])


def test_a_page_needs_what_was_measured(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CliRunner().invoke(relevance.app, ["--from-store", "--store", str(tmp_path)])
    assert run.exit_code == 2 and "Run it first" in run.output
    monkeypatch.setattr(relevance.Source, "load", lambda self: loaded)
    wrong = answered(loaded, 1, wrong=(0,))
    monkeypatch.setattr(relevance, "from_reference", lambda count, split: [wrong, wrong])
    options = ["--store", str(tmp_path), "--out", str(tmp_path)]
    run = CliRunner().invoke(relevance.app, options)
    assert run.exit_code == 2 and "none of the 2 first questions right" in run.output
    (record,) = Batch(*loaded, [wrong], [wrong.load()], frozenset(), 16).converse(None)
    (turn,) = wrong.turns
    right = dataclasses.replace(wrong, turns=(Turn(turn.question, tuple(record["answers"])),))
    monkeypatch.setattr(relevance, "from_reference", lambda count, split: [right, right])
    assert CliRunner().invoke(relevance.app, options).exit_code == 0
    page = (tmp_path / "relevance.md").read_text()
    assert "\n2 first questions" in page and page.count("| layer ") == 8
    (tmp_path / "relevance.md").unlink()
    assert CliRunner().invoke(relevance.app, ["--from-store", *options]).exit_code == 0
    assert (tmp_path / "relevance.md").read_text() == page
