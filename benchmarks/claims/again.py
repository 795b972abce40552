"""Answers of earlier code, taken over where the present code gives the same.

Most edits of code that decides answers change none. Rather than to ask for hours again, some
dialogues are asked with every setting, and where all answers are the stored ones, these count as
the present code's. What was taken over, and upon what, is noted, and stands on the page.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks.pages import note
from foveate.errors import InputError
from foveate.evaluation import fingerprints
from foveate.evaluation.answering import WRONG
from foveate.evaluation.asking import Group
from foveate.evaluation.compare import ANSWERS, answers
from foveate.evaluation.data import Dialogue
from foveate.evaluation.store import Store

AGAIN = "again.json"
_CODE = "foveate"


def take_over(
    folder: Path,
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
    groups: Sequence[Group],
    batch: int,
    progress: Progress | None = None,
) -> None:
    """Let stored answers of one model count as the present code's, if they are what it gives.

    Args:
        folder: where the answers are; nothing is done if there are none, or none of other code.
        model, processor: as loaded.
        dialogues: that are asked again.
        groups: the settings.
        batch: dialogues answered at a time.
        progress: where to show how far it is.

    Raises:
        InputError: an answer is another one.
    """
    file, now = folder / ANSWERS, fingerprints.code()
    if not file.is_file():
        return
    there = Store.existing(file)
    if there.facts[_CODE] == now:
        return
    with tempfile.TemporaryDirectory() as place:
        asking = answers(
            model, processor, dialogues, groups, Path(place), batch_size=batch, progress=progress
        )
    # Whose picture the wrong one is depends on how many dialogues there are.
    records = {k: r for k, r in asking.store.records.items() if k in there and k[0] != WRONG}
    other = [key for key, record in records.items() if record != there[key]]
    if other:
        raise InputError(
            f"Of {len(records)} answers in {folder} the present code gives {len(other)} others,\n"
            f"that of {other[0][0]} to {other[0][1]} among them.\n"
            "Remove the folder and ask again."
        )
    kept = [] if not (noted := folder / AGAIN).is_file() else json.loads(noted.read_text())
    note(noted, [*kept, {"made": there.facts[_CODE], "same": now, "dialogues": len(dialogues)}])
    # What was not asked again is not taken over.
    same = {setting for setting, _ in asking.store.records}
    partial = file.with_suffix(".again")
    # Files of one stem are held together: nobody adds to the one that this one replaces.
    with contextlib.closing(Store(partial, there.facts | {_CODE: now}, fresh=True)) as store:
        for record in Store.existing(file).records.values():
            if record["setting"] in same:
                store.add(**record)
        partial.replace(file)


def taken_over(folders: Sequence[Path]) -> str:
    """What a page says of it: empty if nothing was taken over."""
    noted = [folder / AGAIN for folder in folders]
    found = [each for file in noted if file.is_file() for each in json.loads(file.read_text())]
    if not found:
        return ""
    made = ", ".join(dict.fromkeys(each["made"] for each in found))
    least = min(each["dialogues"] for each in found)
    return (
        f" Some answers are older, of {made}; they were taken over after every setting was asked "
        f"about {least} dialogues again and gave the same."
    )
