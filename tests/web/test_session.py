"""What stands behind the page: two conversations side by side, and the layers of what was kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.chat import Chat
from foveate.errors import BudgetError, InputError, UnknownName
from foveate.evaluation.settings import Setting
from foveate.web import session as module
from foveate.web import view
from foveate.web.session import Engine, Said, Session, Turn, choices, scenes
from tests.families import checkpoints

ASKED = ("what colour is the thing ?", "is the topmost thing red ?")
Make = Callable[..., Session]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = checkpoints.save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture
def make(folders: Callable[[str], Path]) -> Make:
    """A session about a picture, on a family's tiny model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def made(
        method: str = "divprune", keep: int | float = 5, family: str = "llava", **options: Any
    ) -> Session:
        model = AutoModelForImageTextToText.from_pretrained(folders(family), dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folders(family))
        given = {"max_new_tokens": 4, **options}
        engine = Engine(model.eval(), processor, name=family, options=given)
        session = Session(engine, Setting(method, keep))
        session.show(picture())
        return session

    return made


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(session: Session, question: str) -> Turn:
    """A turn, once both have answered."""
    turn = [*session.ask(question)][-1]
    assert turn is session.log[-1]
    return turn


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_both_models_answer_turn_after_turn(make: Make, family: str) -> None:
    session = make(family=family)
    alone = Chat(
        session.engine.model, session.engine.processor, "uniform", keep=1.0, max_new_tokens=4
    )
    for number, question in enumerate(ASKED):
        turn = asked(session, question)
        full = alone.ask(question, [] if number else [picture()])
        assert turn.full is not None and turn.full.text == full.text
        assert turn.short.text == session.short.history[-1][2].text
        short, whole = turn.short.facts, turn.full.facts
        assert short is not None and whole is not None
        assert short.entering == 5 < (short.visual or 0)
        assert whole.entering == whole.average == whole.visual == short.visual
        assert short.kv_bytes < whole.kv_bytes == full.kv_bytes
        assert (short.reused > 0) == (whole.reused > 0) == bool(number)
        assert whole.first_seconds > 0
    assert len(session.log) == 2


def test_answers_grow(make: Make) -> None:
    session = make(max_new_tokens=8)
    short, full = [], []
    for turn in session.ask(ASKED[0]):
        short.append(turn.short.text)
        full.append("" if turn.full is None else turn.full.text)
    assert len(set(short)) > 2 and len(set(full)) > 2
    assert all(not text for text in full[: short.index(short[-1])])  # one after the other


def test_each_turn_may_choose_anew(make: Make) -> None:
    session = make("mmtok", 3, turns="each")
    kept = []
    for question in (*ASKED, "is it blue ?"):
        turn = asked(session, question)
        assert turn.short.facts is not None and turn.short.facts.fresh
        (item,) = session.items
        kept.append(tuple(item.mapping.anchors.tolist()))
    assert len(set(kept)) > 1
    assert turn.full is not None and turn.full.facts is not None and turn.full.facts.reused > 0


def test_another_setting_begins_again_on_the_same_picture(make: Make) -> None:
    session = make()
    asked(session, ASKED[0])
    session.choose("divprune", "5", "first")  # nothing has changed: the conversation goes on
    assert len(session.log) == 1
    session.choose("tome", "40%", "first")
    assert not session.log and session.items == ()
    turn = asked(session, ASKED[0])
    assert turn.short.facts is not None and turn.short.facts.entering == 10
    session.choose("tome", "40%", "each")
    assert not session.log and session.turns == "each"


def test_another_picture_begins_again(make: Make) -> None:
    session = make()
    first = asked(session, ASKED[0])
    session.show(picture(1))
    assert not session.log
    second = asked(session, ASKED[0])
    assert first.short.facts is not None and second.short.facts is not None
    assert second.short.facts.prompt == first.short.facts.prompt
    session.reset()
    assert not session.log and session.picture is not None


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        (("vizionzip", "5", "first"), UnknownName),
        (("visionzip", "many", "first"), BudgetError),
        (("visionzip", "0", "first"), BudgetError),
        (("visionzip", "", "first"), BudgetError),
        (("visionzip", "5", "all"), UnknownName),
        (("visionzip:width", "5", "first"), InputError),
    ],
)
def test_a_wrong_choice_changes_nothing(
    make: Make, choice: tuple[str, str, str], error: type[Exception]
) -> None:
    session = make()
    asked(session, ASKED[0])
    with pytest.raises(error) as caught:
        session.choose(*choice)
    assert len(str(caught.value).splitlines()) <= 4
    assert len(session.log) == 1 and session.setting.method == "divprune"
    assert asked(session, ASKED[1]).short.facts.reused > 0  # type: ignore[union-attr]


