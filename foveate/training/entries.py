"""What the full model says, entry by entry in a folder: names, sizes, and filling it.

The last bits of what a model computes depend on what is beside it in the batch. So the batches of
a call are written down before the first one runs, and the same call goes on with them after a
kill: every entry is what it would have been.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.evaluation.data import Dialogue, Picture, form, parts, pixels
from foveate.evaluation.stored import Stored
from foveate.training.files import Room, is_whole, nbytes, spread, write

_PROBE = 8  # dialogues that are computed before the size of all is told, or one of each form
_MOST = 32  # of these forms
_PLANS = "plans"


@dataclasses.dataclass(frozen=True)
class Size:
    """What entries take.

    Attributes:
        what: they are, of how many.
        nbytes: of all of them, foreseen from those of each form that are stored.
        stored: of it, what is on disk already.
    """

    what: str
    nbytes: int
    stored: int

    def __str__(self) -> str:
        return (
            f"{self.what} takes {self.nbytes / 1e6:,.1f} MB; {self.stored / 1e6:,.1f} MB of it "
            "are there"
        )


class Digests:
    """A hash of each picture's bytes, made once for each."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, str]] = {}

    def __call__(self, picture: Picture) -> str:
        """The hash of a picture."""
        if isinstance(picture, Stored):
            return picture.digest
        key = picture if isinstance(picture, Path) else id(picture)
        if key not in self._known:
            shown = picture.read_bytes() if isinstance(picture, Path) else pixels(picture)
            # With the picture itself, so that no other one takes its id meanwhile.
            self._known[key] = picture, hashlib.sha256(shown).hexdigest()
        return self._known[key][1]


def named(parts: Any) -> str:
    """The name of an entry that depends on these."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Entries(abc.ABC):
    """Files about dialogues, computed by a model.

    Attributes:
        folder: where they are.
        max_bytes: that the files of all dialogues may take, which no write passes; None for no
            limit.
    """

    folder: Path
    max_bytes: int | None

    @abc.abstractmethod
    def files(self, dialogue: Dialogue) -> list[Path]:
        """Where what is stored of a dialogue is; other dialogues may share some of it."""

    @abc.abstractmethod
    def compute(self, dialogues: Sequence[Dialogue]) -> dict[Path, bytes]:
        """Those files of some dialogues, all of one form, run side by side."""

    @abc.abstractmethod
    def size(self, dialogues: Sequence[Dialogue]) -> Size:
        """What the files of all dialogues take, foreseen from those that are stored."""

    def has(self, dialogue: Dialogue) -> bool:
        """Whether all files of a dialogue are there and whole."""
        return all(map(is_whole, self.files(dialogue)))

    def fill(
        self,
        dialogues: Sequence[Dialogue],
        *,
        whole: Sequence[Dialogue] | None = None,
        processes: int = 1,
        batch_size: int = 8,
        foresee: bool = True,
        tell: Callable[[Size], None] = lambda size: None,
        done: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Compute and store what is not there yet.

        Args:
            dialogues: of which; this process's share of all.
            whole: all of them; `dialogues` if None.
            processes: how many fill the folder at the same time.
            batch_size: dialogues run side by side.
            foresee: whether to stop as soon as all are foreseen to take more than they may.
            tell: given the size of all, after some of each form and before the others.
            done: given how many more dialogues are there.

        Raises:
            InputError: it would take more than `max_bytes`, or more than the disk has.
        """
        everything = dialogues if whole is None else whole
        if not dialogues:
            return
        missing = [number for number, each in enumerate(dialogues) if not self.has(each)]
        done(len(dialogues) - len(missing))
        files = [file for each in everything for file in self.files(each)]
        room = Room(self.folder, self.max_bytes, files, processes)

        def sized() -> None:
            size = self.size(everything)
            if foresee:
                _check(size, room)
            tell(size)

        with _planned(self, dialogues, missing, batch_size) as (batches, first):
            for number, batch in enumerate(batches):
                if number == first:
                    sized()
                chosen = [dialogues[i] for i in batch]
                absent = [each for each in chosen if not self.has(each)]
                if absent:
                    found = self.compute(chosen)
                    room.write({file: x for file, x in found.items() if not is_whole(file)})
                    done(len(absent))
            if first >= len(batches):
                sized()


