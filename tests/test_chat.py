"""Conversations: the cache is gone on from, and says what running everything again would say."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.chat import Chat, kv_bytes
from foveate.errors import BudgetError, FoveateError, InputError, UnknownName
from foveate.prompting import model_inputs, new_words, transcript
from tests.families import checkpoints

FAMILIES = ("llava", "llava_next", "qwen2_vl")
QUESTIONS = ("what colour is the thing ?", "is the topmost thing red ?", "is it blue ?")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """A family's tiny model and its real processor, from a folder."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    made: dict[str, Path] = {}

    def loaded(family: str) -> tuple[Any, Any]:
        if family not in made:
            made[family] = checkpoints.save(family, tmp_path_factory.mktemp(family))
        model = AutoModelForImageTextToText.from_pretrained(made[family], dtype=torch.float32)
        return model.eval(), AutoProcessor.from_pretrained(made[family])

    return loaded


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8))


def again(
    model: Any, processor: Any, turns: list[tuple[str, list[Image.Image], str]], **settings: Any
) -> tuple[str, torch.Tensor]:
    """The answer to the last question with the whole conversation run in one piece."""
    asked = [(question, len(images)) for question, images, _ in turns]
    text = transcript(processor, asked, [answer for *_, answer in turns[:-1]])
    inputs = model_inputs(processor, model, [text], [[i for _, each, _ in turns for i in each]])
    with torch.no_grad(), foveate.attach(model, processor=processor, **settings):
        out = model.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    said = new_words(processor, out.sequences, inputs["input_ids"].shape[1])[0]
    return said, torch.stack([step[0] for step in out.logits])


