"""Examples to train on: dialogues about pictures, wherever they lie.

A source is named as `foveate train --data` takes it: "scenes", a JSONL file, "gqa:FOLDER" and
other layouts of published data (`corpora.py`), or "hf:NAME" for a Hugging Face dataset.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import random
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.errors import InputError, MissingDependency, UnknownName
from foveate.evaluation.data import (
    DRAWN,
    Dialogue,
    Picture,
    Turn,
    from_jsonl,
    pixels,
    turn,
)
from foveate.evaluation.stored import Stored
from foveate.evaluation.videos import frames_of
from foveate.pictures import decoded
from foveate.training import corpora

HUB = "hf"
_DRAWN_IF_NOT_SAID = 1000
_TRAIN = "train"  # the split of a dataset, where none is named


def examples(
    source: str, count: int | None = None, seed: int = 0, *, answered: bool = True
) -> list[Dialogue]:
    """The dialogues of a source.

    Args:
        source: a name of `evaluation.data.DRAWN` ("scenes", "second-clips" ..), "file.jsonl",
            "LAYOUT:FOLDER" or "hf:NAME[:SPLIT]".
        count: how many are drawn, in an order that depends on the seed alone; all if None. Of
            what is drawn the first ones of the train split.
        seed: of grouping questions into dialogues, and of the drawing.
        answered: whether every turn must have an answer, of "file.jsonl" and of "question" or
            "turns" in a dataset.

    Raises:
        InputError: a file is absent or malformed; the message names file and line or row.
        UnknownName: no such layout.
        MissingDependency: a Hugging Face dataset without the package `datasets`.
    """
    if source in DRAWN:
        return DRAWN[source](count or _DRAWN_IF_NOT_SAID, "train")
    kind, colon, place = source.partition(":")
    if source.endswith((".jsonl", ".json")) and not colon:
        found = from_jsonl(source, answered=answered)
    elif kind == HUB:
        name, _, split = place.partition(":")
        return from_dataset(_dataset(name, split), name, count, seed, answered=answered)
    elif colon and kind in corpora.LAYOUTS:
        found = corpora.read(kind, place, seed)
    else:
        kinds = [*DRAWN, "FILE.jsonl", f"{HUB}:NAME", *(f"{k}:PATH" for k in corpora.LAYOUTS)]
        raise UnknownName("source of examples", source, kinds)
    return [found[number] for number in _drawn(len(found), count, seed)]


def public(source: str) -> str:
    """How a record that others read calls a source: of a folder or file the last part alone."""
    layout, colon, place = source.partition(":")
    if source in DRAWN or (layout == HUB and not Path(place.partition(":")[0]).is_dir()):
        return source
    return f"{layout}:{Path(place).name}" if colon else Path(source).name


def _drawn(among: int, count: int | None, seed: int) -> Sequence[int]:
    """Which of so many are used."""
    if count is None or count >= among:
        return range(among)
    return random.Random(seed).sample(range(among), count)


def split(
    dialogues: Sequence[Dialogue], share: float, seed: int = 0
) -> tuple[list[Dialogue], list[Dialogue]]:
    """(training, validation), so that no picture is in both.

    Dialogues that share a picture stay together, also by way of others.

    Args:
        dialogues: all of them.
        share: of what is about the same pictures, that goes to validation; at least one if it is
            above 0.
        seed: which ones.

    Raises:
        InputError: all dialogues are about the same pictures.
    """
    if share <= 0:
        return list(dialogues), []
    together = _together(dialogues)
    keys = list(together)
    if len(keys) < 2:
        raise InputError(
            "All dialogues are about the same pictures, so none can be held out.\n"
            "Give more of them, or validate on none."
        )
    random.Random(seed).shuffle(keys)
    held = max(1, min(len(keys) - 1, round(share * len(keys))))
    out = set(keys[:held])
    train = [d for key, ds in together.items() if key not in out for d in ds]
    return train, [d for key in keys[:held] for d in together[key]]


def _together(dialogues: Sequence[Dialogue]) -> dict[int, list[Dialogue]]:
    """Dialogues that must not be parted, by the number of the first of them."""
    leads: dict[Any, int] = {}  # of a picture: a dialogue about it
    parents = list(range(len(dialogues)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    for number, each in enumerate(dialogues):
        for picture in each.pictures:
            other = root(leads.setdefault(_key(picture), number))
            first, second = sorted((other, root(number)))
            parents[second] = first
    found: dict[int, list[Dialogue]] = {}
    for number, each in enumerate(dialogues):
        found.setdefault(root(number), []).append(each)
    return found


def _key(picture: Picture) -> Any:
    return (
        picture if isinstance(picture, Path | Stored) else hashlib.sha256(pixels(picture)).digest()
    )


def single_turns(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Every question as a dialogue of its own, for methods that read the prompt."""
    return [
        dataclasses.replace(each, name=f"{each.name}.{number}", turns=(turn,))
        for each in dialogues
        for number, turn in enumerate(each.turns)
    ]


