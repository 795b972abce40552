"""Questions about a scene: twelve kinds, answers balanced by drawing the answer first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from foveate.reference import words
from foveate.reference.layout import Layout, Plate, Thing
from foveate.reference.referring import attribute, matches, name, phrase

if TYPE_CHECKING:
    from foveate.reference.scenes import Scene

TURNS = 3
# Two objects count as left/right or above/below of one another from this many pixels on.
APART = 16.0
_ATTEMPTS = 12


@dataclass(frozen=True)
class Question:
    """One turn: the kind of question, its text, and the one right answer.

    Attributes:
        kind: one of `KINDS`, or of a description's.
        text, answer: words separated by spaces.
        about: which owners (numbers of `labels.owner_table`) each word of the answer is read
            from; one entry stands for all words. Training alone looks at it.
        named: for the last word of each name in the text, its place and the owners meant.
            Training alone looks at it.
    """

    kind: str
    text: str
    answer: str
    about: tuple[tuple[int, ...], ...] = ((),)
    named: tuple[tuple[int, tuple[int, ...]], ...] = ()


def dialogue(scene: Scene, seed: int) -> list[Question]:
    """Three questions of different kinds about any part of the scene."""
    return dialogue_about(scene.layout, np.random.default_rng([scene.seed, seed, 2]))


def dialogue_about(layout: Layout, rng: np.random.Generator) -> list[Question]:
    """`dialogue` for a scene that has not been drawn."""
    turns: list[Question] = []
    for kind in rng.permutation(KINDS):
        question = ask(str(kind), layout, rng)
        if question is not None:
            turns.append(question)
        if len(turns) == TURNS:
            break
    return turns


def ask(kind: str, layout: Layout, rng: np.random.Generator) -> Question | None:
    """A random question of this kind, or None if the scene offers none (rare)."""
    for _ in range(_ATTEMPTS):
        found = _ASKERS[kind](layout, rng)
        if found is not None:
            parts, answer, about = found
            return question(kind, layout, parts, answer, (owners(layout, about),))
    return None


def question(
    kind: str,
    layout: Layout,
    parts: Sequence[str | Name],
    answer: str,
    about: tuple[tuple[int, ...], ...],
) -> Question:
    """A turn whose text is put together from plain words and names.

    Args:
        kind, answer, about: as in `Question`.
        layout: the scene.
        parts: words, or a name and the things that it means.
    """
    said: list[str] = []
    named = []
    for part in parts:
        text, things = (part, None) if isinstance(part, str) else part
        said += text.split()
        if things is not None:
            named.append((len(said) - 1, owners(layout, things)))
    return Question(kind, " ".join(said), answer, about, tuple(named))


def owners(layout: Layout, about: Sequence[Thing | Plate]) -> tuple[int, ...]:
    """The owner numbers of things and plates: the renderer's, from 1 on."""
    everything = [*layout.things, *layout.plates]
    return tuple(everything.index(each) + 1 for each in about)


# A name and what it means.
Name = tuple[str, Sequence[Thing | Plate]]
# The text's parts, the answer, and the things or plates that it is read from.
Asked = tuple[Sequence[str | Name], str, Sequence[Thing | Plate]] | None


def _name(text: str, things: Sequence[Thing | Plate]) -> Name:
    return text, things


def _attribute_question(kind: str, opening: str) -> Callable[[Layout, np.random.Generator], Asked]:
    """An attribute of an object that is named by its other attributes."""

    def asker(layout: Layout, rng: np.random.Generator) -> Asked:
        target = _pick(layout.things, rng)
        who, answer = name(layout.things, target, rng, hidden=[kind]), attribute(target, kind)
        return ([opening, _name(who, [target]), "?"], answer, [target]) if who and answer else None

    return asker


def _existence(layout: Layout, rng: np.random.Generator) -> Asked:
    answer = bool(rng.integers(2))
    # Absent descriptions are drawn until one is absent: giving up would make "yes" the rule.
    for _ in range(40):
        wanted = _description(rng, layout.things if answer else None)
        found = [thing for thing in layout.things if matches(thing, wanted)]
        if bool(found) == answer:
            parts: list[str | Name] = ["is there a", _name(phrase(wanted), found), "?"]
            return parts, "yes" if answer else "no", found
    return None


def _description(rng: np.random.Generator, things: Sequence[Thing] | None) -> dict[str, str]:
    """Colour, shape or both; of an object that exists, or drawn freely."""
    names = (["colour"], ["shape"], ["colour", "shape"])[rng.integers(3)]
    if things is not None:
        target = _pick(things, rng)
        return {part: str(attribute(target, part)) for part in names}
    free = {"colour": tuple(words.COLOURS), "shape": words.SHAPES}
    return {part: str(rng.choice(free[part])) for part in names}


