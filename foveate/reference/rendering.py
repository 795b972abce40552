"""Drawing a layout: a noisy low-frequency background, then objects and plates with soft edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from foveate.reference import glyphs, words
from foveate.reference.layout import SIDE, Layout, Plate, Thing

# Knots of the background's two frequencies per SIDE pixels, intervals counted.
_COARSE, _MIDDLE = 4, 19


@cache
def _neighbours(knots: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `knots` evenly spaced values, the two around each pixel.

    Returns:
        int[side], the lower one's index; float32[side], its weight and that of the next.
    """
    at = np.linspace(0, knots - 1, side)
    low = np.minimum(at.astype(int), knots - 2)
    return low, (1 - (at - low)).astype(np.float32), (at - low).astype(np.float32)


def _along(axis: int, knots: np.ndarray, side: int) -> np.ndarray:
    low, here, there = _neighbours(knots.shape[axis], side)
    knots = np.moveaxis(knots, axis, -1)
    # Of float32 the float64 product is exact, so that what is added is rounded once.
    upper = knots[..., low + 1].astype(np.float64) * there
    return np.moveaxis((knots[..., low] * here + upper).astype(knots.dtype), -1, axis)


def interpolated(knots: np.ndarray, width: int, height: int) -> np.ndarray:
    """[rows, columns, ..] to [height, width, ..] linearly, the same on every processor.

    A matrix product sums in the order that suits the processor, and one pixel of some hundred
    pictures would differ by one. What is rounded here is what the fused multiply-add of the
    processors rounded that drew what the shipped models know.
    """
    return _along(1, _along(0, knots, height), width)


def mottled(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Greyish smooth colour fields with finer mottling: float32[height, width, 3]."""

    def knots(per_side: int) -> tuple[int, int]:
        return 1 + round(per_side * height / SIDE), 1 + round(per_side * width / SIDE)

    (rows, columns), (fine_rows, fine_columns) = knots(_COARSE), knots(_MIDDLE)
    base = rng.uniform(90, 165) + rng.normal(0, 8, 3)
    coarse = rng.standard_normal((rows, columns, 3), dtype=np.float32) * (14, 14, 14)
    middle = rng.standard_normal((fine_rows, fine_columns), dtype=np.float32) * rng.uniform(4, 12)
    field = interpolated(coarse, width, height)
    mottling = interpolated(middle, width, height)
    return (base + field + mottling[..., None]).astype(np.float32)


@dataclass(frozen=True)
class Style:
    """How a world looks.

    Attributes:
        colours: the hue behind each colour word, RGB.
        background: random numbers, width, height -> float32[height, width, 3].
        plates: paper and ink of each tone, RGB.
        frame: width of the line around a plate, in pixels.
    """

    colours: Mapping[str, tuple[int, int, int]]
    background: Callable[[np.random.Generator, int, int], np.ndarray]
    plates: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]]
    frame: int = 0


_LIGHT, _DARK = (232, 232, 232), (32, 32, 32)
MOTTLED = Style(words.COLOURS, mottled, {"light": (_LIGHT, _DARK), "dark": (_DARK, _LIGHT)})


def draw(
    scene: Layout,
    rng: np.random.Generator,
    width: int = SIDE,
    height: int = SIDE,
    style: Style = MOTTLED,
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8[height, width, 3] and owners uint8[height, width].

    An owner is 0 for background, 1 + i for object i, then the plates in their order.
    """
    canvas = style.background(rng, width, height)
    owners = np.zeros((height, width), np.uint8)
    for index, thing in enumerate(scene.things):
        draw_thing(canvas, owners, thing, index + 1, rng, style)
    for index, plate in enumerate(scene.plates, start=len(scene.things) + 1):
        _draw_plate(canvas, owners, plate, index, rng, style)
    return exposed(canvas, rng), owners


def exposed(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The canvas, which is used up, as a camera would show it: uint8.

    Sensor noise everywhere: neighbouring patches are alike, never equal.
    """
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * 5.0
    return np.clip(canvas, 0, 255).astype(np.uint8)


def draw_thing(
    canvas: np.ndarray,
    owners: np.ndarray,
    thing: Thing,
    owner: int,
    rng: np.random.Generator,
    style: Style,
) -> None:
    """Paint one object on a canvas float32[height, width, 3] and its owners."""
    height, width = owners.shape
    reach = int(thing.radius) + 2
    x0, x1 = max(0, int(thing.x) - reach), min(width, int(thing.x) + reach + 1)
    y0, y1 = max(0, int(thing.y) - reach), min(height, int(thing.y) + reach + 1)
    dy, dx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    dx, dy = dx + 0.5 - thing.x, dy + 0.5 - thing.y
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    cover = np.clip(0.5 - distance(thing.shape, u, v, thing.radius), 0, 1)[..., None]
    colour = np.array(style.colours[thing.colour], np.float32) + rng.normal(0, 8, 3)
    ink = _ink(thing.pattern, u, v, rng)[..., None]
    paint = colour * (1 - 0.6 * ink)
    window = canvas[y0:y1, x0:x1]
    window += cover * (paint - window)
    owners[y0:y1, x0:x1][cover[..., 0] > 0.5] = owner


def distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance (negative inside) to a shape of this radius around the origin; y points down.

    The star's is approximate, which only softens its edge.
    """
    if shape == "circle":
        return np.hypot(u, v) - radius
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.74 * radius) - 0.26 * radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.84 * radius
    if shape == "triangle":
        sides = 0.866 * np.abs(u) - 0.5 * v - 0.5 * radius
        return np.maximum(sides, v - 0.5 * radius)
    if shape == "cross":
        arm = 0.3 * radius
        across = np.maximum(np.abs(u) - 0.95 * radius, np.abs(v) - arm)
        return np.minimum(across, np.maximum(np.abs(v) - 0.95 * radius, np.abs(u) - arm))
    # star: the outline's radius swings between an outer and an inner one, five times a turn
    turn = (np.arctan2(u, -v) / (2 * np.pi) * 5) % 1.0
    outline = radius * (0.42 + 0.58 * np.abs(2 * turn - 1) ** 1.3)
    return 0.75 * (np.hypot(u, v) - outline)


def _ink(pattern: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the pattern darkens the object, 0 to 1."""
    period, phase = rng.uniform(5.0, 6.0), rng.uniform(0, 5)
    if pattern == "striped":
        return ((u + v * 0.5 + phase) % period < period * 0.45).astype(np.float32)
    if pattern == "dotted":
        du, dv = (u + phase) % period - period / 2, (v + phase) % period - period / 2
        return (du * du + dv * dv < 3.2).astype(np.float32)
    return np.zeros_like(u)


def _draw_plate(
    canvas: np.ndarray,
    owners: np.ndarray,
    plate: Plate,
    owner: int,
    rng: np.random.Generator,
    style: Style,
) -> None:
    x0, y0 = plate.x - plate.width // 2, plate.y - plate.height // 2
    ground, ink = (np.array(colour, np.float32) for colour in style.plates[plate.tone])
    paper = np.full((plate.height, plate.width, 3), ground + rng.normal(0, 6), np.float32)
    text = glyphs.line(plate.text)
    paper[3 : 3 + text.shape[0], 3 : 3 + text.shape[1]][text] = ink
    if style.frame:
        edge = np.ones(paper.shape[:2], bool)
        edge[style.frame : -style.frame, style.frame : -style.frame] = False
        paper[edge] = ink
    canvas[y0 : y0 + plate.height, x0 : x0 + plate.width] = paper
    owners[y0 : y0 + plate.height, x0 : x0 + plate.width] = owner