def from_dataset(
    dataset: Any,
    name: str = "dataset",
    count: int | None = None,
    seed: int = 0,
    *,
    answered: bool = True,
) -> list[Dialogue]:
    """Rows of a Hugging Face `datasets` dataset (or any sequence of dicts).

    A row has "image" (or a list "images"; a list "frames", or a path "video") with pictures
    or paths, and one of: "turns" as in JSONL; "conversations" as LLaVA writes them; "messages" as
    chat templates take them; "question" with "answer" or "answers".

    Pictures that a `datasets` dataset holds stay in its files until they are looked at.

    Args:
        dataset: its rows.
        name: how errors call it.
        count: how many rows are drawn; all, in their order, if None.
        seed: of the drawing.
        answered: whether every turn must have an answer.

    Raises:
        InputError: a row has another form; the message names it.
    """
    rows = _undecoded(dataset)
    return [_row(rows, number, name, answered) for number in _drawn(len(rows), count, seed)]


@dataclasses.dataclass(frozen=True)
class _Arrow:
    """Rows of a `datasets` dataset with pictures as the bytes that they are stored as."""

    dataset: Any  # formatted as Arrow tables

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.dataset[number].to_pylist()[0]
        return found

    def picture(self, number: int, column: str, index: int | None) -> bytes:
        """The bytes of a picture; of a list of them the one at `index`."""
        cell = self.dataset[number].column(column)[0].as_py()
        found: bytes = (cell if index is None else cell[index])["bytes"]
        return found


def _undecoded(dataset: Any) -> Any:
    """A `datasets` dataset without the decoding of its pictures; all else as it is."""
    form = getattr(dataset, "format", None)
    plain = isinstance(form, dict) and form.get("type", "") is None  # nobody's own transform
    return _Arrow(dataset.with_format("arrow")) if plain else dataset


def _dataset(name: str, wanted: str) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingDependency("datasets", f"The dataset {name!r}", "train") from error
    try:
        if not Path(name).is_dir():
            return datasets.load_dataset(name, split=wanted or _TRAIN)
        found = datasets.load_from_disk(name)
        if isinstance(found, dict):
            return found[wanted or _TRAIN]
        if wanted:
            raise InputError(
                f"{name} holds one dataset without splits; got the split {wanted!r}.\n"
                f"Leave it out: {HUB}:{name}."
            )
        return found
    # A dataset that is a script is a RuntimeError.
    except (OSError, ValueError, KeyError, RuntimeError, DatasetsError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"Cannot load {wanted or _TRAIN!r} of the dataset {name!r}: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error


def _row(rows: Any, number: int, name: str, answered: bool) -> Dialogue:
    row: Table[str, Any] = rows[number]
    where = f"{name}, row {number}"
    is_video = any(row.get(key) is not None for key in ("frames", "video"))
    keys = ("frames", "video") if is_video else ("images", "image")
    column = next((key for key in keys if row.get(key) is not None), None)
    shown: Any = None if column is None else row[column]
    several = isinstance(shown, list | tuple)
    pictures = list(shown) if several else [shown]
    if column is None or not pictures:
        raise InputError(
            f'{where} has no picture.\nExpected "image", "images", "frames" or "video".'
        )
    read = functools.partial(rows.picture, number, column) if isinstance(rows, _Arrow) else None
    found: tuple[Picture, ...]
    if column == "video" and not several:
        found = _video(shown, where)
    else:
        found = tuple(
            _picture(each, where, read and functools.partial(read, index if several else None))
            for index, each in enumerate(pictures)
        )
    # Ids of published sets are not always their own.
    name = f"{number}-{row['id']}" if row.get("id") is not None else str(number)
    return Dialogue(name, found, _turns(row, where, answered), is_video)


def _video(value: Any, where: str) -> tuple[Picture, ...]:
    """The frames of a file; `datasets` stores one as its bytes and its path."""
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise InputError(
            f"{where}: expected a video's path, or a list of frames; got {path!r:.80}."
        )
    return frames_of(Path(path))


def _picture(value: Any, where: str, read: Callable[[], bytes] | None) -> Picture:
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:  # as `datasets` stores one
        if value["bytes"] is not None and read is not None:
            digest = hashlib.sha256(value["bytes"]).hexdigest()
            return Stored(digest, functools.partial(_decoded, read, f"{where}: the picture"))
        value = value["path"]
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, str | Path):
        if Path(value).is_file():
            return Path(value)
        raise InputError(f"{where}: no picture {value}.")
    raise InputError(f"{where}: expected a picture or a path; got {type(value).__name__}.")


def _decoded(read: Callable[[], bytes], name: str) -> Image.Image:
    return decoded(io.BytesIO(read()), name)


def _turns(row: Table[str, Any], where: str, answered: bool) -> tuple[Turn, ...]:
    if row.get("conversations") is not None:
        return corpora.conversation_turns(row["conversations"], where)
    if row.get("messages") is not None:
        messages = row["messages"] if isinstance(row["messages"], list | tuple) else ()
        said = [
            {"from": str(each.get("role")), "value": _text(each.get("content"))}
            for each in messages
            if isinstance(each, dict)
        ]
        return corpora.conversation_turns(said, where)
    given: Any = row["turns"] if row.get("turns") is not None else [row]
    if not isinstance(given, Iterable) or isinstance(given, str | dict) or not given:
        raise InputError(f'{where}: "turns" must be a list of questions with answers.')
    return tuple(turn(each, where, answered) for each in given)


def _text(content: Any) -> str:
    """The text of a message whose content may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(p["text"] for p in parts if isinstance(p, dict) and p.get("text"))