def test_a_preset_needs_no_budget(make: Make) -> None:
    session = make()
    session.choose("visionzip@authors-64", "5", "first")
    assert session.setting.preset == "authors-64" and session.setting.keep is None
    session.choose("vtw:layer=2", "", "first")  # nor does a method whose fields say it all
    assert asked(session, ASKED[0]).short.facts.average == 12.5  # type: ignore[union-attr]


def test_a_question_that_is_refused_is_forgotten(make: Make) -> None:
    session = make("fastv", 1)
    with pytest.raises(BudgetError, match="lowest average"):
        asked(session, ASKED[0])
    for question, message in (("  ", "empty one"), ("x" * 5000, "too long")):
        with pytest.raises(InputError, match=message):
            asked(session, question)
    session.show(None)
    with pytest.raises(InputError, match="Choose or upload a picture"):
        asked(session, ASKED[0])
    assert not session.log and session.overlay(0) is None and session.kept(0) is None


def test_an_answer_that_is_left_early_is_forgotten(make: Make) -> None:
    session = make(max_new_tokens=100)
    stream = session.ask(ASKED[0])
    for turn in stream:
        if turn.short.text:
            break
    stream.close()
    assert not session.log and not session.short.history
    assert "_foveate_run" not in vars(session.engine.model)
    session.short.max_new_tokens = 3
    stream = session.ask(ASKED[0])
    for turn in stream:
        if turn.full is not None and turn.full.text:
            break
    stream.close()
    assert [turn.full.error for turn in session.log if turn.full] == ["stopped"]
    assert session.short.history and not session.full.history


def test_an_answer_that_is_stopped_is_forgotten(make: Make) -> None:
    session = make(max_new_tokens=100)
    for turn in session.ask(ASKED[0]):
        if turn.short.text:
            session.stop()
    assert not session.log and not session.short.history
    session.short.max_new_tokens = 3
    for turn in session.ask(ASKED[0]):
        if turn.full is not None and turn.full.text:
            session.stop()
    assert [turn.full.error for turn in session.log if turn.full] == ["stopped"]
    session.full.max_new_tokens = 3
    turn = asked(session, ASKED[1])  # the full model missed a turn, and its picture
    assert turn.full is not None and turn.full.facts is not None
    assert len(session.short.history) == 2 and len(session.full.history) == 1


