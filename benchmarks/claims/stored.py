"""What was noted and answered, read again for a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping as Table
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.errors import InputError
from foveate.evaluation.claims import Claim, Side
from foveate.evaluation.compare import ANSWERS, changed
from foveate.evaluation.data import Dialogue
from foveate.evaluation.store import Store
from foveate.evaluation.verdicts import Answered, Evidence


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one model was asked.

    Attributes:
        name: of the model.
        folder: where its answers are.
        facts: what the run noted beside them: layers, tokens, what was left out.
    """

    name: str
    folder: Path
    facts: dict[str, Any]


def stored(store: Path, kind: str, names: Sequence[str]) -> list[Asked]:
    """What was noted of each model.

    Raises:
        InputError: a model was not asked, or not to the end.
    """
    found = []
    for name in names:
        folder = store / kind / name
        if not (folder / "run.json").is_file():
            raise InputError(
                f"{folder} holds no finished run.\nRun it first, without --from-store."
            )
        found.append(Asked(name, folder, json.loads((folder / "run.json").read_text())))
    return found


def answered(models: Sequence[Asked], dialogues: Sequence[Dialogue]) -> Answered:
    """The stored answers of several models to the same dialogues.

    Raises:
        InputError: they were made under different circumstances.
    """
    stores = [Store.existing(each.folder / ANSWERS) for each in models]
    shared = [
        {key: value for key, value in store.facts.items() if key not in ("model", "processor")}
        for store in stores
    ]
    if any(each != shared[0] for each in shared):
        raise InputError(
            f"The answers of {', '.join(each.name for each in models)} were made with different "
            "data or code.\nRun all of them again."
        )
    if any(changed(store, dialogues) for store in stores):
        raise InputError("The stored answers are to other dialogues.\nRun them again.")
    left_out = {
        key: (f"{each.name}: " if len(models) > 1 else "") + why
        for each in models
        for key, why in each.facts["left_out"].items()
    }
    return Answered(stores, dialogues, left_out)


def looked(models: Sequence[Asked]) -> dict[str, dict[str, Any]]:
    """What was measured of each model's CLS attention."""
    files = {each.name: each.folder / "attention.json" for each in models}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def attention_evidence(claim: Claim, found: Table[str, dict[str, Any]]) -> Evidence | str:
    """The share of CLS's attention in its top tenth of patches, of two layers."""
    if not found:
        return "no tower with a CLS token was measured"

    def share(side: Side) -> Any:
        layer = int(side.method.removeprefix("layer "))
        return np.array([[scene[layer] for scene in each["top"]] for each in found.values()])

    better, worse = share(claim.better), share(claim.worse)
    return Evidence(better, worse, np.ones(better.shape[1]))


def share(keep: int | float | None) -> str:
    """A budget as a reader wants it."""
    return f"{100 * keep:.1f} %" if isinstance(keep, float) else str(keep or "its own budget")
