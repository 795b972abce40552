"""Variants: compressors that have to be trained for a model before it can be asked, as data.

A variant says which method is trained, from which start, by which recipe and on how many dialogues.
What is stored of it goes by a hash of all that, never by a place: answers and trainings of another
recipe are others. Several training seeds are draws of one side.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from foveate.errors import InputError, UnknownName
from foveate.evaluation.settings import EACH, Keep, Setting, parse_method
from foveate.learned import LearnedCompressor

PREFIX = "variant:"
_LENGTHS = ("steps", "epochs")
_Pairs = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train a compressor.

    Attributes:
        name: what sides call it, behind "variant:".
        says: what it is, for a reader.
        method: the learned method with its fields, as `parse_method` reads it.
        start: its first parameters, as its training takes them.
        recipe: what differs from its training's own defaults, those of what it is told included:
            the labels of relevance, and whose `answers` MetaCompress learns from.
        data: the kind of dialogues that it learns from; empty: those that its model was trained on.
        dialogues: how many.
        seeds: how often it is trained, with the seeds 0, 1 .. of start and order.
    """

    name: str
    says: str
    method: str
    start: _Pairs = ()
    recipe: _Pairs = ()
    data: str = ""
    dialogues: int = 500
    seeds: int = 1

    @property
    def setting(self) -> Setting:
        """The method with its fields, without parameters."""
        return parse_method(self.method)

    def identity(self, seed: int) -> str:
        """A short hash of all that one training of it depends on, beside the model."""
        plain = self.setting
        parts = [plain.method, sorted(plain.fields), sorted(self.start), sorted(self.recipe)]
        text = json.dumps([*parts, self.data, self.dialogues, seed])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def settings(self, keep: Keep, turns: str = EACH) -> tuple[Trained, ...]:
        """What is attached at a budget, one for each training seed."""
        plain = self.setting
        way = turns if plain.reads_prompt else EACH
        return tuple(
            Trained(plain.method, keep, None, plain.fields, way, variant=self, seed=seed)
            for seed in range(self.seeds)
        )

    def bounded(self, bounds: Bounds) -> Variant:
        """The same, no larger than that."""

        def least(value: int, bound: int | None) -> int:
            return value if bound is None else min(value, bound)

        recipe = {
            key: least(value, bounds.steps) if key in _LENGTHS else value
            for key, value in self.recipe
        }
        return dataclasses.replace(
            self,
            recipe=tuple(recipe.items()),
            dialogues=least(self.dialogues, bounds.dialogues),
            seeds=least(self.seeds, bounds.seeds),
        )


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The most that is trained, for trying a page out. None: as much as its variants say.

    Attributes:
        seeds: trainings of one variant.
        steps: steps (or epochs) of one training.
        dialogues: that one learns from.
    """

    seeds: int | None = None
    steps: int | None = None
    dialogues: int | None = None


@dataclasses.dataclass(frozen=True)
class Trained(Setting):
    """One training of a variant at a budget.

    Attributes:
        variant: what was trained.
        seed: of the training.
    """

    variant: Variant | None = None
    seed: int = 0

    @property
    def identity(self) -> str:
        """What the training goes by."""
        assert self.variant is not None
        return self.variant.identity(self.seed)

    @property
    def label(self) -> str:
        """The variant's name."""
        assert self.variant is not None
        return self.variant.name

    @property
    def key(self) -> str:
        """What stored answers go by, wherever the parameters are."""
        parts = {"keep": self.keep, "turns": self.turns}
        return f"{PREFIX}{self.identity} {json.dumps(parts, sort_keys=True)}"

    def at(self, place: Path) -> Trained:
        """The same with the parameters that were saved in a folder."""
        return dataclasses.replace(self, method=str(place.resolve()), fields=())


def read(table: Table[str, Table[str, Any]]) -> dict[str, Variant]:
    """Variants as a page states them: name -> fields of `Variant`.

    `like` names an earlier one, whose fields hold where none are given; of `start` and `recipe`
    every entry by itself.

    Raises:
        InputError: a field that does not exist, one that is missing, or a method without
            parameters.
        UnknownName: `like` names no earlier variant, or `method` no method.
    """
    found: dict[str, dict[str, Any]] = {}
    made: dict[str, Variant] = {}
    for name, given in table.items():
        fields = dict(given)
        like = fields.pop("like", None)
        if like is not None and like not in found:
            raise UnknownName("variant", like, found)
        base = found[like] if like is not None else {}
        merged = {**base, **fields}
        for key in ("start", "recipe"):
            merged[key] = {**base.get(key, {}), **fields.get(key, {})}
        found[name] = merged
        stated: dict[str, Any] = {
            key: _pairs(value) if isinstance(value, dict) else value
            for key, value in merged.items()
        }
        try:
            made[name] = Variant(name, **stated)
        except TypeError as error:
            raise InputError(f"The variant {name!r} has no such form: {error}.") from error
        if not isinstance(made[name].setting.make(), LearnedCompressor):
            raise InputError(f"The variant {name!r}: {made[name].method} has nothing to train.")
    return made


def _pairs(table: Table[str, Any]) -> _Pairs:
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in table.items())