def _count(layout: Layout, rng: np.random.Generator) -> Asked:
    """How many share an attribute; the number is drawn first, so that "one" is not the rule."""
    part = ("colour", "shape", "pattern", "size")[rng.integers(4)]
    every = {
        "colour": tuple(words.COLOURS),
        "shape": words.SHAPES,
        "pattern": words.PATTERNS,
        "size": words.SIZES,
    }[part]
    number = int(rng.integers(len(words.NUMERALS)))
    fitting = [
        word
        for word in every
        if sum(attribute(thing, part) == word for thing in layout.things) == number
    ]
    if not fitting:
        return None
    word = fitting[rng.integers(len(fitting))]
    counted = [thing for thing in layout.things if attribute(thing, part) == word]
    parts: list[str | Name] = [
        "how many",
        _name(phrase({part: word}, many=True), counted),
        "are there ?",
    ]
    return parts, words.NUMERALS[number], counted


def _relation(layout: Layout, rng: np.random.Generator) -> Asked:
    first, second = _pair(layout, rng)
    relation = tuple(words.RELATIONS)[rng.integers(len(words.RELATIONS))]
    gap = gaps(first, second)[relation]
    # A name that contains the place would give the answer away.
    names = [name(layout.things, thing, rng, hidden=["region"]) for thing in (first, second)]
    if abs(gap) < APART or None in names:
        return None
    return _pair_question(names, words.RELATIONS[relation], (first, second), gap > 0)


def gaps(first: Thing, second: Thing) -> dict[str, float]:
    """By how many pixels the first object is left of, right of .. the second, by relation."""
    across, down = second.x - first.x, second.y - first.y
    return {"left": across, "right": -across, "above": down, "below": -down}


def _pair_question(
    names: Sequence[str | None], relation: str, pair: tuple[Thing, Thing], answer: bool
) -> Asked:
    """Is one left of the other: read from what the names stand for, not from a mixture."""
    first, second = (_name(str(name), [thing]) for name, thing in zip(names, pair, strict=True))
    return ["is the", first, f"{relation} the", second, "?"], "yes" if answer else "no", []


def _comparison(layout: Layout, rng: np.random.Generator) -> Asked:
    answer = bool(rng.integers(2))
    pairs = [
        pair
        for pair in permutations(layout.things, 2)
        if (pair[0].size == "large" and pair[1].size == "small") == answer
    ]
    # Where all sizes are equal only "no" could be asked, so nothing is.
    if len({thing.size for thing in layout.things}) < 2:
        return None
    for index in rng.permutation(len(pairs))[:_ATTEMPTS]:
        names = [name(layout.things, thing, rng, hidden=["size"]) for thing in pairs[index]]
        if None not in names:
            return _pair_question(names, "larger than", pairs[index], answer)
    return None


def _extreme(layout: Layout, rng: np.random.Generator) -> Asked:
    which = words.EXTREMES[rng.integers(len(words.EXTREMES))]
    ranked = ranking(layout.things, which)
    if abs(position(ranked[0], which) - position(ranked[1], which)) < 4:
        return None
    part = ("colour", "shape")[rng.integers(2)]
    parts: list[str | Name] = [f"what {part} is the", _name(f"{which} thing", ranked[:1]), "?"]
    return parts, str(attribute(ranked[0], part)), ranked[:1]


def position(thing: Thing, extreme: str) -> float:
    """The coordinate that an extreme is about."""
    return thing.x if extreme in ("leftmost", "rightmost") else thing.y


def ranking(things: Sequence[Thing], extreme: str) -> list[Thing]:
    """The objects from the extreme one on."""
    backwards = extreme in ("rightmost", "bottommost")
    return sorted(things, key=lambda thing: position(thing, extreme), reverse=backwards)


def _number(layout: Layout, rng: np.random.Generator) -> Asked:
    (plate,) = [plate for plate in layout.plates if plate.kind == "number"]
    return ["what number is on the plate ?"], " ".join(plate.text), [plate]


def _letter(layout: Layout, rng: np.random.Generator) -> Asked:
    signs = [plate for plate in layout.plates if plate.kind == "letter"]
    sign = signs[rng.integers(len(signs))]
    tone = f"{sign.tone} " if len(signs) > 1 else ""
    return ["what letter is on the", _name(f"{tone}sign", [sign]), "?"], sign.text, [sign]


def _pick(things: Sequence[Thing], rng: np.random.Generator) -> Thing:
    return things[int(rng.integers(len(things)))]


def _pair(layout: Layout, rng: np.random.Generator) -> tuple[Thing, Thing]:
    first, second = rng.choice(len(layout.things), 2, replace=False)
    return layout.things[int(first)], layout.things[int(second)]


_ASKERS: dict[str, Callable[[Layout, np.random.Generator], Asked]] = {
    "colour": _attribute_question("colour", "what colour is the"),
    "shape": _attribute_question("shape", "what shape is the"),
    "size": _attribute_question("size", "what size is the"),
    "pattern": _attribute_question("pattern", "what pattern is on the"),
    "where": _attribute_question("region", "where is the"),
    "existence": _existence,
    "count": _count,
    "relation": _relation,
    "comparison": _comparison,
    "extreme": _extreme,
    "number": _number,
    "letter": _letter,
}
KINDS = tuple(_ASKERS)
