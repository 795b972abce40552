"""`foveate chat`: questions from a pipe, answers as text or as JSON, and what goes wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from foveate import facts
from foveate.chat import Chat
from foveate.cli import main, terminal
from foveate.cli.loading import Source
from foveate.cli.terminal import Terminal, typed
from foveate.errors import told
from foveate.evaluation.settings import parse_method

Folder = Callable[[str], str]
Capture = pytest.CaptureFixture[str]
ASKED = ("what colour is the thing ?", "is the topmost thing red ?")


@pytest.fixture
def talk(
    checkpoint: Folder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """(status, standard output, standard error) of a conversation whose lines come from a pipe."""

    def run(*lines: str, arguments: tuple[str, ...] = (), family: str = "llava") -> Any:
        text = "".join(line + "\n" for line in lines)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        given = ["chat", *arguments, "--model", checkpoint(family), "--max-new-tokens", "4"]
        capsys.readouterr()  # what making a checkpoint has said
        status = main(given)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return run


def replies(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def executed(lines: list[str]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    return names


# ---------------------------------------------------------------------- answers


def test_text(talk: Any, capsys: Capture) -> None:
    status, out, err = talk(*ASKED, arguments=("scene:0", "-m", "divprune", "-k", "5"))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"> {ASKED[0]}"
    assert lines[2].startswith("25 -> 5 visual tokens; 0 of ")
    assert lines[3] == f"> {ASKED[1]}"
    assert lines[5].startswith("25 -> 5 visual tokens; ")
    assert "tokens reused; cache " in lines[5] and "; first token " in lines[5]
    answers = lines[1], lines[4]
    python = lines[lines.index("The same in Python:") + 1 :]
    chat = executed([line.strip() for line in python])["chat"]
    assert tuple(capsys.readouterr().out.splitlines()) == answers
    assert [question for question, *_ in chat.history] == list(ASKED)


def test_json(talk: Any, capsys: Capture) -> None:
    settings = ("scene:0", "-m", "divprune", "-k", "5", "--json")
    status, out, err = talk(*ASKED, "/method uniform 40%", ASKED[0], arguments=settings)
    assert status == 0
    found = replies(out)
    assert [each["question"] for each in found] == [*ASKED, ASKED[0]]
    assert [each["images"] for each in found] == [["scene:0"], [], ["scene:0"]]
    assert [(each["method"], each["keep"]) for each in found] == [
        ("divprune", "5"), ("divprune", "5"), ("uniform", "40%"),
    ]  # fmt: skip
    assert [each["entering"] for each in found] == [5, 5, 10]
    assert [each["fresh"] for each in found] == [True, False, True]
    first, second, other = found
    assert first["reused"] == other["reused"] == 0 < first["prompt"] <= second["reused"]
    assert first["kv_bytes"] < second["kv_bytes"]
    assert "uniform, keep 40%" in err  # what is no reply is not on standard output
    executed([line for each in found for line in each["python"]])
    assert capsys.readouterr().out.splitlines() == [each["answer"] for each in found]


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_every_turn_may_choose_anew(talk: Any, family: str) -> None:
    arguments = ("scene:0", "-m", "mmtok", "-k", "3", "--turns", "each", "--json")
    _, out, _ = talk(*ASKED, arguments=arguments, family=family)
    assert all(each["fresh"] and not each["reused"] for each in replies(out))


def test_tokens_that_go_between_layers_are_averaged(talk: Any) -> None:
    _, out, _ = talk(ASKED[0], arguments=("scene:0", "-m", "fastv:layer=2", "-k", "60%"))
    assert "25 -> 25 visual tokens, 15 averaged over 4 layers; " in out


def test_nothing_compressed(talk: Any) -> None:
    _, out, _ = talk(*ASKED, arguments=("scene:0", "-k", "100%"))
    assert out.count("all visual tokens; ") == 2


def test_a_quarter_is_kept_if_nothing_is_said(talk: Any) -> None:
    _, out, _ = talk(ASKED[0], arguments=("scene:0", "--json"))
    assert [(each["method"], each["keep"]) for each in replies(out)] == [("visionzip", "25%")]


# ---------------------------------------------------------------------- commands


def test_pictures(talk: Any, tmp_path: Path) -> None:
    from foveate.pictures import load_image

    path = tmp_path / "with a space.png"
    load_image("scene:1").save(path)
    status, out, _ = talk(
        f"/image '{path}'", ASKED[0], "/image scene:2 scene:3", ASKED[1], "/reset", ASKED[0],
        "/reset scene:4", ASKED[0], arguments=("-k", "5", "--json"),
    )  # fmt: skip
    assert status == 0
    every = [str(path), "scene:2", "scene:3"]
    shown = [each["images"] for each in replies(out)]
    assert shown == [[str(path)], every[1:], every, ["scene:4"]]
    assert [each["entering"] for each in replies(out)] == [5, 15, 15, 5]


def test_quit_and_help(talk: Any) -> None:
    status, out, _ = talk("/help", "", "   ", "/quit", ASKED[0], arguments=("scene:0", "-k", "5"))
    assert status == 0
    for command in ("/image", "/method", "/reset", "/help", "/quit", "Ctrl-C"):
        assert command in out
    assert "visual tokens" not in out and "Python" not in out


def test_another_method_keeps_the_budget_and_a_preset_states_its_own(talk: Any) -> None:
    lines = "/method tome", ASKED[0], "/method visionzip@authors-64", ASKED[0], "/method pool 9"
    _, out, _ = talk(*lines, ASKED[0], arguments=("scene:0", "-k", "6", "--json"), family="llava")
    tome, preset, pool = replies(out)
    assert (tome["method"], tome["keep"]) == ("tome", "6")
    assert "54+10 asks for more than the 25 tokens" in preset["message"]
    assert (pool["method"], pool["keep"]) == ("pool", "9")


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/metod tome", "Unknown command '/metod'. Did you mean '/method'?"),
        ("/method", "Expected /method NAME [KEEP]"),
        ("/method vizionzip", "Unknown method 'vizionzip'. Did you mean 'visionzip'?"),
        ("/method tome 0", "keep must be a count"),
        ("/method tome many", "A budget is a count like 64"),
        ("/image", "/image needs a file"),
        ("/image absent.png", "No image absent.png"),
        ("/image 'absent.png", "Cannot read"),
        ("/reset scene:x", "Scenes are numbered from 0"),
    ],
)
def test_a_wrong_command_is_told_and_changes_nothing(talk: Any, line: str, message: str) -> None:
    arguments = ("scene:0", "-k", "5", "--json")
    status, out, err = talk(ASKED[0], line, ASKED[1], arguments=arguments)
    first, error, second = replies(out)
    assert status == 1
    assert message in error["message"] and message in " ".join(err.split())
    assert len(error["message"].splitlines()) <= 4
    assert second["method"] == first["method"] == "visionzip"
    assert second["reused"] >= first["prompt"]


def test_a_question_without_a_picture(talk: Any) -> None:
    status, out, _ = talk(ASKED[0], "/image scene:0", ASKED[0], arguments=("-k", "5"))
    assert status == 0
    assert out.count("25 -> 5 visual tokens") == 1


def test_a_budget_that_cannot_be_reached(talk: Any) -> None:
    arguments = ("scene:0", "-m", "fastv", "-k", "1", "--json")
    status, out, _ = talk(ASKED[0], "/method fastv 60%", ASKED[0], arguments=arguments)
    error, reply = replies(out)
    assert status == 1
    assert error["error"] == "BudgetError" and "lowest average" in error["message"]
    assert reply["images"] == ["scene:0"]  # the picture was not lost with the question


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.png",), "No image absent.png"),
        (("scene:0", "-m", "tom", "-k", "4"), "Unknown method 'tom'"),
        (("scene:0", "-k", "4", "--turns", "all"), "Unknown way of turning 'all'"),
        (("scene:0", "-k", "4", "--preset", "authors-64"), "states its own budget"),
    ],
)
def test_wrong_options_end_it(talk: Any, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = talk(ASKED[0], arguments=arguments)
    assert (status, out) == (1, "")
    assert message in " ".join(err.split())


def test_an_error_that_nobody_foresaw_is_told_in_two_lines() -> None:
    try:
        int("x" * 5 + "\n")
    except ValueError as error:
        text = told(error)
    assert text.splitlines()[1].startswith("ValueError: invalid literal")
    assert __file__ in text
    memory = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried ...")
    assert "no memory left" in told(memory)


# ---------------------------------------------------------------------- Ctrl-C and the keyboard


@pytest.fixture
def spoken(checkpoint: Folder) -> tuple[Terminal, io.StringIO]:
    """A conversation about scene 0, and what it prints."""
    from foveate.pictures import load_image

    out = io.StringIO()
    model, processor = Source(checkpoint("llava")).load()
    setting = dataclasses.replace(parse_method("divprune"), keep=5)
    pictures = [("scene:0", load_image("scene:0"))]
    console = Console(file=out, width=200)
    return Terminal(model, processor, setting, pictures, out=console, max_new_tokens=400), out


def test_ctrl_c_stops_the_answer_only(
    spoken: tuple[Terminal, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    talker, out = spoken
    stream = Chat.stream

    def interrupted(chat: Chat, *arguments: Any, **options: Any) -> Iterator[str]:
        for number, piece in enumerate(stream(chat, *arguments, **options)):
            yield piece
            if number == 2:
                # A second Ctrl-C, while the first is being dealt with, is not heard.
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Chat, "stream", interrupted)
        talker.run([ASKED[0]])
    assert "Interrupted: The answer was stopped" in out.getvalue()
    assert signal.getsignal(signal.SIGINT) is before
    assert not talker.chat.history and "_foveate_run" not in vars(talker.model)
    talker.chat.max_new_tokens = 3
    talker.run([ASKED[0]])
    assert facts.last(talker.chat).entering == 5  # the picture waited for the next question


def test_no_handler_is_set_outside_the_main_thread() -> None:
    seen = []

    def work() -> None:
        with terminal._interrupted_once():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_the_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the prompt does not end it; the end of the input does."""
    answers: list[Any] = ["one", KeyboardInterrupt, "two", EOFError]

    def given(prompt: str) -> str:
        assert prompt == "> "
        found = answers.pop(0)
        if isinstance(found, type):
            raise found
        return str(found)

    monkeypatch.setattr("builtins.input", given)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    out = io.StringIO()
    assert list(typed(Console(file=out), echo=True)) == ["one", "two"]
    assert "/quit ends it" in out.getvalue()


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    assert terminal._printable("a\x1b[2Jb\r\n\tc\x07é") == "a[2Jb\n\tcé"


def test_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.TextIOWrapper(io.BytesIO(b"caf\xe9 ?\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", raw)
    (line,) = typed(Console(file=io.StringIO()), echo=False)
    assert line == "caf\N{REPLACEMENT CHARACTER} ?\n"
