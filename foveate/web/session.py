"""What stands behind the page: one visitor's conversation, compressed and full, side by side.

Nothing here knows the page. A session is asked, and says what to show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from PIL import Image

from foveate import catalog, drawing, facts, reference
from foveate.adapters import adapter_for
from foveate.attach import Item
from foveate.chat import TURNS, Chat
from foveate.errors import FoveateError, InputError, UnknownName, told
from foveate.evaluation.settings import Setting, parse_keep, parse_method
from foveate.facts import Facts
from foveate.pictures import SCENE

LONGEST_QUESTION = 4000  # characters
_PATIENCE = 60.0  # seconds that an answer waits for another visitor's
_WARM_UP = Image.new("RGB", (128, 128), (128, 128, 128))


@dataclasses.dataclass(frozen=True)
class Choice:
    """A picture to choose.

    Attributes:
        name: what it is called.
        picture: the picture.
        questions: some that the shipped model understands.
    """

    name: str
    picture: Image.Image
    questions: tuple[str, ...] = ()


def scenes(numbers: Iterable[int]) -> list[Choice]:
    """Drawn scenes of the shipped model's world, with their questions."""
    found = []
    for number in numbers:
        (sample,) = reference.samples("test", 1, start=number)
        questions = tuple(question for question, *_ in sample.turns)
        found.append(Choice(f"{SCENE}{number}", sample.image, questions))
    return found


def choices(pictures: Iterable[tuple[str, Image.Image]], drawn: int) -> list[Choice]:
    """The pictures that were given, and so many drawn scenes after them."""
    found = []
    for name, picture in pictures:
        if name.startswith(SCENE):
            found += scenes([int(name.removeprefix(SCENE))])
        else:
            found.append(Choice(name, picture))
    given = {choice.name for choice in found}
    return found + [each for each in scenes(range(drawn)) if each.name not in given]


@dataclasses.dataclass
class Said:
    """One of the two answers to a question.

    Attributes:
        text: what has come of it so far.
        facts: what it took, once it is complete.
        error: why there is none.
    """

    text: str = ""
    facts: Facts | None = None
    error: str = ""


@dataclasses.dataclass
class Turn:
    """A question with the compressed model's answer and the full one's."""

    question: str
    short: Said = dataclasses.field(default_factory=Said)
    full: Said | None = None


