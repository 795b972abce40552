"""Seeded clips: a few objects that appear, move and leave over a still background.

What happens is written in parts of the clip's length, not in frames, so the same clip can be drawn
with 8 frames or with 32 and the same questions can be answered: every event lies well inside one
frame step of 8, and no two that a question compares lie within one step of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from foveate.errors import InputError
from foveate.reference import words
from foveate.reference.layout import Layout, Propose, Thing
from foveate.reference.rendering import Style, draw_thing, exposed
from foveate.reference.scenes import absolute
from foveate.reference.worlds import FIRST, world_named

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels a side of every frame; the numbers of frames that are drawn.
FRAME = 64
FRAMES = (8, 12, 16, 24, 32)
MIN_ACTORS, MAX_ACTORS = 2, 4
_RADII = (7.0, 10.5)
# How far a moving object goes, in pixels, and how much of it 8 frames show at least.
_TRAVEL, _SEEN_TRAVEL = (22.0, 34.0), 10.0
# When objects appear and leave. At 8 frames the pictures are taken at 1/16, 3/16 ... 15/16: what
# appears at the start is missing in the first picture, what leaves at the end in the last.
_APPEARS = {"start": (0.07, 0.18), "middle": (0.40, 0.56), "end": (0.69, 0.80)}
_LEAVES = {"start": (0.20, 0.30), "middle": (0.44, 0.60), "end": (0.82, 0.93)}
# How often an object is there from the first picture on; otherwise it appears at any time.
_THERE = 0.4
# Two objects appear one after the other from this difference on: more than a step of 8 frames.
APART = 0.18
_TRIES = 80
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "nowhere": (0, 0)}


@dataclass(frozen=True)
class Actor:
    """One object of a clip.

    Attributes:
        thing: how it looks, and its place when it is first there. Its `size` means nothing.
        move: "left", "right", "up", "down" or "nowhere".
        travel: pixels that it goes, at an even pace, while it is there.
        appears, leaves: in parts of the clip; 0 and 1 if it was there before, or stays.
    """

    thing: Thing
    move: str
    travel: float
    appears: float
    leaves: float

    def shown(self, moment: float) -> bool:
        """Whether it is there at this part of the clip."""
        return self.appears <= moment < self.leaves

    def place(self, moment: float) -> tuple[float, float]:
        """Its centre at this moment, in pixels."""
        gone = (moment - self.appears) / (self.leaves - self.appears) * self.travel
        across, down = _DIRECTIONS[self.move]
        return self.thing.x + across * gone, self.thing.y + down * gone

    def at(self, moment: float) -> Thing:
        """The object at its place at this moment."""
        x, y = self.place(moment)
        return replace(self.thing, x=x, y=y)


@dataclass(frozen=True)
class Script:
    """What happens in a clip. No two actors share both colour and shape."""

    actors: tuple[Actor, ...]

    @property
    def cast(self) -> Layout:
        """All objects, whenever they are there, as questions name them."""
        return Layout(tuple(actor.thing for actor in self.actors), ())

    def frame(self, moment: float) -> Layout:
        """The objects that are there at a moment, at their places."""
        return Layout(tuple(actor.at(moment) for actor in self.actors if actor.shown(moment)), ())


@dataclass(frozen=True)
class Clip:
    """A drawn clip.

    Attributes:
        pixels: uint8[frames, 64, 64, 3].
        owners: uint8[frames, 64, 64]; 0 background, 1 + i actor i.
        script: what happens; also as `actors`.
        seed: the seed within its split.
        split: "train", "validation" or "test".
        world: "first" or "second".
    """

    pixels: np.ndarray = field(repr=False)
    owners: np.ndarray = field(repr=False)
    script: Script
    seed: int
    split: str
    world: str = FIRST

    @property
    def actors(self) -> tuple[Actor, ...]:
        """The objects."""
        return self.script.actors

    @property
    def frames(self) -> list[Image]:
        """The frames as PIL images in RGB."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.pixels]


def moments(frames: int) -> list[float]:
    """When each frame is taken, in parts of the clip: the middles of equal steps."""
    return [(index + 0.5) / frames for index in range(frames)]


_FEWEST, _TIMELINE = moments(min(FRAMES)), np.array(moments(max(FRAMES)))


def script(seed: int, split: str, world: str = FIRST) -> Script:
    """What happens in the clip of this seed, without drawing it."""
    kind = world_named(world)
    rng = np.random.default_rng([absolute(seed, split), 3, *kind.stream])
    # A clip that has no room for two objects (rare) is thrown away; the next draw takes its place.
    while True:
        actors = _actors(rng, kind.arrangement.places(rng, FRAME, FRAME), kind.arrangement.turned)
        if len(actors) >= MIN_ACTORS:
            return Script(actors)


def frames_of(seed: int, split: str) -> int:
    """How many frames the clip of this seed has unless another number is asked for."""
    rng = np.random.default_rng([absolute(seed, split), 4])
    return FRAMES[rng.integers(len(FRAMES))]


