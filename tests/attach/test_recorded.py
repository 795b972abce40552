"""A conversation run again with the mappings of its first turn says what its cache would say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
from foveate import Chat
from foveate.errors import AttachError
from foveate.prompting import model_inputs, transcript
from tests.families import checkpoints

QUESTIONS = ("what colour is the thing ?", "is the topmost thing red ?", "is it blue ?")
# P acts on projected tokens, before the projector (merging), between layers, at several places.
METHODS = ("mmtok", "visionzip", "sparsevlm", "polymorphic", "visionzip/fastv")
CASES = [
    *[(family, method, "original") for family in ("llava", "qwen2_vl") for method in METHODS],
    *[(family, "polymorphic", "reindex") for family in ("llava", "qwen2_vl")],
    ("llava", "tome", "original"),
    ("llava_next", "visionzip/fastv", "original"),
]
KEEP = 0.4


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    made: dict[str, tuple[Any, Any]] = {}

    def loaded(family: str) -> tuple[Any, Any]:
        if family not in made:
            folder: Path = checkpoints.save(family, tmp_path_factory.mktemp(family))
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64)
            made[family] = model.eval(), AutoProcessor.from_pretrained(folder)
        return made[family]

    return loaded


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8))


class Heard:
    """The logits of every token that a model draws."""

    def __init__(self, model: Any) -> None:
        self.steps: list[Tensor] = []
        self.hook = model.lm_head.register_forward_hook(
            lambda module, args, out: self.steps.append(out[0, -1].detach().clone())
        )

    def take(self) -> Tensor:
        found, self.steps = torch.stack(self.steps), []
        return found


@pytest.fixture
def heard() -> Iterator[Callable[[Any], Heard]]:
    made: list[Heard] = []

    def listen(model: Any) -> Heard:
        made.append(Heard(model))
        return made[-1]

    yield listen
    for each in made:
        each.hook.remove()


def again(
    model: Any, processor: Any, turns: list[tuple[str, list[Image.Image], str]], **settings: Any
) -> tuple[str, foveate.Run]:
    """The answer to the last question, the whole conversation run in one piece."""
    asked = [(question, len(images)) for question, images, _ in turns]
    text = transcript(processor, asked, [answer for *_, answer in turns[:-1]])
    inputs = model_inputs(processor, model, [text], [[i for _, each, _ in turns for i in each]])
    with torch.no_grad(), foveate.attach(model, processor=processor, **settings) as run:
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip(), run


@pytest.mark.parametrize(("family", "method", "positions"), CASES)
def test_what_was_recorded_equals_going_on_from_the_cache(
    load: Any, heard: Any, family: str, method: str, positions: str
) -> None:
    model, processor = load(family)
    listening = heard(model)
    settings = {"method": method, "keep": KEEP, "positions": positions}
    chat = Chat(model, processor, **settings, turns="first", max_new_tokens=4)
    turns: list[tuple[str, list[Image.Image], str]] = []
    recorded = None
    for number, question in enumerate(QUESTIONS):
        images = [picture(0), picture(1)] if number == 0 else []
        reply = chat.ask(question, images)
        logits = listening.take()
        turns.append((question, images, ""))
        if recorded is None:
            recorded = [item.answers for item in reply.items]
            assert [len(each) for each in recorded] != [0, 0]
        else:
            assert reply.reused
            said, run = again(model, processor, turns, **settings, _recorded=recorded)
            assert said == reply.text
            torch.testing.assert_close(listening.take(), logits, rtol=1e-9, atol=1e-9)
            assert [item.answers for item in run.items] == recorded
        turns[-1] = (question, images, reply.text)


@pytest.mark.parametrize("method", ["mmtok", "sparsevlm", "polymorphic"])
def test_choosing_anew_would_have_been_something_else(load: Any, heard: Any, method: str) -> None:
    """Positive control: these methods choose by the question, so the test above can fail."""
    model, processor = load("llava")
    listening = heard(model)
    settings: dict[str, Any] = {"method": method, "keep": KEEP}
    first, run = again(model, processor, [(QUESTIONS[0], [picture(0)], "")], **settings)
    turns = [(QUESTIONS[0], [picture(0)], first), (QUESTIONS[1], [], "")]
    listening.take()
    again(model, processor, turns, **settings)
    anew = listening.take()
    again(model, processor, turns, **settings, _recorded=[item.answers for item in run.items])
    assert (anew[0] - listening.take()[0]).abs().max() > 1e-3


def test_a_method_is_not_asked_where_its_answer_is_recorded(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load("llava")
    turns = [(QUESTIONS[0], [picture(0)], "")]
    _, run = again(model, processor, turns, method="fastv", keep=KEEP)
    answers = [item.answers for item in run.items]
    monkeypatch.setattr(type(run.method), "__call__", None)
    again(model, processor, turns, method="fastv", keep=KEEP, _recorded=answers)


def test_mappings_of_other_pictures_are_refused(load: Any) -> None:
    model, processor = load("qwen2_vl")
    turns = [(QUESTIONS[0], [picture(0)], "")]
    _, run = again(model, processor, turns, method="uniform", keep=KEEP)
    answers = run.items[0].answers
    wide = [(QUESTIONS[0], [picture(0).resize((120, 40))], "")]
    for given, asked in (([answers], wide), ([answers] * 2, turns), ([], turns)):
        with pytest.raises(AttachError, match="were recorded") as error:
            again(model, processor, asked, method="uniform", keep=KEEP, _recorded=given)
        assert len(str(error.value).splitlines()) <= 4
        assert "_foveate_run" not in vars(model)
