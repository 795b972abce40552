"""A conversation on one compressed cache: pictures and text in any turn, answers as they come.

With `turns="first"` a picture is compressed once, by the question it came with, and every later
turn goes on from the cache: only its new tokens are run. With `turns="each"` the conversation is
run anew at every question and the method chooses by it; pictures stay encoded. A method that does
not read the prompt loses nothing by the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.adapters import adapter_for
from foveate.attach import Encoded, Item, Report, Run, attach, encode
from foveate.compressor import Compressor, Stage
from foveate.errors import BudgetError, InputError, UnknownName
from foveate.prompting import model_inputs, transcript

TURNS = ("first", "each")
# What a model is passed beside its text, in every family: what pictures bring with them.
_TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"})


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer, and what it took.

    Attributes:
        text: the answer.
        report: what was measured while it was made; None where nothing was compressed in this
            turn, since it went on from the cache.
        items: the pictures that were compressed in this turn, with their mappings.
        prompt: tokens of the whole conversation up to the answer, pictures uncompressed.
        reused: how many of them were in the cache already.
        kv_bytes: bytes of keys and values after the answer.
        first_seconds: from the question to the first token. Text may come later: words are told
            when they are whole.
        seconds: to the end of the answer.
    """

    text: str
    report: Report | None
    items: tuple[Item, ...]
    prompt: int
    reused: int
    kv_bytes: int
    first_seconds: float
    seconds: float

    def __str__(self) -> str:
        return self.text


