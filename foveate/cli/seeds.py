"""Which models a comparison is made on: those that were named, or a folder's training seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    checkpoint is then in its folder `model`. Of models that say how they were trained, all are
    trained to their end by one recipe; others are taken as they are.

    Raises:
        InputError: there is none, one is not finished, or their recipes differ.
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
    seeds = dict(found[number] for number in sorted(found))
    _check_alike(folder, {name: record for name in seeds if (record := _training(seeds[name]))})
    return seeds


def _training(place: str) -> dict[str, Any]:
    """How a reference model was trained, as its folder says; empty if it does not."""
    file = Path(place) / "training.json"
    known = json.loads(file.read_text()).get("training", {}) if file.is_file() else {}
    return known if "steps_done" in known and "recipe" in known else {}


def _check_alike(folder: Path, trainings: Mapping[str, Mapping[str, Any]]) -> None:
    halfway = []
    for name, training in trainings.items():
        done, recipe = training["steps_done"], training["recipe"]
        steps = recipe["vision_steps" if done["stage"] == 1 else "language_steps"]
        if done["stage"] == 1 or done["step"] < steps:
            halfway.append(f"{name} (stage {done['stage']} of 2, step {done['step']} of {steps})")
    if halfway:
        raise InputError(
            f"In {folder} not trained to the end: {', '.join(halfway)}.\n"
            "Let their trainings go on, or take them out."
        )
    first, *others = trainings or [""]
    for name in others:
        mine, theirs = trainings[first]["recipe"], trainings[name]["recipe"]
        apart = [
            f"{field} {mine.get(field)} and {theirs.get(field)}"
            for field in dict.fromkeys((*mine, *theirs))
            if mine.get(field) != theirs.get(field)
        ]
        if apart:
            raise InputError(
                f"{first} and {name} in {folder} differ in more than their seeds:\n"
                f"{', '.join(apart)}.\n"
                "Take one out, or name the models: --model FOLDER --model FOLDER."
            )
