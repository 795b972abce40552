"""Dialogues about images or videos: the shipped scenes, or a JSONL file of one's own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.errors import InputError
from foveate.evaluation import videos
from foveate.evaluation.stored import Stored
from foveate.pictures import load_image
from foveate.reference.worlds import FIRST, SECOND

PLACEHOLDER = re.compile(r"\s*<(image|video)>\s*")  # of a picture, in many models' prompts
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = re.compile(r"[^\w\s%.:/-]|(?<!\d)[.:](?!\d)|[.:/-](?=\s|$)")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One question, the answers that count as right, and what kind of question it is."""

    question: str
    answers: tuple[str, ...]
    kind: str = ""

    def right(self, said: str) -> bool:
        """Whether the model's words are one of the answers, both normalised."""
        return normalised(said) in {normalised(answer) for answer in self.answers}


Picture = Path | Image.Image | Stored


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """Questions in their order about some images, or about one video.

    Attributes:
        name: unique in its data.
        pictures: paths of images; of a video's frames with `is_video`; images themselves, or where
            they are stored.
        turns: the questions.
        is_video: whether the pictures are the frames of one video.
        scene: (seed, split) of the shipped scene that it is about; None for all other pictures.
    """

    name: str
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    is_video: bool = False
    scene: tuple[int, str] | None = None

    def load(self) -> list[Image.Image]:
        """The pictures in RGB.

        Raises:
            InputError: one cannot be read.
        """
        return [_loaded(one) for one in self.pictures]


def _loaded(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    return picture.load() if isinstance(picture, Stored) else load_image(picture)


def normalised(text: str) -> str:
    """Lower case, no articles, no punctuation (kept inside numbers), single spaces.

    An article that is all there is stays: "A" may be the choice that was asked for.
    """
    words = _PUNCTUATION.sub(" ", text.lower()).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def from_reference(count: int, split: str = "test", world: str = FIRST) -> list[Dialogue]:
    """The shipped scenes, three questions each.

    Args:
        count: how many.
        split: "train", "validation" or "test".
        world: "first", or "second" for another distribution of pictures.
    """
    from foveate import reference

    return [
        Dialogue(
            name=_named(split, world, sample.seed),
            pictures=(sample.image,),
            turns=_asked(sample.turns),
            scene=(sample.seed, split) if world == FIRST else None,
        )
        for sample in reference.samples(split, count, world=world)
    ]


def from_tiles(
    count: int,
    split: str = "test",
    world: str = FIRST,
    canvas: tuple[int, int] | None = None,
) -> list[Dialogue]:
    """The larger scenes that a model of tiles takes, three questions each.

    Args:
        count, split, world: as `from_reference` takes them.
        canvas: width and height of all of them; by their seeds, of several sizes, if None.
    """
    from foveate import reference

    return [
        Dialogue(_named(f"{split}-tiles", world, each.seed), (each.image,), _asked(each.turns))
        for each in reference.tiled_samples(split, count, world=world, canvas=canvas)
    ]


def from_clips(
    count: int, split: str = "test", world: str = FIRST, frames: int = 16
) -> list[Dialogue]:
    """The clips that a model of tiles takes, three questions each.

    Args:
        count, split, world: as `from_reference` takes them.
        frames: of every clip.
    """
    from foveate import reference

    return [
        Dialogue(
            _named(f"{split}-clip", world, each.seed),
            tuple(each.frames),
            _asked(each.turns),
            is_video=True,
        )
        for each in reference.clip_samples(split, count, world=world, frames=frames)
    ]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Dialogues that the package draws itself.

    Attributes:
        make: what draws them.
        world: whose pictures they are.
    """

    make: Callable[..., list[Dialogue]]
    world: str = FIRST

    def __call__(self, count: int, split: str) -> list[Dialogue]:
        """So many of a split."""
        return self.make(count, split, world=self.world)

    def python(self, count: int, split: str) -> str:
        """The same as code."""
        world = "" if self.world == FIRST else f", world={self.world!r}"
        return f"{self.make.__name__}({count}, {split!r}{world})"


_MAKE: dict[str, Callable[..., list[Dialogue]]] = {
    "scenes": from_reference,
    "tiles": from_tiles,
    "clips": from_clips,
}
# By the name that commands take.
DRAWN = {name: Drawn(make) for name, make in _MAKE.items()} | {
    f"{SECOND}-{name}": Drawn(make, SECOND) for name, make in _MAKE.items()
}


def _named(split: str, world: str, seed: int) -> str:
    return f"{split}-{seed}" if world == FIRST else f"{split}-{world}-{seed}"


def _asked(turns: Sequence[tuple[str, str, str]]) -> tuple[Turn, ...]:
    return tuple(Turn(text, (answer,), kind) for text, answer, kind in turns)


def from_jsonl(path: str | Path, *, answered: bool = True) -> list[Dialogue]:
    """One dialogue a line, all lines checked before anything runs.

        {"image": "a.jpg", "turns": [{"question": "What is it?", "answer": "a dog"}]}

    `image` is a path or a list of paths, relative to the file. Instead, `video` is a video's path,
    of which 8 frames are taken at even distances, or as many as `frames` says; `frames` without it
    is a list of the frames' own paths. A turn has `answer` or a list `answers`, and may have a
    `kind`. `id` may name the dialogue; the line's number does otherwise.

    Args:
        path: the file.
        answered: whether every turn must have an answer.

    Raises:
        InputError: the file, a line of it or a picture that it names is not there or malformed.
        MissingDependency: a video without PyAV.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"No data file {path}.\nExpected JSON lines; docs/compare.md has the form."
        )
    found: list[Dialogue] = []
    try:
        # Not splitlines(): JSON strings may hold other line ends than "\n" as they are.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text ({error.reason}).") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{file}:{number}"
            found.append(_dialogue(line, where, file.parent, str(number), answered))
    if not found:
        raise InputError(f"{file} holds no dialogue.\nExpected one JSON object a line.")
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{file} uses the id {double!r} twice.\nGive each line an id of its own.")
    return found


