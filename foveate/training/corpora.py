"""Readers for the files of published data sets, as they lie after unpacking.

| layout | files under the folder |
| --- | --- |
| `gqa` | `train_balanced_questions.json`, `images/ID.jpg` |
| `vqav2` | `v2_OpenEnded_mscoco_train2014_questions.json`, its annotations, `train2014/` |
| `llava-instruct` | `llava_instruct_150k.json`; pictures in `images/`, `train2017/`, or beside it |
| `llava-video` | `*.json` with conversations, the videos |
| `nextqa` | `train.csv`, `videos/ID`; or `map_vid_vidorID.json` and `NExTVideo/1164/3238737531` |
| `activitynetqa` | `train_q.json`, `train_a.json`, `videos/v_NAME` or `videos/NAME` |

A path to a questions file serves as well as the folder. Questions about one GQA or VQA v2 image
become dialogues of three turns (MT-GQA and MT-VQA-v2 of arXiv 2603.21701, section 6.1): in seeded
order, three by three; what is left over is left out. A video is a file (`ID.mp4` and the like) or a
folder of frames, which comes first; `FRAMES` of them are taken at even distances, in the order of
the numbers in their names. The folder of videos may have any name: `videos` is looked into first,
then the others beside the file. The file of a mixture such as `llava_v1_5_mix665k.json`, whose
entries name the pictures' folders (`gqa/images/1.jpg`), reads as `llava-instruct`.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from foveate.errors import InputError, UnknownName
from foveate.evaluation.data import PLACEHOLDER, Dialogue, Picture, Turn, turn
from foveate.evaluation.videos import FRAMES, SUFFIXES, frames_of

TURNS = 3  # of a dialogue that is built by grouping
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def read(layout: str, place: str | Path, seed: int = 0) -> list[Dialogue]:
    """The dialogues of a data set.

    Args:
        layout: one of `LAYOUTS`.
        place: its folder, or its file of questions.
        seed: of the grouping.

    Raises:
        UnknownName: no such layout.
        InputError: a file is absent, or an entry of it has another form.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    found = LAYOUTS[layout](Path(place), seed)
    if not found:
        raise InputError(f"{place} holds no dialogue of the layout {layout!r}.")
    return found


def conversation_turns(said: Any, where: str) -> tuple[Turn, ...]:
    """LLaVA's conversations: human and gpt (or user and assistant) in turn, pictures left out.

    Raises:
        InputError: they do not alternate, or one is empty.
    """
    parts = [each if isinstance(each, dict) else {} for each in _list(said, where)]
    texts, roles = [str(p.get("value") or "") for p in parts], [p.get("from") for p in parts]
    if roles and roles[0] == "system":
        texts, roles = texts[1:], roles[1:]
    asks = all(role in ("human", "user") for role in roles[::2])
    replies = all(role in ("gpt", "assistant") for role in roles[1::2])
    if not texts or len(texts) % 2 or not asks or not replies or not all(t.strip() for t in texts):
        raise InputError(
            f"{where}: expected conversations of human and gpt in turn; got {roles!r:.80}."
        )
    texts = [PLACEHOLDER.sub(" ", text).strip() for text in texts]
    if not all(texts[1::2]):
        raise InputError(f"{where}: an answer holds nothing but the place of a picture.")
    return tuple(Turn(q, (a,)) for q, a in zip(texts[::2], texts[1::2], strict=True))


def grouped(
    questions: Table[Path, Sequence[Turn]], seed: int, name: str = "", size: int = TURNS
) -> list[Dialogue]:
    """Dialogues of `size` turns from the questions about each picture.

    Args:
        questions: of each picture.
        seed: of their order.
        name: what the dialogues' names begin with.
        size: turns of each; pictures with fewer questions have none.
    """
    found = []
    for picture, turns in questions.items():
        order = list(turns)
        # Of the picture's own name, so that a further picture changes no other dialogue.
        random.Random(f"{seed} {picture.name}").shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            chosen = tuple(order[start : start + size])
            found.append(Dialogue(f"{name}{picture.stem}-{start // size}", (picture,), chosen))
    return found


# ---------------------------------------------------------------- the layouts


def _gqa(place: Path, seed: int) -> list[Dialogue]:
    file = _file(place, "train_balanced_questions.json")
    questions: dict[Path, list[Turn]] = {}
    entries = _json(file, dict)
    images = _folder(file.parent, ("images", "../images"))
    for key, entry in entries.items():
        where = f"{file}, question {key}"
        picture = images / f"{_field(entry, 'imageId', where)}.jpg"
        types = entry.get("types")
        kind = types.get("structural", "") if isinstance(types, dict) else ""
        questions.setdefault(_seen(picture, where, questions), []).append(
            turn({**entry, "kind": kind}, where)
        )
    return grouped(questions, seed)


