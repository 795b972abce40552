"""The shipped model, as any user of transformers would load and ask it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate import reference
from foveate.errors import UnknownName
from foveate.reference.measure import hits, learned, messages
from foveate.reference.table import insert, markdown


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return reference.load()


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((reference.path() / "training.json").read_text())


def test_loads_like_any_folder(loaded: tuple[Any, Any]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(reference.path())
    processor = AutoProcessor.from_pretrained(reference.path())
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert model.dtype == torch.bfloat16
    assert loaded[0].dtype == torch.float32
    assert not loaded[0].training


@pytest.mark.parametrize("name", reference.NAMES)
def test_folder_is_small(name: str) -> None:
    total = sum(file.stat().st_size for file in reference.path(name).iterdir())
    assert total < 10_000_000


def test_unknown_name_suggests() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'reference'"):
        reference.load("referense")


def test_import_is_light() -> None:
    """With a control that fails: loading does import torch."""
    program = "import sys, foveate.reference as r; print('torch' in sys.modules, r.NAMES)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("False"), done
    assert "torch" in sys.modules


def test_chat_template_round_trip(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    (sample,) = reference.samples("test", 1)
    text = processor.apply_chat_template(messages(sample.turns))
    (first, answer, _), *_ = sample.turns
    assert text.startswith(f"user: <image>\n{first} assistant: {answer}</s> user: ")
    inputs = processor(text=text, images=sample.image, return_tensors="pt")
    ids = inputs.input_ids[0]
    assert (ids == processor.image_token_id).sum() == 256
    assert (ids == processor.tokenizer.unk_token_id).sum() == 0
    words_back = processor.decode(ids[ids != processor.image_token_id], skip_special_tokens=True)
    assert words_back.split() == text.replace("<image>", "").replace("</s>", "").split()


def generated(loaded: tuple[Any, Any], sample: reference.Sample) -> list[bool]:
    """Which turns greedy generation answers right, and ends, behind the given answers."""
    model, processor = loaded
    right = []
    for turn, (_, answer, _) in enumerate(sample.turns):
        asked = messages(sample.turns)[: 2 * turn + 1]
        text = processor.apply_chat_template(asked, add_generation_prompt=True)
        inputs = processor(text=text, images=sample.image, return_tensors="pt")
        out = model.generate(**inputs)[0, inputs.input_ids.shape[1] :]
        said = processor.decode(out, skip_special_tokens=True)
        right.append(said == answer and bool(out[-1] == processor.tokenizer.eos_token_id))
    return right


def test_generate_says_what_measure_counts(loaded: tuple[Any, Any]) -> None:
    """The teacher-forced accuracy is that of greedy generation, question by question."""
    for sample in reference.samples("test", 2):
        (counted,) = hits(*loaded, [sample.turns], [sample.image])
        assert generated(loaded, sample) == counted


def test_answers_are_well_above_guessing(loaded: tuple[Any, Any], record: dict[str, Any]) -> None:
    """Forty fresh dialogues: the kinds that count as learned are, and a wrong picture shows."""
    kinds = record["evaluation"]["kinds"]
    drawn = list(reference.samples("test", 40, start=5000))
    turns, images = [sample.turns for sample in drawn], [sample.image for sample in drawn]
    rates = {}
    for name, shown in {"right": images, "wrong": [*images[1:], images[0]]}.items():
        right: dict[bool, list[bool]] = defaultdict(list)
        for conversation, found in zip(turns, hits(*loaded, turns, shown), strict=True):
            for (_, _, kind), hit in zip(conversation, found, strict=True):
                right[learned(kinds[kind])].append(hit)
        rates[name] = sum(right[True]) / len(right[True])
    weight = sum(row["majority"] * row["questions"] for row in kinds.values() if learned(row))
    majority = weight / sum(row["questions"] for row in kinds.values() if learned(row))
    assert rates["right"] > majority + 0.2
    assert rates["right"] > rates["wrong"] + 0.2


@pytest.mark.parametrize(
    ("name", "file"),
    [("reference", "reference-model.md"), ("reference-tiles", "reference-tiles.md")],
)
def test_page_shows_the_record(name: str, file: str) -> None:
    record = json.loads((reference.path(name) / "training.json").read_text())
    page = (Path(__file__).parents[2] / "docs" / file).read_text()
    assert insert(page, markdown(record)) == page
    # Control: another measurement would be another page.
    changed = json.loads(json.dumps(record))
    evaluation = changed["evaluation"]
    kinds = evaluation["clips"]["kinds"] if "clips" in evaluation else evaluation["kinds"]
    kinds["colour"]["accuracy"] = 0.1234
    assert insert(page, markdown(changed)) != page


def test_record_is_complete(record: dict[str, Any]) -> None:
    assert {"seed", "recipe", "wall_minutes", "hardware"} <= set(record["training"])
    evaluation = record["evaluation"]
    assert evaluation["scenes"] >= 500
    assert len(evaluation["kinds"]) == 12
    for row in evaluation["kinds"].values():
        assert {"accuracy", "majority", "blind", "wrong_image"} <= set(row)
    assert evaluation["learned"]
