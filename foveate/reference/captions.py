"""Training-only turns: descriptions, in which every word is an attribute looked up by reference.

Questions alone give one supervised word in a dozen; the look-up they all rest on is learned from
these first, and they stay mixed in.
"""

from __future__ import annotations

import numpy as np

from foveate.reference.layout import Layout, Thing
from foveate.reference.questions import APART, Name, Question, gaps, owners, question, ranking
from foveate.reference.referring import attribute, name, phrase


def description(thing: Thing) -> str:
    """As in "large striped red star northwest"; near a border the region is left out."""
    place = attribute(thing, "region")
    said = [
        thing.size,
        thing.pattern,
        thing.colour,
        thing.shape,
        *([place] if place else []),
    ]
    return " ".join(said)


def describe(layout: Layout, rng: np.random.Generator) -> Question | None:
    """Everything about one object that is named by one or two attributes."""
    target = layout.things[rng.integers(len(layout.things))]
    who = name(layout.things, target, rng)
    if not who:
        return None
    parts: list[str | Name] = ["describe the", (who, [target]), "."]
    return question("describe", layout, parts, description(target), (owners(layout, [target]),))


def listing(layout: Layout, rng: np.random.Generator) -> Question:
    """All objects from left to right or from top to bottom: extremes and neighbours."""
    which, start = (("leftmost", "left"), ("topmost", "top"))[rng.integers(2)]
    ranked = ranking(layout.things, which)
    answer = " , ".join(f"{thing.colour} {thing.shape}" for thing in ranked)
    # "red star , blue ring": two words and the comma behind them are about one thing each.
    about = tuple(owners(layout, [thing]) for thing in ranked for _ in range(3))[:-1]
    return Question("list", f"list the things from {start} .", answer, about)


def tally(layout: Layout, rng: np.random.Generator) -> Question:
    """All objects of one size, pattern, colour or shape, one after the other: counting aloud."""
    part = ("size", "pattern", "colour", "shape")[rng.integers(4)]
    target = layout.things[rng.integers(len(layout.things))]
    word = str(attribute(target, part))
    found = [
        thing for thing in ranking(layout.things, "leftmost") if attribute(thing, part) == word
    ]
    other = "shape" if part == "colour" else "colour"
    answer = " , ".join(str(attribute(thing, other)) for thing in found)
    about = tuple(owners(layout, [thing]) for thing in found for _ in range(2))[:-1]
    parts: list[str | Name] = ["list the", (phrase({part: word}, many=True), found), "."]
    return question("tally", layout, parts, answer, about)


def relate(layout: Layout, rng: np.random.Generator) -> Question | None:
    """Where one object is from another one, in up to two words.

    The answer to "is the ... left of the ...?" turns round with either half of the question, so
    that neither half alone says anything; the two signs it rests on are learned from this form.
    """
    pair = [layout.things[index] for index in rng.choice(len(layout.things), 2, replace=False)]
    first, second = pair
    found = [word for word, gap in gaps(first, second).items() if gap >= APART]
    names = [name(layout.things, thing, rng, hidden=["region"]) for thing in pair]
    if not found or None in names:
        return None
    parts: list[str | Name] = [
        "where is the",
        (str(names[0]), [first]),
        "from the",
        (str(names[1]), [second]),
        "?",
    ]
    return question("relate", layout, parts, " ".join(found), ((),))
