"""Examples to train on: dialogues about pictures, wherever they lie.

A source is named as `foveate train --data` takes it: "scenes", a JSONL file, "gqa:FOLDER" and
other layouts of published data (`corpora.py`), or "hf:NAME" for a Hugging Face dataset.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping as Table
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.errors import InputError, MissingDependency, UnknownName
from foveate.evaluation.data import Dialogue, Turn, from_jsonl, from_reference, turn
from foveate.training import corpora

SCENES, HUB = "scenes", "hf"
_SCENES_IF_NOT_SAID = 1000


def examples(source: str, count: int | None = None, seed: int = 0) -> list[Dialogue]:
    """The dialogues of a source.

    Args:
        source: "scenes", "file.jsonl", "LAYOUT:FOLDER" or "hf:NAME[:SPLIT]".
        count: how many are drawn, in an order that depends on the seed alone; all if None. Of the
            scenes the first ones of the train split.
        seed: of grouping questions into dialogues, and of the drawing.

    Raises:
        InputError: a file is absent or malformed; the message names file and line or row.
        UnknownName: no such layout.
        MissingDependency: a Hugging Face dataset without the package `datasets`.
    """
    if source == SCENES:
        return from_reference(count or _SCENES_IF_NOT_SAID, "train")
    kind, colon, place = source.partition(":")
    if source.endswith((".jsonl", ".json")) and not colon:
        found = from_jsonl(source)
    elif kind == HUB:
        name, _, split = place.partition(":")
        found = from_dataset(_dataset(name, split or "train"), name)
    elif colon and kind in corpora.LAYOUTS:
        found = corpora.read(kind, place, seed)
    else:
        kinds = [SCENES, "FILE.jsonl", f"{HUB}:NAME", *(f"{k}:PATH" for k in corpora.LAYOUTS)]
        raise UnknownName("source of examples", source, kinds)
    if count is None or count >= len(found):
        return found
    return random.Random(seed).sample(found, count)


def split(
    dialogues: Sequence[Dialogue], share: float, seed: int = 0
) -> tuple[list[Dialogue], list[Dialogue]]:
    """(training, validation), so that no picture is in both.

    Args:
        dialogues: all of them.
        share: of the pictures, that go to validation; at least one if it is above 0.
        seed: which ones.

    Raises:
        InputError: all dialogues are about the same pictures.
    """
    if share <= 0:
        return list(dialogues), []
    by_picture: dict[tuple[Any, ...], list[Dialogue]] = {}
    for each in dialogues:
        # Pictures in memory are told apart by being themselves: the reader that made them shares
        # one object between the dialogues about it.
        key = tuple(p if isinstance(p, Path) else id(p) for p in each.pictures)
        by_picture.setdefault(key, []).append(each)
    keys = list(by_picture)
    if len(keys) < 2:
        raise InputError(
            "All dialogues are about the same pictures, so none can be held out.\n"
            "Give more of them, or validate on none."
        )
    random.Random(seed).shuffle(keys)
    held = max(1, min(len(keys) - 1, round(share * len(keys))))
    out = set(keys[:held])
    train = [d for key, ds in by_picture.items() if key not in out for d in ds]
    return train, [d for key in keys[:held] for d in by_picture[key]]


def single_turns(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Every question as a dialogue of its own, for methods that read the prompt."""
    return [
        dataclasses.replace(each, name=f"{each.name}.{number}", turns=(turn,))
        for each in dialogues
        for number, turn in enumerate(each.turns)
    ]


def from_dataset(dataset: Any, name: str = "dataset") -> list[Dialogue]:
    """Rows of a Hugging Face `datasets` dataset (or any sequence of dicts).

    A row has "image" (or a list "images"; "frames" or "video" as a list for a video) with pictures
    or paths, and one of: "turns" as in JSONL; "conversations" as LLaVA writes them; "messages" as
    chat templates take them; "question" with "answer" or "answers".

    Args:
        dataset: its rows.
        name: how errors call it.

    Raises:
        InputError: a row has another form; the message names it.
    """
    return [_row(row, f"{name}, row {number}", str(number)) for number, row in enumerate(dataset)]


def _dataset(name: str, wanted: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("datasets", f"The dataset {name!r}", "train") from error
    try:
        if not Path(name).is_dir():
            return datasets.load_dataset(name, split=wanted)
        found = datasets.load_from_disk(name)
        return found[wanted] if isinstance(found, dict) else found
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"Cannot load {wanted!r} of the dataset {name!r}: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error


def _row(row: Table[str, Any], where: str, name: str) -> Dialogue:
    is_video = any(key in row for key in ("frames", "video"))
    keys = ("frames", "video") if is_video else ("images", "image")
    shown = next((row[key] for key in keys if row.get(key) is not None), None)
    pictures = list(shown) if isinstance(shown, list | tuple) else [shown]
    if shown is None or not pictures:
        raise InputError(f'{where} has no picture.\nExpected "image", "images" or "frames".')
    return Dialogue(
        str(row.get("id", name)),
        tuple(_picture(each, where) for each in pictures),
        _turns(row, where),
        is_video,
    )


def _picture(value: Any, where: str) -> Path | Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, str | Path):
        if Path(value).is_file():
            return Path(value)
        raise InputError(f"{where}: no picture {value}.")
    raise InputError(f"{where}: expected a picture or a path; got {type(value).__name__}.")


def _turns(row: Table[str, Any], where: str) -> tuple[Turn, ...]:
    if row.get("conversations") is not None:
        return corpora.conversation_turns(row["conversations"], where)
    if row.get("messages") is not None:
        said = [
            {"from": str(each.get("role")), "value": _text(each.get("content"))}
            for each in row["messages"]
        ]
        return corpora.conversation_turns(said, where)
    given = row["turns"] if row.get("turns") is not None else [row]
    return tuple(turn(each, where) for each in given)


def _text(content: Any) -> str:
    """The text of a message whose content may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(p["text"] for p in parts if isinstance(p, dict) and p.get("text"))
