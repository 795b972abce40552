"""Drawing a layout: a noisy low-frequency background, then objects and plates with soft edges."""

from __future__ import annotations

import numpy as np

from foveate.reference import glyphs, words
from foveate.reference.layout import SIDE, Layout, Plate, Thing


def _interpolation(coarse: int) -> np.ndarray:
    """Linear interpolation from `coarse` knots to SIDE pixels: float[SIDE, coarse]."""
    at = np.linspace(0, coarse - 1, SIDE)
    low = np.minimum(at.astype(int), coarse - 2)
    weights = np.zeros((SIDE, coarse), np.float32)
    weights[np.arange(SIDE), low] = 1 - (at - low)
    weights[np.arange(SIDE), low + 1] = at - low
    return weights


_COARSE, _MIDDLE = _interpolation(5), _interpolation(20)


def draw(scene: Layout, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8[128, 128, 3] and owners uint8[128, 128].

    An owner is 0 for background, 1 + i for object i, then the plates in their order.
    """
    canvas = _background(rng)
    owners = np.zeros((SIDE, SIDE), np.uint8)
    for index, thing in enumerate(scene.things):
        _draw_thing(canvas, owners, thing, index + 1, rng)
    for index, plate in enumerate(scene.plates, start=len(scene.things) + 1):
        _draw_plate(canvas, owners, plate, index, rng)
    # Sensor noise everywhere: neighbouring patches are alike, never equal.
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * 5.0
    return np.clip(canvas, 0, 255).astype(np.uint8), owners


def _background(rng: np.random.Generator) -> np.ndarray:
    """Greyish smooth colour fields with finer mottling: float32[128, 128, 3]."""
    base = rng.uniform(90, 165) + rng.normal(0, 8, 3)
    coarse = rng.standard_normal((5, 5, 3), dtype=np.float32) * (14, 14, 14)
    middle = rng.standard_normal((20, 20), dtype=np.float32) * rng.uniform(4, 12)
    field = np.einsum("yi,ijc,xj->yxc", _COARSE, coarse, _COARSE, optimize=True)
    mottling = _MIDDLE @ middle @ _MIDDLE.T
    return (base + field + mottling[..., None]).astype(np.float32)


def _draw_thing(
    canvas: np.ndarray, owners: np.ndarray, thing: Thing, owner: int, rng: np.random.Generator
) -> None:
    reach = int(thing.radius) + 2
    x0, x1 = max(0, int(thing.x) - reach), min(SIDE, int(thing.x) + reach + 1)
    y0, y1 = max(0, int(thing.y) - reach), min(SIDE, int(thing.y) + reach + 1)
    dy, dx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    dx, dy = dx + 0.5 - thing.x, dy + 0.5 - thing.y
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    cover = np.clip(0.5 - distance(thing.shape, u, v, thing.radius), 0, 1)[..., None]
    colour = np.array(words.COLOURS[thing.colour], np.float32) + rng.normal(0, 8, 3)
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
    canvas: np.ndarray, owners: np.ndarray, plate: Plate, owner: int, rng: np.random.Generator
) -> None:
    x0, y0 = plate.x - plate.width // 2, plate.y - plate.height // 2
    ground, ink = (232, 32) if plate.tone == "light" else (32, 232)
    paper = np.full((plate.height, plate.width, 3), ground + rng.normal(0, 6), np.float32)
    text = glyphs.line(plate.text)
    paper[3 : 3 + text.shape[0], 3 : 3 + text.shape[1]][text] = ink
    canvas[y0 : y0 + plate.height, x0 : x0 + plate.width] = paper
    owners[y0 : y0 + plate.height, x0 : x0 + plate.width] = owner