def clip(seed: int, split: str, world: str = FIRST, frames: int | None = None) -> Clip:
    """The clip of this seed.

    Args:
        seed: counted from 0 within the split.
        split: "train", "validation" or "test"; seeds are disjoint, as those of scenes.
        world: "first", or "second" for another distribution of pictures.
        frames: how many pictures are taken of it, 8 to 32; one of `FRAMES` by the seed if None.

    Raises:
        InputError: no such seed, or another number of frames.
    """
    kind = world_named(world)
    if frames is not None and not min(FRAMES) <= frames <= max(FRAMES):
        raise InputError(
            f"A clip is drawn with {min(FRAMES)} to {max(FRAMES)} frames, which show all that is "
            f"asked about; got {frames}."
        )
    what = script(seed, split, world)
    taken = moments(frames_of(seed, split) if frames is None else frames)
    stream = [absolute(seed, split), 5, *kind.stream]
    rng = np.random.default_rng(stream)
    background = kind.style.background(rng, FRAME, FRAME)
    drawn = [_draw(what, moment, background, stream, kind.style) for moment in taken]
    pixels = np.stack([exposed(canvas, rng) for canvas, _ in drawn])
    return Clip(pixels, np.stack([owners for _, owners in drawn]), what, seed, split, world)


def _draw(
    what: Script, moment: float, background: np.ndarray, stream: Sequence[int], style: Style
) -> tuple[np.ndarray, np.ndarray]:
    """One frame before the camera's noise, and its owners."""
    canvas, owners = background.copy(), np.zeros((FRAME, FRAME), np.uint8)
    for index, actor in enumerate(what.actors):
        if actor.shown(moment):
            # Its own random numbers, begun again in each frame: it looks the same in all.
            rng = np.random.default_rng([*stream, index])
            draw_thing(canvas, owners, actor.at(moment), index + 1, rng, style)
    return canvas, owners


def _actors(rng: np.random.Generator, propose: Propose, turned: float) -> tuple[Actor, ...]:
    wanted = int(rng.integers(MIN_ACTORS, MAX_ACTORS + 1))
    pairs = rng.permutation(len(words.COLOURS) * len(words.SHAPES))[:wanted]
    actors: list[Actor] = []
    paths: list[np.ndarray] = []
    for pair in pairs:
        colour = tuple(words.COLOURS)[pair // len(words.SHAPES)]
        shape = words.SHAPES[pair % len(words.SHAPES)]
        move = words.MOVES[rng.integers(len(words.MOVES))]
        pattern, angle = str(rng.choice(words.PATTERNS)), float(rng.uniform(-turned, turned))
        appears, leaves = _times(rng)
        for _ in range(_TRIES):
            radius = float(rng.uniform(*_RADII))
            travel = float(rng.uniform(*_TRAVEL)) if move != "nowhere" else 0.0
            x, y = propose(rng, radius, radius)
            thing = Thing(colour, shape, "large", pattern, x, y, radius, angle)
            actor = Actor(thing, move, travel, appears, leaves)
            if not _stays_inside(actor):
                continue
            path = _path(actor)
            if all(_apart(path, other) for other in paths):
                actors.append(actor)
                paths.append(path)
                break
    return tuple(actors)


def _times(rng: np.random.Generator) -> tuple[float, float]:
    """When it appears (0: it was there) and leaves (1: it stays)."""
    appears, latest = 0.0, 0.0
    if rng.random() >= _THERE:
        appears = float(rng.uniform(*_APPEARS[str(rng.choice(words.TIMES))]))
        latest = appears + 0.2
    ends = [span for span in _LEAVES.values() if span[0] > latest]
    # Few can leave early: they do so more often, or "end" would be the rule.
    if rng.random() >= 0.2 * len(ends):
        return appears, 1.0
    chances = np.arange(len(ends), 0, -1)
    return appears, float(rng.uniform(*ends[rng.choice(len(ends), p=chances / chances.sum())]))


def _path(actor: Actor) -> np.ndarray:
    """Centre and radius at even moments, NaN where it is not there: float[moments, 3]."""
    gone = (_TIMELINE - actor.appears) / (actor.leaves - actor.appears) * actor.travel
    path = np.full((len(_TIMELINE), 3), actor.thing.radius)
    path[:, :2] = np.outer(gone, _DIRECTIONS[actor.move])
    path[:, :2] += actor.thing.x, actor.thing.y
    path[(actor.appears > _TIMELINE) | (actor.leaves <= _TIMELINE)] = np.nan
    return path


def _apart(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two objects never touch while both are there."""
    gaps = np.hypot(one[:, 0] - other[:, 0], one[:, 1] - other[:, 1])
    return not bool((gaps < one[:, 2] + other[:, 2] + 1).any())


def _stays_inside(actor: Actor) -> bool:
    """Whether all of its way lies in the frame, and 8 frames show enough of it."""
    low, high = actor.thing.radius, FRAME - actor.thing.radius
    ends = (*actor.place(actor.appears), *actor.place(actor.leaves))
    if min(ends) < low or max(ends) > high:
        return False
    seen = [moment for moment in _FEWEST if actor.appears <= moment < actor.leaves]
    pace = actor.travel / (actor.leaves - actor.appears)
    return actor.move == "nowhere" or (seen[-1] - seen[0]) * pace >= _SEEN_TRAVEL
