"""A conversation in the terminal: questions and commands in, answers as they come, one by one."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from PIL import Image
from rich.console import Console
from rich.markup import escape

from foveate import facts
from foveate.cli.attaching import chat_line, setting_of
from foveate.errors import InputError, UnknownName, told
from foveate.evaluation.settings import Setting
from foveate.pictures import load_image

HELP = """\
Type a question, or:
  /image PATH          show a picture (a file, or scene:N) with the next question
  /method NAME [KEEP]  begin again with another method, on the same pictures: /method tome 25%
  /reset [PATH ...]    begin again on the same pictures, or on these
  /help                this list
  /quit                end it; so does the end of the input
Ctrl-C stops an answer that is being given."""
PROMPT = "> "


class Terminal:
    """One conversation at a time, over one loaded model.

    Args:
        model, processor: as loaded.
        setting: what to begin with.
        pictures: (name, picture) of those that the first question is about.
        python: the lines that load the model, for the transcript in Python.
        out: where answers go.
        as_json: one JSON object a reply on standard output instead; all else goes to `out`.
        options: of `foveate.Chat`: turns, positions, max_new_tokens.

    Attributes:
        failed: how many questions or commands ended in an error.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        setting: Setting,
        pictures: Iterable[tuple[str, Image.Image]] = (),
        *,
        python: Iterable[str] = (),
        out: Console,
        as_json: bool = False,
        **options: Any,
    ) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.out, self.as_json, self.failed = out, as_json, 0
        self.python = [*python, "from foveate.pictures import load_image"]
        self._told = 0  # Python lines that a JSON reply has carried
        self.waiting = list(pictures)
        self.shown: list[tuple[str, Image.Image]] = []
        self._begin(setting)

    def run(self, lines: Iterable[str]) -> None:
        """Answer until there are no more lines, or one says /quit."""
        for line in lines:
            text = line.strip()
            if text == "/quit":
                break
            try:
                if text.startswith("/"):
                    self._command(text)
                elif text:
                    self._ask(text)
            except Exception as error:  # a conversation outlives a question that fails
                self._failure(type(error).__name__, told(error))

    # ------------------------------------------------------------------ questions

    def _ask(self, question: str) -> None:
        images = [picture for _, picture in self.waiting]
        try:
            with _interrupted_once(), contextlib.closing(self.chat.stream(question, images)) as it:
                self._show(it)
        except KeyboardInterrupt:
            self._failure("Interrupted", "The answer was stopped, and its question forgotten.")
            return
        reply = self.chat.history[-1][2]
        found = facts.last(self.chat)
        names = [name for name, _ in self.waiting]
        self.shown, self.waiting = self.shown + self.waiting, []
        loads = ", ".join(f"load_image({name!r})" for name in names)
        images_text = f", images=[{loads}]" if names else ""
        self.python.append(f"print(chat.ask({question!r}{images_text}))")
        if self.as_json:
            record = {
                "question": question,
                "images": names,
                "answer": reply.text,
                "method": self.setting.label,
                "keep": self.setting.budget,
                "turns": self.chat.turns,
                **found.to_dict(),
                "python": self.python[self._told :],
            }
            self._told = len(self.python)
            print(json.dumps(record), flush=True)
        else:
            self.out.print(f"[dim]{escape(str(found))}[/]")

    def _show(self, pieces: Iterator[str]) -> None:
        """Print an answer as it comes."""
        if self.as_json:
            for _ in pieces:
                pass
            return
        said = False
        with _waiting(self.out) as stop:
            for piece in pieces:
                stop()
                text = _printable(piece if said else piece.lstrip())
                said = said or bool(text)
                self.out.out(text, end="", highlight=False)
        self.out.print("" if said else "[dim](nothing)[/]")

    # ------------------------------------------------------------------ commands

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        commands: dict[str, Callable[[list[str]], None]] = {
            "/image": self._image,
            "/method": self._method,
            "/reset": self._reset,
            "/help": self._help,
        }
        if name not in commands:
            raise UnknownName("command", name, [*commands, "/quit"])
        commands[name](_words(rest))

    def _image(self, paths: list[str]) -> None:
        if not paths:
            raise InputError("/image needs a file, or scene:N.")
        found = [(path, load_image(path)) for path in paths]
        self.waiting += found
        self._say(f"{', '.join(paths)}: shown with the next question")

    def _method(self, words: list[str]) -> None:
        if not 1 <= len(words) <= 2:
            raise InputError("Expected /method NAME [KEEP], for example /method visionzip 64.")
        # A budget that is not repeated stays; a preset states its own.
        same = None if self.setting.keep is None or "@" in words[0] else self.setting.budget
        self._begin(setting_of(words[0], words[1] if len(words) == 2 else same, None))
        self._again()

    def _reset(self, paths: list[str]) -> None:
        found = [(path, load_image(path)) for path in paths]
        self.chat.reset()
        self.python.append("chat.reset()")
        if found:
            self.shown, self.waiting = [], found
        self._again()

    def _help(self, _: list[str]) -> None:
        self._say(HELP)

    # ------------------------------------------------------------------ the rest

    def _begin(self, setting: Setting) -> None:
        """A conversation with another setting; the old one stays if it cannot be had."""
        self.chat = setting.chat(self.model, self.processor, **self.options)
        self.setting = setting
        self.python.append(chat_line(setting, **self.options))

    def _again(self) -> None:
        """Show the pictures of the conversation that ended with the next question."""
        self.waiting, self.shown = self.shown + self.waiting, []
        names = ", ".join(name for name, _ in self.waiting)
        about = f", about {names}" if names else ""
        self._say(f"{self.setting.label}, keep {self.setting.budget}{about}")

    def _say(self, text: str) -> None:
        self.out.print(f"[dim]{escape(text)}[/]")

    def _failure(self, kind: str, message: str) -> None:
        self.failed += 1
        if self.as_json:
            print(json.dumps({"error": kind, "message": message}), flush=True)
        self.out.print(f"[bold red]{kind}[/]: {escape(message)}")


def typed(out: Console, echo: bool) -> Iterator[str]:
    """Lines from standard input; where nobody types them they are repeated if `echo` says so."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then has a history and can be edited)
        while True:
            try:
                yield input(PROMPT if echo else "")
            except EOFError:
                out.print()
                return
            except KeyboardInterrupt:
                out.print("\n[dim]/quit ends it[/]")
    with contextlib.suppress(AttributeError):
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for line in sys.stdin:
        if echo:
            out.print(f"[bold]{PROMPT}{escape(line.rstrip())}[/]")
        yield line


def _words(text: str) -> list[str]:
    """Arguments as a shell would take them apart, so that a path may hold spaces."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"Cannot read {text!r}: {str(error).lower()}.") from None


def _printable(text: str) -> str:
    """Without what could steer the terminal."""
    return "".join(each for each in text if each.isprintable() or each in "\n\t")


@contextlib.contextmanager
def _waiting(out: Console) -> Iterator[Callable[[], None]]:
    """A sign that something is going on, until it is stopped."""
    if not out.is_terminal:
        yield lambda: None
        return
    status = out.status("[dim]looking[/]", spinner="dots")
    status.start()
    try:
        yield status.stop
    finally:
        status.stop()


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """Ctrl-C is heard once: a second one must not leave the compressor on the model."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