def test_a_visitor_who_leaves_takes_the_caches_along(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make(max_new_tokens=100)
    monkeypatch.setattr(module, "_PATIENCE", 5.0)
    stream = session.ask(ASKED[0])
    next(stream)
    gone = threading.Thread(target=session.leave)
    gone.start()
    for _ in stream:
        pass
    gone.join()
    assert not session.log and not session.short.history
    assert session.short._cache is None and session.full._cache is None


def test_the_full_models_failure_leaves_the_other_answer(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(session.full, "stream", fail)
    with pytest.raises(RuntimeError):
        session.full.stream()
    turn = asked(session, ASKED[0])
    assert turn.short.facts is not None
    assert turn.full is not None and "RuntimeError: no kernel" in turn.full.error


def test_visitors_wait_for_each_other(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make()
    other = Session(session.engine, Setting("tome", 5))
    other.show(picture())
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    stream = session.ask(ASKED[0])
    next(stream)
    with pytest.raises(InputError, match="busy"):
        asked(other, ASKED[0])
    assert not other.log
    assert [*stream]
    assert asked(other, ASKED[0]).short.text == other.short.history[-1][2].text


# ---------------------------------------------------------------------- what was kept


def test_the_overlay_follows_the_layers(make: Make) -> None:
    session = make("pyramiddrop", 0.5)
    before = session.overlay(0)
    asked(session, ASKED[0])
    found = [session.kept(layer) for layer in range(session.engine.layers)]
    counts = [m for _, m in filter(None, found)]
    assert counts[0] == 25 and counts[-1] < 25 and counts == sorted(counts, reverse=True)
    pictures = [session.overlay(layer) for layer in (0, session.engine.layers - 1)]
    assert before is not None and pictures[0] is not None and pictures[1] is not None
    assert pictures[0].size == pictures[1].size
    assert pictures[0].tobytes() != pictures[1].tobytes()
    assert f"Layer 3: {counts[-1]} of 25 tokens" in view.caption(session, 3)
    item = session.items[0]
    assert item.at(99).anchors.tolist() == item.mapping.anchors.tolist()
    assert item.at(0).is_identity


def test_methods_before_the_decoder_are_the_same_in_every_layer(make: Make) -> None:
    session = make("visionzip", 6)
    asked(session, ASKED[0])
    (item,) = session.items
    for layer in range(session.engine.layers):
        assert session.kept(layer) == (25, 6)
        assert item.at(layer).owner().tolist() == item.mapping.owner().tolist()


def test_a_chain_of_methods_is_composed(make: Make) -> None:
    session = make("uniform", 10)
    asked(session, ASKED[0])
    model, processor = session.engine.model, session.engine.processor
    chain = foveate.chain(("uniform", 10), ("vtw", 5))
    chat = Chat(model, processor, chain, max_new_tokens=2)
    (item,) = chat.ask(ASKED[0], [picture()]).items
    counts = [item.at(layer).m for layer in range(4)]
    assert counts[0] == 10 and counts[-1] == item.mapping.m == 0
    assert item.at(0).anchors.tolist() == session.items[0].mapping.anchors.tolist()


# ---------------------------------------------------------------------- the page's HTML


def test_what_is_typed_or_said_is_no_html(make: Make) -> None:
    session = make()
    session.log.append(Turn("<script>x</script>", Said("<b>bold</b>"), Said(error="<i>")))
    text = view.log(session) + view.notice("<u>") + view.head("<model>", 4)
    for word in ("script", "b", "i", "u", "model"):
        assert f"<{word}>" not in text.replace("<b>foveate</b>", "")
        assert f"&lt;{word}&gt;" in text


def test_numbers_stand_beside_the_answers(make: Make) -> None:
    session = make()
    assert "Ask about the picture" in view.log(session)
    assert "after the first answer" in view.caption(session, 0)
    asked(session, ASKED[0])
    text = view.log(session)
    assert text.count("5 of 25") == 2  # the one contains the other
    assert ">25 of 25<" in text and ">5 of 25<" in text
    assert text.count("first token after") == text.count("cache afterwards") == 2
    assert "divprune, keep 5" in text and "full model" in text
    session.show(None)
    assert "Choose a picture" in view.log(session)
    assert view.notice("") == ""


def test_an_answer_that_comes_is_marked(make: Make) -> None:
    session = make()
    marks = []
    for _ in session.ask(ASKED[0]):
        marks.append(view.log(session).count("fv-coming"))
    assert marks[0] == marks[-2] == 1 and marks[-1] == 0


# ---------------------------------------------------------------------- the engine


def test_the_engine_offers_what_the_model_can_serve(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.catalog, "names", lambda: ["divprune", "nonesuch", "tome"])
    session = make()
    assert session.engine.methods == ["divprune", "tome"]
    assert session.engine.layers == 4
    session.engine.warm_up(Setting("fastv", 1))  # a budget that this picture cannot meet
    assert not session.short.history


def test_scenes_bring_their_questions() -> None:
    (first, second) = scenes(range(2))
    assert first.name == "scene:0" and len(first.questions) == 3
    assert first.picture.size == second.picture.size == (128, 128)


def test_pictures_that_are_given_come_first() -> None:
    own = picture()
    found = choices([("own.png", own), ("scene:1", scenes([1])[0].picture)], 3)
    assert [each.name for each in found] == ["own.png", "scene:1", "scene:0", "scene:2"]
    assert found[0].picture is own and not found[0].questions
    assert len(found[1].questions) == 3