def _vqav2(place: Path, seed: int) -> list[Dialogue]:
    file = _file(place, "v2_OpenEnded_mscoco_train2014_questions.json")
    split = next((s for s in ("train2014", "val2014") if s in file.name), None)
    if split is None:
        raise InputError(f"{file.name} names neither train2014 nor val2014, so which images?")
    noted = _file(file.parent, f"v2_mscoco_{split}_annotations.json")
    images = _folder(file.parent, (split, f"images/{split}", "images", f"../{split}"))
    answers: dict[Any, dict[str, Any]] = {}
    for number, entry in enumerate(_part(noted, "annotations")):
        answers[_field(entry, "question_id", f"{noted}, annotation {number}")] = entry
    questions: dict[Path, list[Turn]] = {}
    for number, entry in enumerate(_part(file, "questions")):
        where = f"{file}, question {number}"
        key = _field(entry, "question_id", where)
        if key not in answers:
            raise InputError(f"{where}: question_id {key} has no annotation in {noted.name}.")
        picture = images / f"COCO_{split}_{_field(entry, 'image_id', where):0>12}.jpg"
        right = answers[key]
        record = {
            "question": entry.get("question"),
            "answer": right.get("multiple_choice_answer"),
            "kind": right.get("answer_type"),
        }
        questions.setdefault(_seen(picture, where, questions), []).append(turn(record, where))
    return grouped(questions, seed)


def _llava_instruct(place: Path, seed: int) -> list[Dialogue]:
    file = _file(place, "llava_instruct_150k.json")
    folders = ["images", "train2017", "coco/train2017", "."]
    found, seen = [], dict[str, Path]()
    for number, entry in enumerate(_json(file, list)):
        where = f"{file}, entry {number}"
        if isinstance(entry, dict) and "image" not in entry:
            continue  # text only, as some mixtures hold
        name = str(_field(entry, "image", where))
        if name not in seen:
            root = file.parent
            base = next((each for each in folders if (root / each / name).is_file()), None)
            if base is None:
                raise InputError(
                    f"{where}: no picture {name}.\nLooked into {', '.join(folders)} of {root}."
                )
            seen[name] = root / base / name
            # Looked into first from now on: the next one is probably there, too.
            folders.remove(base)
            folders.insert(0, base)
        turns = conversation_turns(entry.get("conversations"), where)
        found.append(Dialogue(f"{number}-{entry.get('id', '')}", (seen[name],), turns))
    return found


def _llava_video(place: Path, seed: int) -> list[Dialogue]:
    files = sorted(place.glob("*.json")) if place.is_dir() else [_file(place, "")]
    if not files:
        raise InputError(f"{place} holds no .json file with conversations about videos.")
    found = []
    for file in files:
        places = _places(file.parent)
        for number, entry in enumerate(_json(file, list)):
            where = f"{file}, entry {number}"
            video = Path(str(_field(entry, "video", where)))
            frames = _frames(places, (video,), where)
            turns = conversation_turns(entry.get("conversations"), where)
            found.append(Dialogue(f"{file.stem}-{number}", frames, turns, is_video=True))
    return found


def _nextqa(place: Path, seed: int) -> list[Dialogue]:
    file = _file(place, "train.csv")
    nested, places = _nested(file.parent), _places(file.parent)
    found = []
    for line, row in _csv(file):
        where = f"{file}:{line}"
        video = _field(row, "video", where)
        names = [Path(nested[video])] if video in nested else []
        frames = _frames(places, (*names, Path(video)), where)
        answer, choices = _field(row, "answer", where), [row.get(f"a{i}") for i in range(5)]
        if any(choices):  # the multiple-choice files number the right one
            if not answer.isdigit() or int(answer) >= 5 or not choices[int(answer)]:
                raise InputError(f"{where}: the answer must be a number 0..4; got {answer!r}.")
            answer = str(choices[int(answer)])
        one = Turn(_asked(row, where), (answer.strip(),), str(row.get("type") or ""))
        found.append(Dialogue(f"{line}", frames, (one,), is_video=True))
    return found


def _nested(root: Path) -> dict[str, str]:
    """Where NExT-QA's videos are in its own folders, by their ids; empty without its table."""
    files = (root / base / "map_vid_vidorID.json" for base in (".", ".."))
    file = next((each for each in files if each.is_file()), None)
    return {} if file is None else {k: str(v) for k, v in _json(file, dict).items()}


