"""What the full model says, computed once and kept on disk.

Algorithm 1 of MetaCompress runs the vision tower, the full model and the compressed one in every
step. Nothing but the last changes while a compressor is trained. So the pictures' features, the
answers and the distribution of each of their tokens are stored, and an epoch costs one compressed
forward and backward pass for each dialogue.

Features are stored once for all dialogues about a picture, before or behind the projector, where
there are fewer numbers (`features.py`). Of a distribution the 256 likeliest tokens are kept and
the rest's mass: of a vocabulary of 32,000 tokens a sixtieth of whole logits, of larger ones less,
and what the divergence falls short of lies within the rest only (`losses.prediction`). A
vocabulary of up to 256 tokens is kept whole.

Every entry's name is a hash of all that it depends on: weights, configuration, dtype, processor,
pictures' bytes, questions, answers, settings. So a folder may serve several runs, and a run goes
on where one was interrupted; a file that is cut off is computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from foveate.adapters import adapter_for
from foveate.attach import encode
from foveate.compressor import Reads
from foveate.errors import InputError, StageNotAvailable
from foveate.evaluation import fingerprints
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue
from foveate.fingerprint import of_weights
from foveate.training.batches import Lesson, collate
from foveate.training.entries import Digests, Entries, Size, form_of, named, size
from foveate.training.features import Packed, pack
from foveate.training.files import is_whole, packed, read_meta, read_tensors
from foveate.training.losses import Distribution
from foveate.training.transcripts import Transcript, first_inputs, transcript

FORMAT = "1"
TOP = 256  # tokens of a distribution that are kept apart
GENERATED, GIVEN = "generated", "given"
ANSWERS = (GENERATED, GIVEN)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a dialogue's lesson is; calling it reads it.

    Attributes:
        answers: what was said.
        pictures: the features.
    """

    answers: Path
    pictures: Path

    def __call__(self) -> Lesson:
        """The lesson.

        Raises:
            SavedFileError: it is not there, or cut off.
        """
        tensors, _ = read_tensors(self.answers)
        types = {k.removeprefix("types."): v for k, v in tensors.items() if k.startswith("types.")}
        text = Transcript(tensors["ids"], tensors["places"], tensors["turns"], types)
        full = Distribution(tensors["log_probs"], tensors.get("tokens"), tensors.get("rest"))
        return Lesson(text, full, _features(self.pictures))


