"""Pairs that methods which predict relevance learn from: what they are told, and relevance."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveate import catalog, relevance
from foveate.attach import attach
from foveate.attach.prompt import Placed, placed
from foveate.compressor import VisualTokens
from foveate.evaluation import fingerprints
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue
from foveate.fingerprint import of_weights
from foveate.methods.relevance import Relevance
from foveate.predicting import RelevancePredictor
from foveate.relevance import Rule
from foveate.training.entries import Digests, Entries, Size, form_of, named, size
from foveate.training.files import nbytes, packed, read_meta, read_tensors
from foveate.training.processes import Process
from foveate.training.watching import Watching

FORMAT = "3"
LIMIT = 1500  # visual tokens of a sample, as in the paper
_STRETCH = 64  # dialogues after which it is seen whether there are enough pairs


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One picture of one question that the model answered right.

    Attributes:
        seen: what the method observed (`RelevancePredictor.observe`).
        relevance: (n,) R_v, of the answer.
        is_video: whether it is a video.
    """

    seen: Table[str, Tensor]
    relevance: Float[Tensor, " n"]
    is_video: bool = False

    @property
    def identity(self) -> str:
        """A hash of it."""
        found = hashlib.sha256()
        for values in (*(self.seen[name] for name in sorted(self.seen)), self.relevance):
            found.update(values.contiguous().float().numpy().tobytes())
        return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Kept:
    """The same on disk: what is asked of it is read each time.

    Attributes:
        file: of a dialogue; its name is a hash of all that it depends on.
        number: which of the dialogue's pairs it is.
        picture: which of its pictures it is about.
        is_video: whether that is a video.
    """

    file: Path
    number: int
    picture: int
    is_video: bool = False

    @property
    def seen(self) -> dict[str, Tensor]:
        """What the method observed.

        Raises:
            SavedFileError: the file is not there, or cut off.
        """
        begins = f"picture.{self.picture}.", f"pair.{self.number}."
        tensors, _ = read_tensors(self.file, begins)
        return {name.split(".", 2)[2]: x for name, x in tensors.items()}

    @property
    def relevance(self) -> Float[Tensor, " n"]:
        """(n,) R_v, of the answer.

        Raises:
            SavedFileError: the file is not there, or cut off.
        """
        (found,) = read_tensors(self.file, [f"relevance.{self.number}."])[0].values()
        return found

    @property
    def identity(self) -> str:
        """What tells it from others."""
        return f"{self.file.stem} {self.number}"


@dataclasses.dataclass(frozen=True)
class Tally:
    """What is stored of some dialogues.

    Attributes:
        questions: that were asked.
        right: of them answered right by the full model.
        pairs: to learn from: a picture and a question each; long prompts have none.
        nbytes: of all files.
    """

    questions: int
    right: int
    pairs: int
    nbytes: int

    def __str__(self) -> str:
        return (
            f"the model answers {self.right} of {self.questions} questions right; "
            f"{self.pairs} pairs are kept, {self.nbytes / 1e6:,.1f} MB"
        )


@torch.no_grad()
def _watched(
    method: RelevancePredictor,
    look: Callable[[VisualTokens], Any],
    model: Any,
    inputs: dict[str, Any],
    processor: Any,
) -> list[Any]:
    watching = Watching(method, look)
    with attach(model, watching, processor=processor, _force=True):
        model(**inputs, use_cache=False)
    return watching.noted


def observations(
    method: RelevancePredictor, model: Any, inputs: dict[str, Any], processor: Any = None
) -> list[dict[str, Tensor]]:
    """What a method is told of each picture, row by row, as if it were attached.

    Args:
        method: with or without parameters.
        model, inputs: the model and its inputs.
        processor: leaves the chat template's tokens out of the question.
    """

    def look(tokens: VisualTokens) -> dict[str, Tensor]:
        return {name: x.detach().cpu() for name, x in method.observe(tokens).items()}

    return _watched(method, look, model, inputs, processor)