@pytest.mark.parametrize("method", ["divprune", "visionzip", "vtw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_later_turns_go_on_from_the_cache_and_say_the_same(
    load: Any, family: str, method: str
) -> None:
    """These methods read no prompt, so one run over everything chooses the same tokens."""
    model, processor = load(family)
    keep = 0.5
    chat = Chat(model, processor, method, keep=keep, max_new_tokens=6)
    turns: list[tuple[str, list[Image.Image], str]] = []
    for number, question in enumerate(QUESTIONS):
        images = [picture(0)] if number == 0 else []
        turns.append((question, images, ""))
        said, logits = again(model, processor, turns, method=method, keep=keep)
        reply = chat.ask(question, images, output_logits=True)
        assert reply.text == said
        turns[-1] = (question, images, reply.text)
        if number:
            # All but what the template puts behind the last answer comes from the cache.
            assert reply.reused >= chat.history[-2][2].prompt
            assert reply.prompt - reply.reused < 25 and reply.report is None and not reply.items
        else:
            assert reply.reused == 0 and reply.report is not None
            assert [item.mapping.m for item in reply.items] == [
                item.mapping.m for item in reply.items
            ]
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_in_a_later_turn(load: Any, family: str) -> None:
    """On the cache where the stock model can, else everything is run again: the answer is one."""
    model, processor = load(family)
    chat = Chat(model, processor, "uniform", keep=0.4, max_new_tokens=6)
    turns: list[tuple[str, list[Image.Image], str]] = []
    for number, question in enumerate(QUESTIONS):
        images = [picture(number)] if number < 2 else []
        turns.append((question, images, ""))
        said, _ = again(model, processor, turns, method="uniform", keep=0.4)
        reply = chat.ask(question, images)
        assert reply.text == said
        turns[-1] = (question, images, reply.text)
        if number == 1:
            fresh = family == "qwen2_vl"  # it cannot number a new picture beside a cache
            assert (reply.reused == 0) == fresh
            assert len(reply.items) == (2 if fresh else 1)


@pytest.mark.parametrize("turns", ["first", "each"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_may_come_before_the_first_picture(load: Any, family: str, turns: str) -> None:
    model, processor = load(family)
    chat = Chat(model, processor, "divprune", keep=0.5, max_new_tokens=6, turns=turns)
    asked: list[tuple[str, list[Image.Image], str]] = []
    for question, images in zip(QUESTIONS, ([], [picture(0)], []), strict=True):
        reply = chat.ask(question, images)
        asked.append((question, images, reply.text))
        said, _ = again(model, processor, asked, method="divprune", keep=0.5)
        assert reply.text == said
        anew = images or (turns == "each" and len(asked) > 1)
        assert len(reply.items) == bool(anew) == (reply.report is not None)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_each_turn_may_choose_anew(load: Any, family: str) -> None:
    model, processor = load(family)
    chat = Chat(model, processor, "mmtok", keep=3, turns="each", max_new_tokens=6)
    kept, turns = [], []
    for number, question in enumerate(QUESTIONS):
        images = [picture(0)] if number == 0 else []
        turns.append((question, images, ""))
        said, _ = again(model, processor, turns, method="mmtok", keep=3)
        reply = chat.ask(question, images)
        assert reply.text == said and reply.reused == 0 and reply.report is not None
        turns[-1] = (question, images, reply.text)
        kept.append(reply.items[0].mapping.anchors.tolist())
    assert len({tuple(each) for each in kept}) > 1, "the question made no difference"
    first = Chat(model, processor, "mmtok", keep=3, max_new_tokens=6)
    assert first.ask(QUESTIONS[0], [picture(0)]).items[0].mapping.anchors.tolist() == kept[0]
    assert not first.ask(QUESTIONS[1]).items  # chosen once, by the question it came with


def test_pictures_are_encoded_once_where_each_turn_chooses(load: Any) -> None:
    model, processor = load("llava")
    calls = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    chat = Chat(model, processor, "mmtok", keep=3, turns="each", max_new_tokens=3)
    for number, question in enumerate(QUESTIONS):
        chat.ask(question, [picture(0)] if number == 0 else [])
    hook.remove()
    assert len(calls) == 1


def test_a_template_that_rewrites_an_answer_is_followed(load: Any) -> None:
    """What the template writes is what counts: the cache is cut to the part that agrees."""
    model, processor = load("llava")
    plain = processor.chat_template
    chat = Chat(model, processor, "uniform", keep=0.4, max_new_tokens=6)
    first = chat.ask(QUESTIONS[0], [picture(0)])
    processor.chat_template = plain.replace("assistant : {% endif %}", "assistant : {% endif %}")
    processor.chat_template = processor.chat_template.replace(
        "{{ c['text'] }}", "{{ 'red' if m['role'] == 'assistant' else c['text'] }}"
    )
    turns = [(QUESTIONS[0], [picture(0)], first.text), (QUESTIONS[1], [], "")]
    said, _ = again(model, processor, turns, method="uniform", keep=0.4)
    reply = chat.ask(QUESTIONS[1])
    assert reply.text == said
    assert reply.reused <= first.prompt + 1


def test_a_stream_that_is_left_early_changes_nothing(load: Any) -> None:
    model, processor = load("llava")
    chat = Chat(model, processor, "divprune", keep=0.4, max_new_tokens=6)
    chat.ask(QUESTIONS[0], [picture(0)])
    other = Chat(model, processor, "divprune", keep=0.4, max_new_tokens=6)
    other.ask(QUESTIONS[0], [picture(0)])
    stream = chat.stream("blue blue blue ?", max_new_tokens=200, min_new_tokens=200)
    next(stream)
    stream.close()
    assert len(chat.history) == 1
    assert chat.ask(QUESTIONS[1]).text == other.ask(QUESTIONS[1]).text


def test_pieces_make_the_answer(load: Any) -> None:
    model, processor = load("llava")
    chat = Chat(model, processor, "divprune", keep=0.4, max_new_tokens=6)
    pieces = list(chat.stream(QUESTIONS[0], [picture(0)]))
    reply = chat.history[-1][2]
    assert "".join(pieces).strip() == reply.text == str(reply)
    assert 0 < reply.first_seconds <= reply.seconds


def test_the_model_is_free_between_turns_and_the_cache_is_short(load: Any) -> None:
    model, processor = load("llava")
    sizes = {}
    for keep in (1.0, 0.2):
        chat = Chat(model, processor, "divprune", keep=keep, max_new_tokens=2)
        reply = chat.ask(QUESTIONS[0], [picture(0)])
        sizes[keep] = reply.kv_bytes
        assert reply.kv_bytes == kv_bytes(chat._cache) > 0
        assert "_foveate_run" not in vars(model)
    # 5 of 25 visual tokens are left, over four layers of keys and values of 64 float32 numbers.
    assert sizes[1.0] - sizes[0.2] == 20 * 4 * 2 * 64 * 4


def test_reset_forgets(load: Any) -> None:
    model, processor = load("llava")
    chat = Chat(model, processor, "divprune", keep=0.4, max_new_tokens=2)
    chat.ask(QUESTIONS[0], [picture(0)])
    chat.reset()
    assert not chat.history
    assert not chat.ask(QUESTIONS[0]).reused


def test_what_a_conversation_cannot_take_is_told(load: Any) -> None:
    chat = Chat(*load("llava"), "divprune", keep=0.4, max_new_tokens=2)
    with pytest.raises(InputError, match="num_beams=3"):
        chat.ask(QUESTIONS[0], [picture(0)], num_beams=3)
    assert not chat.history
    assert len(chat.ask(QUESTIONS[0], picture(0)).items) == 1  # one needs no list


def test_the_first_token_is_not_the_first_word(
    load: Any,
) -> None:
    """Words are told when they are whole, tokens are drawn one by one."""
    model, processor = load("llava")
    chat = Chat(model, processor, "divprune", keep=0.4, max_new_tokens=4)
    stamps: list[float] = []

    def stamp(ids: Any, scores: Any) -> Any:
        stamps.append(time.perf_counter())
        return scores

    began = time.perf_counter()
    reply = chat.ask(QUESTIONS[0], [picture(0)], logits_processor=[stamp])
    assert 0 < reply.first_seconds < stamps[1] - began
    assert reply.seconds > stamps[-1] - stamps[0]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"method": "divprun", "keep": 3}, UnknownName),
        ({"method": "divprune"}, BudgetError),
        ({"method": "divprune", "keep": 0}, BudgetError),
        ({"method": "divprune", "keep": 3, "turns": "all"}, UnknownName),
        ({"method": "divprune", "keep": 3, "max_new_tokens": 0}, BudgetError),
    ],
)
def test_wrong_settings_are_told_at_once(
    load: Any, settings: dict[str, Any], error: type[FoveateError]
) -> None:
    model, processor = load("llava")
    with pytest.raises(error) as caught:
        Chat(model, processor, **settings)
    assert len(str(caught.value).splitlines()) <= 4
    assert "_foveate_run" not in vars(model)


def test_an_error_inside_generation_reaches_the_caller(load: Any) -> None:
    model, processor = load("llava")
    chat = Chat(model, processor, "fastv", keep=1, max_new_tokens=2)
    with pytest.raises(BudgetError, match="lowest average"):
        chat.ask(QUESTIONS[0], [picture(0)])
    with pytest.raises(InputError, match="empty one"):
        chat.ask("  ")
    assert not chat.history and "_foveate_run" not in vars(model)