def _activitynetqa(place: Path, seed: int) -> list[Dialogue]:
    file = _file(place, "train_q.json")
    noted = _file(file.parent, file.name.replace("_q.", "_a."))
    answers = {
        _field(entry, "question_id", f"{noted}, answer {number}"): entry
        for number, entry in enumerate(_json(noted, list))
    }
    found, places = [], _places(file.parent)
    for number, entry in enumerate(_json(file, list)):
        where = f"{file}, question {number}"
        key = _field(entry, "question_id", where)
        if key not in answers:
            raise InputError(f"{where}: question_id {key} has no answer in {noted.name}.")
        right = answers[key]
        record = {
            "question": _asked(entry, where),
            "answer": right.get("answer"),
            "kind": str(right.get("type", "")),
        }
        # As published, files are called v_NAME and entries NAME.
        name = _text(entry, "video_name", where)
        names = dict.fromkeys((name, f"v_{name}", name.removeprefix("v_")))
        frames = _frames(places, [Path(each) for each in names], where)
        found.append(Dialogue(str(key), frames, (turn(record, where),), is_video=True))
    return found


LAYOUTS: dict[str, Callable[[Path, int], list[Dialogue]]] = {
    "activitynetqa": _activitynetqa,
    "gqa": _gqa,
    "llava-instruct": _llava_instruct,
    "llava-video": _llava_video,
    "nextqa": _nextqa,
    "vqav2": _vqav2,
}


# ---------------------------------------------------------------- files


def _file(place: Path, name: str) -> Path:
    file = place / name if place.is_dir() else place
    if not file.is_file():
        raise InputError(f"No file {file}.\nExpected {name or 'a file'} as it is unpacked.")
    return file


def _folder(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{root} holds no folder of pictures.\nExpected one of {', '.join(names)}.")


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text ({error.reason}).") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}:{error.lineno} is no JSON: {error.msg} at column {error.colno}."
        ) from error
    if not isinstance(found, kind):
        raise InputError(f"{file} must hold a {kind.__name__}; it holds a {type(found).__name__}.")
    return found


def _part(file: Path, name: str) -> list[Any]:
    found = _json(file, dict).get(name)
    if not isinstance(found, list):
        raise InputError(f'{file} must hold a list "{name}".')
    return found


def _csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of each row."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened)
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is no CSV in UTF-8 ({error}).") from error


def _field(entry: Any, name: str, where: str) -> Any:
    found = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(found, str | int | float) or found == "":
        raise InputError(f'{where} has no text or number "{name}"; got {entry!r:.80}.')
    return found


def _text(entry: Any, name: str, where: str) -> str:
    found = _field(entry, name, where)
    if not isinstance(found, str):
        raise InputError(f'{where}: "{name}" must be a text; got {found!r}.')
    return found


def _asked(entry: Any, where: str) -> str:
    """The question, with the mark that some data sets leave out."""
    asked = _text(entry, "question", where).strip()
    return asked if asked.endswith("?") else f"{asked}?"


def _seen(picture: Path, where: str, known: Table[Path, Any]) -> Path:
    """The picture, looked for on disk once."""
    if picture not in known and not picture.is_file():
        raise InputError(f"{where}: no picture {picture}.")
    return picture


def _places(root: Path) -> list[Path]:
    """Folders that a data set's videos may lie in: those named so, then any other beside them."""
    named = [root / base for base in ("videos", ".", "../videos")]
    others = sorted(each for each in root.iterdir() if each.is_dir() and each.name != "videos")
    return [*named, *others]


def _frames(places: Sequence[Path], names: Sequence[Path], where: str) -> tuple[Picture, ...]:
    """`FRAMES` frames of a video at even distances, or all of a shorter folder of frames.

    Args:
        places: folders to look into.
        names: of the video in them; the first that is there counts.
        where: the entry, for errors.
    """
    known = [name.suffix.lower() in SUFFIXES for name in names]  # an id may have a dot in it
    bare = [n.with_suffix("") if k else n for n, k in zip(names, known, strict=True)]
    folder = next((found for n in bare for p in places if (found := p / n).is_dir()), None)
    if folder is None:
        files = [
            place / each.with_name(each.name + ending)
            for name, each, k in zip(names, bare, known, strict=True)
            for place in places
            for ending in ((name.suffix,) if k else SUFFIXES)
        ]
        if file := next((each for each in files if each.is_file()), None):
            return frames_of(file)
        raise InputError(
            f"{where}: no video {files[0]}.\n"
            f"Expected that file, or a folder of frames {places[0] / bare[0]}."
        )
    pictures = (each for each in folder.iterdir() if each.suffix.lower() in _PICTURES)
    frames = sorted(pictures, key=_natural)
    if not frames:
        raise InputError(f"{where}: {folder} holds no frames ({', '.join(_PICTURES)}).")
    if len(frames) <= FRAMES:
        return tuple(frames)
    # The middles of equal stretches.
    return tuple(frames[(2 * i + 1) * len(frames) // (2 * FRAMES)] for i in range(FRAMES))


def _natural(file: Path) -> tuple[list[str | int], str]:
    """Puts frame2 before frame10."""
    parts = re.split(r"(\d+)", file.name)  # texts and numbers in turn, so that likes are compared
    return [int(each) if each.isdecimal() else each for each in parts], file.name


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list of conversations; got {value!r:.60}.")
    return value