@contextlib.contextmanager
def _planned(
    entries: Entries, dialogues: Sequence[Dialogue], missing: Sequence[int], batch_size: int
) -> Iterator[tuple[list[list[int]], int]]:
    """The batches of this call, by numbers of dialogues, and how many come before sizes are told.

    They are those of an earlier call for the same dialogues that did not come to its end, if there
    was one.
    """
    names = [[file.name for file in entries.files(each)] for each in dialogues]
    file = entries.folder / _PLANS / f"{named([names, batch_size])}.json"
    try:
        batches, first = json.loads(file.read_text())
    except (OSError, ValueError):
        # Some of each form first: the size of all is known before it can matter.
        forms = [form_of(dialogues[number]) for number in missing]
        probe = dict.fromkeys(spread(forms, _MOST)) if missing else {}
        probe |= dict.fromkeys(range(min(_PROBE, len(missing))))
        few = _batches(dialogues, [missing[i] for i in probe], batch_size)
        rest = [number for i, number in enumerate(missing) if i not in probe]
        batches, first = [*few, *_batches(dialogues, rest, batch_size)], len(few)
        if missing:
            write(file, json.dumps([batches, first]).encode())
    yield batches, first
    file.unlink(missing_ok=True)


def _batches(
    dialogues: Sequence[Dialogue], numbers: Iterable[int], batch_size: int
) -> list[list[int]]:
    """Batches of one form each: fewer of them if those of a form come together."""
    order = sorted(numbers, key=lambda number: form(dialogues[number]))
    chosen = [dialogues[number] for number in order]
    return [order[part] for part in parts(chosen, batch_size)]


def form_of(dialogue: Dialogue) -> tuple[bool, int, int]:
    """What decides, as far as it is known without loading a picture, how large entries are."""
    return dialogue.is_video, len(dialogue.pictures), len(dialogue.turns)


def foreseen(files: Table[Path, tuple[Any, int]]) -> float:
    """Bytes of files, some of which are there.

    Args:
        files: each with its form and how many parts it has. Where nothing of a form is there, each
            part counts as the mean one.
    """
    sizes: dict[Any, list[int]] = {}
    parts = 0
    for file, (kind, count) in files.items():
        if file.is_file():
            sizes.setdefault(kind, []).append(file.stat().st_size)
            parts += count
    one = sum(map(sum, sizes.values())) / parts if parts else 0.0

    def mean(kind: Any, count: int) -> float:
        found = sizes.get(kind)
        return sum(found) / len(found) if found else one * count

    return sum(mean(kind, count) for kind, count in files.values())


def size(what: str, *files: Table[Path, tuple[Any, int]]) -> Size:
    """What files of several sorts take, each as `foreseen` takes them."""
    there = nbytes(file for each in files for file in each)
    return Size(what, max(math.ceil(sum(map(foreseen, files))), there), there)


def _check(size: Size, room: Room) -> None:
    if room.limit is not None and size.nbytes > room.limit:
        raise InputError(
            f"What the full model says would take {size.nbytes:,} bytes in {room.folder},\nwhere "
            f"{size.stored:,} are; the limit is {room.limit:,}.\n"
            "Raise it, and the same call goes on from there; or use fewer dialogues."
        )
    if size.nbytes - size.stored > (free := room.free):
        raise InputError(
            f"What the full model says needs {size.nbytes - size.stored:,} more bytes in "
            f"{room.folder};\nits disk has {free:,} free. Choose another folder."
        )
