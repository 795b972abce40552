"""The worlds that scenes and clips can come from, by name."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.errors import UnknownName
from foveate.reference.layout import SCATTERED, Arrangement
from foveate.reference.rendering import MOTTLED, Style
from foveate.reference.second_world import CROWDED, LOUD

FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class World:
    """A distribution of pictures; questions and words are the same in all.

    Attributes:
        arrangement: how many objects, and where.
        style: how things look.
        stream: what is added to every seed's random numbers, so that worlds share no layout.
    """

    arrangement: Arrangement
    style: Style
    stream: tuple[int, ...]


# The models are trained in the first; the second is for transfer only.
WORLDS = {FIRST: World(SCATTERED, MOTTLED, ()), SECOND: World(CROWDED, LOUD, (2,))}


def world_named(name: str) -> World:
    """The world of this name.

    Raises:
        UnknownName: there is none.
    """
    if name not in WORLDS:
        raise UnknownName("world", name, WORLDS)
    return WORLDS[name]
