"""Which models a comparison is made on: those that were named, or a folder's training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foveate.errors import InputError


def named(models: Sequence[str]) -> dict[str, str]:
    """Name -> model: of each the last part of its path, or as many as tell them all apart.

    Raises:
        InputError: one is there twice.
    """
    parts = [Path(each).resolve().parts[1:] for each in models]
    for index, each in enumerate(models):
        if parts[index] in parts[:index]:
            raise InputError(f"The model {each} is given twice.")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, models, strict=True))


def seeds_in(folder: Path) -> dict[str, str]:
    """Name -> checkpoint of every training seed in a folder, by number.

    A seed's folder is the checkpoint itself, or what `foveate.reference.train` leaves: the
    checkpoint is then in its folder `model`.

    Raises:
        InputError: there is none.
    """
    if not folder.is_dir():
        raise InputError(f"No folder {folder}.\n--all-seeds needs one with seed0, seed1 .. in it.")
    found = {}
    for each in folder.glob("seed*"):
        number = each.name.removeprefix("seed")
        places = [place for place in (each, each / "model") if (place / "config.json").is_file()]
        if number.isdigit() and places:
            found[int(number)] = (each.name, str(places[0]))
    if not found:
        raise InputError(
            f"{folder} holds no checkpoint of a training seed.\n"
            "Expected folders seed0, seed1 .. with a config.json (or model/config.json) in each."
        )
    return dict(found[number] for number in sorted(found))
