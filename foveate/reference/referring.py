"""Naming one object beyond mistake: the shortest sets of attributes that fit only it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from foveate.reference import words
from foveate.reference.layout import SIDE, Thing

# An object this close (pixels) to a region's border is in no region that one may ask about.
_BORDER = 4.0
# "the striped thing", "the red star", "the thing in the north": what a name is made of.
_PARTS = ("size", "pattern", "colour", "shape", "region")


def region(x: float, y: float, border: float = _BORDER) -> str | None:
    """The region word of a point, or None within `border` pixels of another region."""
    third = SIDE / 3
    near = min(abs(value - edge) for value in (x, y) for edge in (third, 2 * third))
    if near < border:
        return None
    return words.REGIONS[int(y // third)][int(x // third)]


def attribute(thing: Thing, name: str) -> str | None:
    """The word for one attribute; None where it has none (a region near a border)."""
    if name == "region":
        return region(thing.x, thing.y)
    return str(getattr(thing, name))


def matches(thing: Thing, wanted: dict[str, str]) -> bool:
    """Whether the object could be meant; one near a border is in either region."""
    return all(
        attribute(thing, name) in ((word, None) if name == "region" else (word,))
        for name, word in wanted.items()
    )


def phrase(wanted: dict[str, str], many: bool = False) -> str:
    """Attributes as words: "large red star", "striped things", "red thing in the north"."""
    noun = wanted.get("shape", "thing")
    if many:
        noun = words.plural(noun)
    adjectives = [wanted[name] for name in ("size", "pattern", "colour") if name in wanted]
    place = ["in the", wanted["region"]] if "region" in wanted else []
    return " ".join([*adjectives, noun, *place])


def names(
    things: Sequence[Thing], target: Thing, hidden: Iterable[str] = (), longest: int = 2
) -> list[str]:
    """Every shortest unambiguous name of `target`, without the `hidden` attributes."""
    parts = [part for part in _PARTS if part not in hidden and attribute(target, part)]
    for length in range(1, longest + 1):
        found = []
        for chosen in combinations(parts, length):
            wanted = {part: str(attribute(target, part)) for part in chosen}
            if sum(matches(thing, wanted) for thing in things) == 1:
                found.append(phrase(wanted))
        if found:
            return found
    return []


def name(
    things: Sequence[Thing], target: Thing, rng: np.random.Generator, hidden: Iterable[str] = ()
) -> str | None:
    """One of the shortest names at random; None if two words do not suffice."""
    found = names(things, target, hidden)
    return found[rng.integers(len(found))] if found else None