class Teacher(Entries):
    """The full model's side of a training, on disk.

    Args:
        model, processor: as loaded, in evaluation mode.
        folder: where the files are; made if absent.
        answers: ``"generated"`` by the full model, as published, or ``"given"`` by the data
            (teacher forcing on the first answer of each turn).
        max_new_tokens: the longest generated answer.
        top: tokens of each distribution that are kept apart.
        reads: what the methods to be trained look at on the vision side.
        rows: whether they look at the projector's input.
        limit: bytes that all files of the data together may take, which no write passes; None for
            no limit.

    Raises:
        StageNotAvailable: this transformers release takes no encoded features for the model.
        InputError: `answers` is neither.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        folder: str | Path,
        *,
        answers: str = GENERATED,
        max_new_tokens: int = 64,
        top: int = TOP,
        reads: frozenset[Reads] = frozenset(),
        rows: bool = False,
        limit: int | None = None,
    ) -> None:
        supports = getattr(model, "_supports_mm_encoder_outputs", None)
        if supports is None or not supports():
            raise StageNotAvailable(
                f"{type(model).__name__} takes no encoded pictures in this transformers release,\n"
                "so nothing can be kept between epochs. Use a later release."
            )
        if answers not in ANSWERS:
            raise InputError(f"answers must be {' or '.join(ANSWERS)}; got {answers!r}.")
        self.model, self.processor, self.folder = model, processor, Path(folder)
        self.answers, self.max_new_tokens, self.top = answers, max_new_tokens, top
        self.reads, self.rows, self.max_bytes = reads, rows, limit
        self._identity = {
            "format": FORMAT,
            "model": of_weights(model),
            "config": fingerprints.config(model),
            **fingerprints.generation(model),
            "dtype": str(model.dtype),
            "processor": fingerprints.processor(processor),
        }
        self._project = adapter_for(model).project
        self._digest = Digests()

    # ------------------------------------------------------------------ names

    def picture_file(self, dialogue: Dialogue) -> Path:
        """Where the features of a dialogue's pictures are."""
        shown = [self._digest(each) for each in dialogue.pictures]
        parts = [shown, dialogue.is_video, sorted(self.reads), self.rows]
        return self.folder / "pictures" / f"{self._hash(parts)}.safetensors"

    def answer_file(self, dialogue: Dialogue) -> Path:
        """Where what was said in a dialogue is."""
        given = self.answers == GIVEN
        turns = [[t.question, t.answers[0] if given else None] for t in dialogue.turns]
        length = None if given else self.max_new_tokens
        shown = [self._digest(each) for each in dialogue.pictures]
        parts = [shown, dialogue.is_video, turns, length, self.top]
        return self.folder / "answers" / f"{self._hash(parts)}.safetensors"

    def files(self, dialogue: Dialogue) -> list[Path]:
        """Both."""
        return [self.picture_file(dialogue), self.answer_file(dialogue)]

    def _hash(self, parts: Any) -> str:
        return named([self._identity, parts])

    # ------------------------------------------------------------------ filling

    def size(self, dialogues: Sequence[Dialogue]) -> Size:
        """What all dialogues take, foreseen from those that are stored."""
        pictures = {self.picture_file(d): (form_of(d)[:2], len(d.pictures)) for d in dialogues}
        answers = {self.answer_file(d): (form_of(d), len(d.turns)) for d in dialogues}
        what = (
            f"what the full model says about {len(answers)} dialogues and {len(pictures)} pictures"
        )
        return size(what, pictures, answers)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was)

    def compute(self, dialogues: Sequence[Dialogue]) -> dict[Path, bytes]:
        """The files of some dialogues; features that are stored are taken from there."""
        with self._evaluating():
            return self._compute(dialogues)

    def _compute(self, dialogues: Sequence[Dialogue]) -> dict[Path, bytes]:
        pictures = [each.load() for each in dialogues]
        said = self._said(dialogues, pictures)
        lessons, contents = [], dict[Path, bytes]()
        known: dict[Path, Packed] = {}
        for dialogue, shown, answers in zip(dialogues, pictures, said, strict=True):
            inputs = first_inputs(self.model, self.processor, dialogue, shown)
            file = self.picture_file(dialogue)
            if file not in known and is_whole(file):
                known[file] = _features(file)
            elif file not in known:
                shared = encode(self.model, inputs, self.reads)
                known[file] = pack(shared, rows=self.rows, project=self._project)
                facts = {"facts": json.dumps(known[file].facts)}
                contents[file] = packed(known[file].tensors, facts)
            text = transcript(self.model, self.processor, dialogue, answers, inputs)
            lessons.append(Lesson(text, None, known[file]))
        batch = collate(lessons).to(self.model.device)
        logits = batch.answer_logits(self.model)
        for dialogue, answers, lesson, own in zip(
            dialogues, said, lessons, batch.rows_of(logits), strict=True
        ):
            found = Distribution.of(own, self.top)
            tensors = {"ids": lesson.text.ids, "places": lesson.text.places}
            tensors |= {"turns": lesson.text.turns, "log_probs": found.log_probs}
            if found.tokens is not None and found.rest is not None:
                tensors |= {"tokens": found.tokens.int(), "rest": found.rest}
            tensors |= {f"types.{name}": value for name, value in lesson.text.types.items()}
            spoken = {"answers": json.dumps(list(answers))}
            contents[self.answer_file(dialogue)] = packed(tensors, spoken)
        return contents

    def _said(
        self, dialogues: Sequence[Dialogue], pictures: Sequence[Sequence[Image.Image]]
    ) -> list[list[str]]:
        if self.answers == GIVEN:
            return [[turn.answers[0] for turn in each.turns] for each in dialogues]
        found: list[list[str]] = [[] for _ in dialogues]
        for is_video in (False, True):  # a batch of prompts is of one kind
            rows = [i for i, each in enumerate(dialogues) if each.is_video == is_video]
            if rows:
                batch = Batch(
                    self.model,
                    self.processor,
                    [dialogues[i] for i in rows],
                    [pictures[i] for i in rows],
                    frozenset(),
                    self.max_new_tokens,
                )
                for i, record in zip(rows, batch.converse(None), strict=True):
                    found[i] = record["answers"]
        return found

    # ------------------------------------------------------------------ reading

    def lesson(self, dialogue: Dialogue) -> Lesson:
        """All that a training step needs of a dialogue.

        Raises:
            SavedFileError: it is not there, or cut off.
        """
        return Entry(self.answer_file(dialogue), self.picture_file(dialogue))()

    def entries(self, dialogues: Sequence[Dialogue]) -> list[Entry]:
        """The same of several, to be read later and without the model."""
        return [Entry(self.answer_file(each), self.picture_file(each)) for each in dialogues]

    def said(self, dialogue: Dialogue) -> list[str]:
        """The answers of a dialogue as text."""
        found: list[str] = json.loads(read_meta(self.answer_file(dialogue))["answers"])
        return found


def _features(file: Path) -> Packed:
    tensors, meta = read_tensors(file)
    return Packed(tensors, json.loads(meta["facts"]))