def predictions(
    method: RelevancePredictor, model: Any, inputs: dict[str, Any], processor: Any = None
) -> list[Float[Tensor, " n"]]:
    """R~ of Eq. 2, what a method predicts of each picture, row by row; it sums to one.

    Args:
        method: with parameters, or with some that are shipped for the model.
        model, inputs, processor: as `observations` takes them.
    """
    fitted = method.fitted(model)
    assert isinstance(fitted, RelevancePredictor)

    def look(tokens: VisualTokens) -> Tensor:
        return fitted.score(tokens).softmax(-1).cpu()

    return _watched(fitted, look, model, inputs, processor)


class Pairs(Entries):
    """What a method is told, and relevance, of dialogues; on disk, each turn is a sample.

    Earlier turns stand in the conversation with the model's own answers. Only turns that it
    answers right count, and only prompts of at most `limit` visual tokens.

    Args:
        model, processor: as loaded, in evaluation mode.
        folder: where the files are; made if absent. Every file's name is a hash of all that it
            depends on, so a folder may serve several runs, and an interrupted one goes on.
        method: whose pairs they are; no field of it matters.
        rule: how relevance is computed.
        limit: visual tokens of a prompt.
        max_new_tokens: the longest answer.
        max_bytes: that all files of the data together may take, which no write passes; None for no
            limit.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        folder: str | Path,
        method: RelevancePredictor | None = None,
        *,
        rule: Rule | None = None,
        limit: int = LIMIT,
        max_new_tokens: int = 16,
        max_bytes: int | None = None,
    ) -> None:
        self.model, self.processor, self.folder = model, processor, Path(folder)
        self.max_bytes, self._digest = max_bytes, Digests()
        self.method = method or Relevance()
        self.rule, self.limit, self.max_new_tokens = rule or Rule(), limit, max_new_tokens
        self._identity = {
            "format": FORMAT,
            "method": catalog.name_of(self.method),
            "model": of_weights(model),
            "config": fingerprints.config(model),
            **fingerprints.generation(model),
            "dtype": str(model.dtype),
            "processor": fingerprints.processor(processor),
            "rule": dataclasses.asdict(self.rule),
            "limit": limit,
            "max_new_tokens": max_new_tokens,
        }

    def file(self, dialogue: Dialogue) -> Path:
        """Where the pairs of a dialogue are."""
        shown = [self._digest(each) for each in dialogue.pictures]
        turns = [[turn.question, turn.answers] for turn in dialogue.turns]
        name = named([self._identity, shown, dialogue.is_video, turns])
        return self.folder / f"{name}.safetensors"

    def files(self, dialogue: Dialogue) -> list[Path]:
        """The same."""
        return [self.file(dialogue)]

    def size(self, dialogues: Sequence[Dialogue]) -> Size:
        """What all dialogues take, foreseen from those that are stored."""
        files = {self.file(each): (form_of(each), len(each.turns)) for each in dialogues}
        return size(f"what is learned from {len(files)} dialogues", files)

    def gather(
        self,
        dialogues: Sequence[Dialogue],
        wanted: int | None,
        process: Process,
        *,
        batch_size: int = 8,
        tell: Callable[[Size], None] = lambda size: None,
        done: Callable[[int], None] = lambda count: None,
    ) -> Sequence[Dialogue]:
        """Fill with several processes, dialogue after dialogue until there are enough pairs.

        Args:
            dialogues: in the order in which they are asked.
            wanted: pairs; None for those of all dialogues.
            process: which one this is; each has its share.
            batch_size: dialogues run at a time in each.
            tell: given the size of all dialogues in the first process, before the most of them; of
                the first ones alone where it is not known how many there will be.
            done: given how many more dialogues are there.

        Returns:
            The dialogues that were asked, which do not depend on how many processes there are.
        """
        size = len(dialogues) if wanted is None else _STRETCH
        found = stop = 0
        while stop < len(dialogues) and (wanted is None or found < wanted):
            part = dialogues[stop : stop + size]
            self.fill(
                process.share(part),
                whole=dialogues[: stop + size],  # no picture is looked at before its turn
                processes=process.count,
                batch_size=batch_size,
                foresee=wanted is None,
                tell=tell if process.first and not stop else lambda size: None,
                done=done,
            )
            process.wait()
            found += self.tally(part).pairs
            stop += len(part)
        return dialogues[:stop]

    def tally(self, dialogues: Sequence[Dialogue]) -> Tally:
        """What is stored of these dialogues.

        Raises:
            SavedFileError: a file is not there, or cut off.
        """
        right = pairs = 0
        for each in dialogues:
            known = read_meta(self.file(each))
            said = zip(each.turns, json.loads(known["answers"]), strict=True)
            right += sum(turn.right(answer) for turn, answer in said)
            pairs += len(json.loads(known["pictures"]))
        asked = sum(len(each.turns) for each in dialogues)
        return Tally(asked, right, pairs, nbytes(map(self.file, dialogues)))

    def read(self, dialogues: Iterable[Dialogue]) -> list[Kept]:
        """What was stored of these dialogues; it stays on disk.

        Raises:
            SavedFileError: a file is not there, or cut off.
        """
        found = []
        for each in dialogues:
            pictures = json.loads(read_meta(self.file(each))["pictures"])
            found += [Kept(self.file(each), *one, each.is_video) for one in enumerate(pictures)]
        return found

    def compute(self, dialogues: Sequence[Dialogue]) -> dict[Path, bytes]:
        """The files of some dialogues."""
        pictures = [each.load() for each in dialogues]
        batch = Batch(
            self.model, self.processor, dialogues, pictures, frozenset(), self.max_new_tokens
        )
        said: list[list[str]] = [[] for _ in dialogues]
        found: list[list[tuple[int, Pair]]] = [[] for _ in dialogues]
        for turn in range(max(len(each.turns) for each in dialogues)):
            rows = [i for i, each in enumerate(dialogues) if len(each.turns) > turn]
            inputs = batch.inputs(rows, turn, [said[row] for row in rows])
            answers = relevance.own_answers(self.model, inputs, self.max_new_tokens)
            texts = self.processor.batch_decode(answers, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                said[row].append(text.strip())
            there = placed(self.model, inputs)
            counting = [
                i
                for i, row in enumerate(rows)
                if self._counts(dialogues[row], turn, said[row], there, i)
            ]
            if not counting:
                continue
            if len(counting) < len(rows):  # what does not count is not run: it may be too long
                rows, answers = [rows[i] for i in counting], [answers[i] for i in counting]
                inputs = batch.inputs(rows, turn, [said[row][:-1] for row in rows])
                there = placed(self.model, inputs)
            maps = relevance.explain(self.model, inputs, answers, rule=self.rule)
            seen = observations(self.method, self.model, inputs, self.processor)
            before: dict[int, int] = {}  # pictures of each row
            for p, told, r in zip(there, seen, maps, strict=True):
                row, picture = rows[p.row], before.get(p.row, 0)
                before[p.row] = picture + 1
                found[row].append((picture, Pair(told, r, p.is_video)))
        contents = {}
        for dialogue, pairs, texts in zip(dialogues, found, said, strict=True):
            tensors = {}
            for i, (picture, each) in enumerate(pairs):
                tensors[f"relevance.{i}."] = each.relevance
                for name, x in each.seen.items():
                    begin = f"picture.{picture}" if name in self.method.of_picture else f"pair.{i}"
                    tensors.setdefault(f"{begin}.{name}", x.contiguous())
            known = {
                "answers": json.dumps(texts),
                "pictures": json.dumps([picture for picture, _ in pairs]),
            }
            contents[self.file(dialogue)] = packed(tensors, known)
        return contents

    def _counts(
        self, dialogue: Dialogue, turn: int, said: Sequence[str], there: Sequence[Placed], row: int
    ) -> bool:
        """Whether a turn is answered right and its prompt not too long."""
        tokens = sum(p.layout.n for p in there if p.row == row)
        return dialogue.turns[turn].right(said[turn]) and 0 < tokens <= self.limit