def _dialogue(line: str, where: str, folder: Path, name: str, answered: bool) -> Dialogue:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is no JSON: {error.msg} at column {error.colno}.") from error
    if not isinstance(record, dict) or "turns" not in record:
        raise InputError(f'{where} needs "image" (or "video", or "frames") and "turns".')
    key = next((each for each in ("video", "frames") if each in record), "image")
    paths = [record.get(key)] if isinstance(record.get(key), str) else record.get(key)
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) for p in paths):
        raise InputError(f'{where}: "{key}" must be a path or a list of paths; got {paths!r}.')
    pictures: tuple[Picture, ...] = tuple(folder / p for p in paths)
    for file in (folder / each for each in paths):
        if not file.is_file():
            raise InputError(f"{where}: no picture {file}.\nPaths are relative to the file.")
    if key == "video":
        pictures = _frames(record, folder, where)
    turns = record["turns"]
    if not isinstance(turns, list) or not turns:
        raise InputError(f'{where}: "turns" must be a list of questions with answers.')
    given = record.get("id")
    return Dialogue(
        name if given is None else str(given),
        pictures,
        tuple(turn(t, where, answered) for t in turns),
        key != "image",
    )


def _frames(record: dict[str, Any], folder: Path, where: str) -> tuple[Stored, ...]:
    """Those taken of a video file."""
    path, count = record["video"], record.get("frames", videos.FRAMES)
    if not isinstance(path, str) or type(count) is not int or count < 1:
        raise InputError(
            f'{where}: expected one path as "video", and "frames" as a number of them; got '
            f"{path!r:.60}, {count!r:.20}."
        )
    return videos.frames_of(folder / path, count)


def turn(record: Any, where: str, answered: bool = True) -> Turn:
    """A question with its "answer", or "answers": one of them or a list.

    Args:
        record: of a file.
        where: how errors call it.
        answered: whether it must have one.

    Raises:
        InputError: it is something else, or has the place of a picture in it.
    """
    asked = record.get("question") if isinstance(record, dict) else None
    answers = (record.get("answers") or record.get("answer")) if asked else None
    answers = [answers] if isinstance(answers, str) else answers
    right = isinstance(answers, list | tuple) and all(isinstance(a, str) and a for a in answers)
    missing = answers is None and not answered
    if not asked or not isinstance(asked, str) or not (missing or (answers and right)):
        raise InputError(
            f'{where}: expected "question" and "answer" (or "answers"); got {record!r:.80}.'
        )
    texts = (asked, *(answers or ()))
    if place := next(filter(None, map(PLACEHOLDER.search, texts)), None):
        raise InputError(
            f"{where}: a question or an answer holds {place.group().strip()}.\n"
            "Leave it out: the pictures stand before the first question by themselves."
        )
    return Turn(asked, texts[1:], str(record.get("kind") or ""))


def form(dialogue: Dialogue) -> int:
    """What all dialogues of a batch must have in common: their videos' frames; 0 of images."""
    return len(dialogue.pictures) if dialogue.is_video else 0


def parts(dialogues: Sequence[Dialogue], size: int) -> Iterator[slice]:
    """Dialogues in a row that make a batch, `size` of them at most."""
    start = 0
    for stop in range(1, len(dialogues) + 1):
        ends = stop == len(dialogues) or form(dialogues[stop]) != form(dialogues[start])
        if ends or stop - start == size:
            yield slice(start, stop)
            start = stop


def fingerprint(dialogues: Sequence[Dialogue]) -> str:
    """A hash of questions, answers and pictures (files by size and time of change)."""
    found = hashlib.sha256()
    for each in dialogues:
        found.update(f"{each.name} {each.turns} {each.is_video}".encode())
        for one in each.pictures:
            found.update(_identity(one))
    return found.hexdigest()[:16]


def pixels(picture: Image.Image) -> bytes:
    """What an image shows, size included: in RGB, since indices into a palette say nothing."""
    return f"RGB {picture.size}".encode() + picture.convert("RGB").tobytes()


def _identity(picture: Picture) -> bytes:
    if isinstance(picture, Image.Image):
        return pixels(picture)
    if isinstance(picture, Stored):
        return picture.digest.encode()
    state = picture.stat()
    return f"{picture.name} {state.st_size} {state.st_mtime_ns}".encode()


def others(dialogues: Sequence[Dialogue]) -> list[int]:
    """For each dialogue the next one that is about other pictures; empty if there is none."""
    shown = [hashlib.sha256(b"".join(map(_identity, each.pictures))).digest() for each in dialogues]
    if len(set(shown)) < 2:
        return []
    found = []
    for i, own in enumerate(shown):
        turned = range(i + 1, i + len(shown))
        found.append(next(j % len(shown) for j in turned if shown[j % len(shown)] != own))
    return found