class Chat:
    """A conversation with a model whose visual tokens are compressed.

        chat = foveate.Chat(model, processor, "visionzip", keep=64)
        print(chat.ask("what colour is the star ?", images=[picture]))
        print(chat.ask("where is it ?"))

    The compressor is on the model only while an answer is made.

    Args:
        model, processor: as loaded.
        method: a catalogued name or a compressor.
        keep, preset, positions, fields: as `foveate.attach` takes them.
        turns: ``"first"`` goes on from the compressed cache; ``"each"`` chooses anew by every
            question, at the price of running the whole conversation again.
        max_new_tokens: the longest answer.

    Attributes:
        history: the turns so far, as (question, pictures, reply).

    Raises:
        UnknownName: no such method, preset, field or way of turning.
        BudgetError: a budget is missing or out of range.
        StageNotAvailable: the method needs what this model cannot give.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        method: str | Compressor,
        *,
        keep: int | float | None = None,
        preset: str | None = None,
        positions: str | None = None,
        turns: str = "first",
        max_new_tokens: int = 256,
        **fields: Any,
    ) -> None:
        if turns not in TURNS:
            raise UnknownName("way of turning", turns, TURNS)
        if max_new_tokens < 1:
            raise BudgetError(f"max_new_tokens must be at least 1; got {max_new_tokens}.")
        self.model: Any = model
        self.processor, self.turns, self.max_new_tokens = processor, turns, max_new_tokens
        self.settings: dict[str, Any] = {
            "method": method,
            "keep": keep,
            "preset": preset,
            "positions": positions,
            **fields,
        }
        # What is wrong with the settings is said now, not at the first question.
        with self._attached() as run:
            self.method: Compressor = run.method
        self.adapter = adapter_for(model)
        self.history: list[tuple[str, tuple[Image.Image, ...], Reply]] = []
        self._cache: Any = None
        self._cached: Tensor | None = None  # (s,) the token ids that the cache stands for
        self._encoded: Encoded | None = None

    def _attached(self, **options: Any) -> Run:
        return attach(self.model, processor=self.processor, **self.settings, **options)

    def reset(self) -> None:
        """Forget the conversation."""
        self.history, self._cache, self._cached, self._encoded = [], None, None, None

    def ask(
        self, question: str, images: Sequence[Image.Image] | Image.Image = (), **options: Any
    ) -> Reply:
        """The answer to a question, with what it took.

        Args:
            question: the user's text.
            images: the pictures, or the picture, shown with it.
            options: further arguments of `model.generate`.

        Raises:
            InputError: the question is empty, or an option cannot go with a streamed answer.
        """
        for _ in self.stream(question, images, **options):
            pass
        return self.history[-1][2]

    def stream(
        self, question: str, images: Sequence[Image.Image] | Image.Image = (), **options: Any
    ) -> Generator[str, None, None]:
        """The same, piece by piece as it is generated; `history[-1]` then holds the reply.

        A stream that is left early leaves the conversation as it was before the question.
        """
        if not question.strip():
            raise InputError("A question is needed; an empty one arrived.")
        given = (images,) if isinstance(images, Image.Image) else images
        pictures = tuple(image.convert("RGB") for image in given)
        chosen = self._options(options)
        began = time.perf_counter()
        turn = _Turn(self, question, pictures)
        worker = _Generation(turn, chosen)
        pieces: list[str] = []
        with worker.running() as stream:
            for piece in stream:
                if piece:
                    pieces.append(piece)
                    yield piece
        ended = time.perf_counter()
        out, run = worker.result()
        self._cache = out.past_key_values
        # The last token that was drawn has not been run: the cache stands for all before it.
        self._cached = out.sequences[0, : self._cache.get_seq_length()].cpu()
        fresh = turn.compresses
        reply = Reply(
            text="".join(pieces).strip(),
            report=run.report() if fresh else None,
            items=tuple(run.items) if fresh else (),
            prompt=turn.length,
            reused=turn.reused,
            kv_bytes=kv_bytes(self._cache),
            first_seconds=(worker.first or ended) - began,
            seconds=ended - began,
        )
        self.history.append((question, pictures, reply))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        usual = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "num_beams": 1}
        chosen = {**usual, **options}
        if chosen["num_beams"] != 1:
            raise InputError(
                f"Answers come as they are made, which beams cannot; got num_beams="
                f"{chosen['num_beams']}.\nUse foveate.attach and model.generate for beam search."
            )
        return chosen


class _Turn:
    """What is run for one question: the whole conversation, or what the cache does not hold."""

    def __init__(self, chat: Chat, question: str, pictures: tuple[Image.Image, ...]) -> None:
        asked = [*((q, shown) for q, shown, _ in chat.history), (question, pictures)]
        answers = [reply.text for _, _, reply in chat.history]
        text = transcript(chat.processor, [(q, len(shown)) for q, shown in asked], answers)
        shown = [picture for _, each in asked for picture in each]
        self.chat, self.cache = chat, None
        self.encoded: Encoded | None = None
        self.inputs = model_inputs(chat.processor, chat.model, [text], [shown])
        ids = self.inputs["input_ids"]
        self.length, self.reused = ids.shape[1], 0
        adapter = chat.adapter
        goes_on = adapter.later_pictures if pictures else adapter.later_turns
        if chat.turns == "first" and goes_on and chat._cache is not None:
            self.reused = self._reuse(ids[0].cpu())
        self.compresses = bool(pictures if self.reused else shown)
        if self.reused:
            self.cache = chat._cache
            self._leave_out_old_pictures(question, pictures)
        elif chat.turns == "each" and shown:
            self._share(fresh=bool(pictures))

    def _reuse(self, ids: Tensor) -> int:
        """How many tokens the cache holds of this prompt; it is cut to them. 0: none to use."""
        chat, held = self.chat, self.chat._cached
        assert held is not None
        shared = min(len(held), len(ids) - 1)
        differ = (held[:shared] != ids[:shared]).nonzero()
        same = int(differ[0]) if len(differ) else shared
        # A template may write an answer otherwise than it was generated; what stands before the
        # last picture's own answer is compressed, and cannot be cut.
        whole = (reply.prompt for _, shown, reply in chat.history if shown)
        if same < max(whole, default=0):
            return 0
        surplus = chat._cache.get_seq_length() - same  # an answer left early runs over, too
        if surplus:
            chat._cache.crop(-surplus)
            chat._cached = held[:same]
        return same

    def _leave_out_old_pictures(self, question: str, pictures: tuple[Image.Image, ...]) -> None:
        """Pass the text of all turns, but the pictures of this one only: the others are cached."""
        for name in set(self.inputs) - _TEXT_INPUTS:
            del self.inputs[name]
        if pictures:
            chat = self.chat
            alone = transcript(chat.processor, [(question, len(pictures))])
            new = model_inputs(chat.processor, chat.model, [alone], [pictures])
            self.inputs |= {k: v for k, v in new.items() if k not in _TEXT_INPUTS}

    def _share(self, fresh: bool) -> None:
        """Pictures are encoded once, unless the method changes the tower by the question."""
        chat = self.chat
        if chat.method.parts[0].stage in (Stage.IMAGE, Stage.ENCODER):
            return
        if fresh or chat._encoded is None:
            chat._encoded = encode(chat.model, self.inputs, chat.method.reads)
        self.encoded = chat._encoded
        self.inputs = chat._encoded.with_text(self.inputs)

    def attached(self) -> Run:
        """The compressor, on the model."""
        return self.chat._attached(encoded=self.encoded)


class _Generation:
    """`model.generate` in a thread of its own, its text as it comes."""

    def __init__(self, turn: _Turn, options: dict[str, Any]) -> None:
        self.turn, self.options = turn, options
        self.out: Any = None
        self.run: Any = None
        self.error: BaseException | None = None
        self.first: float | None = None  # when the first token was drawn
        self.left = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[Iterator[str]]:
        """The text, piece by piece; leaving waits for the thread, early if it is left early."""
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        chat = self.turn.chat
        tokenizer = getattr(chat.processor, "tokenizer", chat.processor)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

        def left(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            self.first = self.first or time.perf_counter()
            return torch.full((len(ids),), self.left.is_set(), device=ids.device)

        def work() -> None:
            try:
                with torch.no_grad(), self.turn.attached() as self.run:
                    self.out = chat.model.generate(
                        **self.turn.inputs,
                        past_key_values=self.turn.cache,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([left]),
                        return_dict_in_generate=True,
                        **self.options,
                    )
            except BaseException as error:  # handed over to the thread that waits
                self.error = error
            finally:
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield iter(streamer)
        finally:
            self.left.set()
            thread.join()

    def result(self) -> tuple[Any, Any]:
        """What generate returned and the attached run; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self.out, self.run


def kv_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds."""
    held = 0
    for layer in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            tensor = getattr(layer, name, None)
            held += 0 if tensor is None else tensor.nbytes
    return held