class Engine:
    """The model that all visitors share, one answer at a time.

    Args:
        model, processor: as loaded.
        name: of the model.
        options: of `foveate.Chat`, those that visitors do not choose; `turns` is where they begin.

    Attributes:
        layers: decoder layers.
        methods: names of the methods that this model can serve.
    """

    def __init__(
        self, model: Any, processor: Any, *, name: str = "", options: dict[str, Any] | None = None
    ) -> None:
        self.model, self.processor, self.name = model, processor, name
        self.options = dict(options or {})
        self.turns = str(self.options.pop("turns", TURNS[0]))
        self.layers = len(adapter_for(model).decoder_layers)
        self._lock = threading.Lock()
        self.methods = [name for name in catalog.names() if self._serves(name)]

    def _serves(self, method: str) -> bool:
        try:
            Setting(method, 0.5).attach(self.model, processor=self.processor).detach()
        except FoveateError:
            return False
        return True

    def chat(self, setting: Setting, turns: str) -> Chat:
        """A conversation that has not begun."""
        with self.alone():
            return setting.chat(self.model, self.processor, turns=turns, **self.options)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The model to oneself: only one compressor can be on it."""
        if not self._lock.acquire(timeout=_PATIENCE):
            raise InputError("The model is busy with another answer. Try again.")
        try:
            yield
        finally:
            self._lock.release()

    def warm_up(self, setting: Setting) -> None:
        """One short answer of each kind, so that the first visitor's times are like all others'."""
        for each in (setting, full_model()):
            with contextlib.suppress(FoveateError):  # a budget too small for this picture
                self.chat(each, TURNS[0]).ask("?", [_WARM_UP], max_new_tokens=2)


def full_model() -> Setting:
    """The setting that compresses nothing."""
    return Setting("uniform", 1.0)


class Session:
    """One visitor's conversation.

    Attributes:
        setting, turns: what was chosen.
        picture: what it is about; None if there is none yet.
        log: the turns.
    """

    def __init__(self, engine: Engine, setting: Setting) -> None:
        self.engine = engine
        self.picture: Image.Image | None = None
        self.log: list[Turn] = []
        self._stopped = threading.Event()
        self._begin(setting, engine.turns)

    def _begin(self, setting: Setting, turns: str) -> None:
        """New conversations; what was there stays if they cannot be had."""
        short = self.engine.chat(setting, turns)
        full = self.engine.chat(full_model(), TURNS[0])
        self.setting, self.turns = setting, turns
        self.short, self.full, self.log = short, full, []

    # ------------------------------------------------------------------ what a visitor does

    def show(self, picture: Image.Image | None) -> None:
        """Begin again with another picture."""
        self.picture = picture
        self.reset()

    def reset(self) -> None:
        """Begin again with the same picture."""
        self.short.reset()
        self.full.reset()
        self.log = []

    def choose(self, method: str, keep: str, turns: str) -> None:
        """Begin again with another setting, on the same picture; goes on if it is the same.

        Raises:
            UnknownName: no such method, preset, field or way of turning.
            BudgetError: the budget is no number or out of range, or the method states its own.
            StageNotAvailable: this model cannot serve the method.
        """
        if turns not in TURNS:
            raise UnknownName("way of turning", turns, TURNS)
        setting = parse_method(method.strip())
        if setting.preset is None and keep.strip():  # a preset states its own budget
            setting = dataclasses.replace(setting, keep=parse_keep(keep.strip()))
        if (setting, turns) != (self.setting, self.turns):
            self._begin(setting, turns)

    def stop(self) -> None:
        """End the answer that is coming; from another thread."""
        self._stopped.set()

    def leave(self) -> None:
        """The visitor has gone: end the answer that is coming, and let go of the caches."""
        self.stop()
        with contextlib.suppress(InputError), self.engine.alone():
            self.reset()

    def ask(self, question: str) -> Generator[Turn, None, None]:
        """Both answers, as they come; the turn again and again, each time with more of them.

        Raises:
            InputError: there is no picture or no question, or the model is busy.
            BudgetError: the method cannot reach the budget on this picture.
        """
        if self.picture is None:
            raise InputError("Choose or upload a picture first.")
        if len(question) > LONGEST_QUESTION:
            raise InputError(
                f"A question of {len(question):,} characters is too long; "
                f"{LONGEST_QUESTION:,} are the most."
            )
        self._stopped.clear()
        turn = Turn(question.strip())
        self.log.append(turn)
        try:
            yield from self._answer(self.short, turn, turn.short)
        finally:
            # Refused, or left early: the question is forgotten.
            if turn.short.facts is None and turn in self.log:
                self.log.remove(turn)
        if turn.short.facts is None:
            return
        turn.full = Said()
        try:
            yield from self._answer(self.full, turn, turn.full)
        except Exception as error:  # the other answer stays
            turn.full.error = told(error)
        finally:
            if turn.full.facts is None:
                turn.full.error = turn.full.error or "stopped"

    def _answer(self, chat: Chat, turn: Turn, said: Said) -> Iterator[Turn]:
        if self._stopped.is_set():
            return
        assert self.picture is not None
        pictures = [] if chat.history else [self.picture]
        stream = chat.stream(turn.question, pictures)
        with self.engine.alone(), contextlib.closing(stream):
            yield turn
            for piece in stream:
                if self._stopped.is_set():
                    return
                said.text += piece
                yield turn
            said.text, said.facts = chat.history[-1][2].text, facts.last(chat)
            if chat is self.full and turn.short.facts is not None:
                said.facts = as_full(said.facts, turn.short.facts.visual)
        yield turn

    # ------------------------------------------------------------------ what the page shows

    @property
    def items(self) -> Sequence[Item]:
        """The picture as the last choice of tokens left it."""
        return facts.pictures(self.short)

    def kept(self, layer: int) -> tuple[int, int] | None:
        """(slots, tokens of them that a decoder layer runs on); None before an answer."""
        if not self.items:
            return None
        item = self.items[0]
        return item.n, item.at(layer).m

    def overlay(self, layer: int) -> Image.Image | None:
        """The picture with the tokens that a decoder layer runs on; untouched before an answer."""
        if self.picture is None or not self.items:
            return None if self.picture is None else drawing.enlarged(self.picture)
        return drawing.bare(drawing.draw(self.picture, self.items[0], layer=layer, title=""))


def as_full(found: Facts, visual: int | None) -> Facts:
    """The full model's facts: all of the visual tokens that the other one began with."""
    average = None if visual is None else float(visual)
    return dataclasses.replace(found, visual=visual, entering=visual, average=average)
