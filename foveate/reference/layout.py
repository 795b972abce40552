"""What is where in a scene: objects and plates at free positions that do not overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from foveate.reference import glyphs, words

SIDE = 128
MIN_THINGS, MAX_THINGS = 4, 10
# Radii leave a gap between the two sizes, so that "small" and "large" are never a matter of taste.
_RADII = {"small": (8.0, 9.5), "large": (13.0, 16.0)}
_TRIES = 60


@dataclass(frozen=True)
class Thing:
    """One coloured object. `x`, `y` is its centre in pixels, `angle` its rotation in radians."""

    colour: str
    shape: str
    size: str
    pattern: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Plate:
    """A rectangle with text. `kind` is "number" (1-2 digits) or "letter"; `x`, `y` its centre."""

    kind: str
    text: str
    tone: str
    x: int
    y: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return len(self.text) * (glyphs.WIDTH + 2) - 2 + 6

    @property
    def height(self) -> int:
        """Height in pixels."""
        return glyphs.HEIGHT + 6


@dataclass(frozen=True)
class Layout:
    """Everything a scene shows, before it is drawn."""

    things: tuple[Thing, ...]
    plates: tuple[Plate, ...]

    def scaled(self, across: float, down: float) -> Layout:
        """The same with every centre's coordinates multiplied; sizes stay.

        Questions are asked about centres on a canvas of SIDE x SIDE, whatever the real one is.
        """
        things = (replace(thing, x=thing.x * across, y=thing.y * down) for thing in self.things)
        plates = (
            replace(plate, x=int(plate.x * across), y=int(plate.y * down)) for plate in self.plates
        )
        return Layout(tuple(things), tuple(plates))


# A place (x, y) for something of these half sides, which may be taken already.
Propose = Callable[[np.random.Generator, float, float], tuple[float, float]]


@dataclass(frozen=True)
class Arrangement:
    """How many objects of which size a world's scenes hold, and where.

    Attributes:
        counts: how many objects a scene asks for, each number equally often.
        sizes: what sizes are drawn from; a word that stands there twice is twice as frequent.
        turned: objects are turned by at most this many radians.
        places: given the scene's random numbers, width and height, what proposes places in it.
    """

    counts: tuple[int, ...]
    sizes: tuple[str, ...]
    turned: float
    places: Callable[[np.random.Generator, int, int], Propose]


def anywhere(_: np.random.Generator, width: int, height: int) -> Propose:
    """Every place of the canvas equally often."""

    def propose(
        rng: np.random.Generator, half_width: float, half_height: float
    ) -> tuple[float, float]:
        x = float(rng.uniform(half_width + 1, width - half_width - 1))
        return x, float(rng.uniform(half_height + 1, height - half_height - 1))

    return propose


SCATTERED = Arrangement(tuple(range(MIN_THINGS, MAX_THINGS + 1)), words.SIZES, 0.25, anywhere)


def layout(
    rng: np.random.Generator,
    width: int = SIDE,
    height: int = SIDE,
    arrangement: Arrangement = SCATTERED,
) -> Layout:
    """A random layout: one number plate, one or two letter plates, distinct objects.

    No two objects share both colour and shape, so each has a name of at most two words.

    Args:
        rng: the scene's random numbers.
        width, height: the canvas in pixels.
        arrangement: how many objects, and where; `SCATTERED` asks for 4 to 10.
    """
    room = _Room(arrangement.places(rng, width, height))
    plates = _plates(rng, room)
    wanted = arrangement.counts[rng.integers(len(arrangement.counts))]
    pairs = rng.permutation(len(words.COLOURS) * len(words.SHAPES))[:wanted]
    sizes = [str(size) for size in rng.choice(arrangement.sizes, wanted)]
    things: list[Thing] = []
    # Large objects are placed first: they find room less easily, and would otherwise be rarer.
    for pair, size in zip(pairs, sorted(sizes), strict=True):
        radius = float(rng.uniform(*_RADII[size]))
        place = room.free_place(rng, radius, radius)
        if place is None:
            continue
        things.append(
            Thing(
                colour=tuple(words.COLOURS)[pair // len(words.SHAPES)],
                shape=words.SHAPES[pair % len(words.SHAPES)],
                size=size,
                pattern=str(rng.choice(words.PATTERNS)),
                x=place[0],
                y=place[1],
                radius=radius,
                angle=float(rng.uniform(-arrangement.turned, arrangement.turned)),
            )
        )
    order = rng.permutation(len(things))
    return Layout(tuple(things[index] for index in order), plates)


def _plates(rng: np.random.Generator, room: _Room) -> tuple[Plate, ...]:
    number = str(rng.integers(0, 10)) if rng.random() < 0.3 else str(rng.integers(10, 100))
    letters = rng.choice(words.LETTERS, int(rng.integers(1, 3)), replace=False)
    tones = rng.permutation(words.TONES)
    plates = [("number", number, str(rng.choice(words.TONES)))]
    plates += [("letter", str(text), str(tone)) for text, tone in zip(letters, tones, strict=False)]
    placed = []
    for kind, text, tone in plates:
        shape = Plate(kind, text, tone, 0, 0)
        place = room.free_place(rng, shape.width / 2, shape.height / 2)
        assert place is not None  # three small plates always fit into an empty scene
        placed.append(Plate(kind, text, tone, int(place[0]), int(place[1])))
    return tuple(placed)


@dataclass(frozen=True)
class _Room:
    """Where places are proposed, and the boxes taken there: centre x, y and half sides."""

    propose: Propose
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def free_place(
        self, rng: np.random.Generator, half_width: float, half_height: float
    ) -> tuple[float, float] | None:
        """A centre whose box touches no other box (it is taken then), or None."""
        for _ in range(_TRIES):
            x, y = self.propose(rng, half_width, half_height)
            if all(
                abs(x - bx) > half_width + bw + 1 or abs(y - by) > half_height + bh + 1
                for bx, by, bw, bh in self.boxes
            ):
                self.boxes.append((x, y, half_width, half_height))
                return x, y
        return None
