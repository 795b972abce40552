"""What is where in a scene: objects and plates at free positions that do not overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foveate.reference import glyphs, words

SIDE = 128
MIN_THINGS, MAX_THINGS = 4, 9
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


def layout(rng: np.random.Generator) -> Layout:
    """A random layout: one number plate, one or two letter plates, 4 to 9 distinct objects.

    No two objects share both colour and shape, so each has a name of at most two words.
    """
    boxes: list[tuple[float, float, float, float]] = []
    plates = _plates(rng, boxes)
    wanted = int(rng.integers(MIN_THINGS, MAX_THINGS + 1))
    pairs = rng.permutation(len(words.COLOURS) * len(words.SHAPES))[:wanted]
    sizes = [str(size) for size in rng.choice(words.SIZES, wanted)]
    things: list[Thing] = []
    # Large objects are placed first: they find room less easily, and would otherwise be rarer.
    for pair, size in zip(pairs, sorted(sizes), strict=True):
        radius = float(rng.uniform(*_RADII[size]))
        place = _free_place(rng, boxes, radius, radius)
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
                angle=float(rng.uniform(-0.25, 0.25)),
            )
        )
    order = rng.permutation(len(things))
    return Layout(tuple(things[index] for index in order), plates)


def _plates(
    rng: np.random.Generator, boxes: list[tuple[float, float, float, float]]
) -> tuple[Plate, ...]:
    number = str(rng.integers(0, 10)) if rng.random() < 0.3 else str(rng.integers(10, 100))
    letters = rng.choice(words.LETTERS, int(rng.integers(1, 3)), replace=False)
    tones = rng.permutation(words.TONES)
    plates = [("number", number, str(rng.choice(words.TONES)))]
    plates += [("letter", str(text), str(tone)) for text, tone in zip(letters, tones, strict=False)]
    placed = []
    for kind, text, tone in plates:
        shape = Plate(kind, text, tone, 0, 0)
        place = _free_place(rng, boxes, shape.width / 2, shape.height / 2)
        assert place is not None  # three small plates always fit into an empty scene
        placed.append(Plate(kind, text, tone, int(place[0]), int(place[1])))
    return tuple(placed)


def _free_place(
    rng: np.random.Generator,
    boxes: list[tuple[float, float, float, float]],
    half_width: float,
    half_height: float,
) -> tuple[float, float] | None:
    """A centre whose box touches no other box (it is added to `boxes`), or None."""
    for _ in range(_TRIES):
        x = float(rng.uniform(half_width + 1, SIDE - half_width - 1))
        y = float(rng.uniform(half_height + 1, SIDE - half_height - 1))
        if all(
            abs(x - bx) > half_width + bw + 1 or abs(y - by) > half_height + bh + 1
            for bx, by, bw, bh in boxes
        ):
            boxes.append((x, y, half_width, half_height))
            return x, y
    return None
