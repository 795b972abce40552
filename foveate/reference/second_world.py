"""A second world for asking whether what was learned in the first carries over.

Words and questions are the first world's. What differs is everything that a learned compressor
could have come to rely on: loud backgrounds (stripes, checks, gradients, blotches), another hue
behind each colour word, mostly small objects, few or many of them, crowded together or along the
borders, turned by any angle, and framed, tinted plates.
"""

from __future__ import annotations

import numpy as np

from foveate.reference.layout import Arrangement, Propose, anywhere
from foveate.reference.rendering import Style, interpolated

HUES: dict[str, tuple[int, int, int]] = {
    "red": (190, 20, 66),
    "orange": (255, 112, 52),
    "yellow": (206, 196, 16),
    "green": (118, 196, 44),
    "cyan": (20, 156, 166),
    "blue": (84, 132, 250),
    "purple": (176, 82, 226),
    "pink": (255, 108, 168),
}
_PLATES = {
    "light": ((244, 226, 176), (60, 30, 90)),
    "dark": ((40, 56, 20), (220, 240, 180)),
}
# How wide a crowd is, and how far from the border its band reaches, in shares of the canvas.
_CROWD, _BAND = 0.16, 0.22
_ELSEWHERE = 0.3


def crowded(rng: np.random.Generator, width: int, height: int) -> Propose:
    """Around one or two middles, or along the border; now and then anywhere."""
    everywhere = anywhere(rng, width, height)
    size = np.array([width, height])
    middles = rng.uniform(0.2, 0.8, (int(rng.integers(1, 3)), 2))
    bordered = rng.random() < 0.4

    def propose(
        rng: np.random.Generator, half_width: float, half_height: float
    ) -> tuple[float, float]:
        if rng.random() < _ELSEWHERE:
            return everywhere(rng, half_width, half_height)
        if bordered:
            place = rng.uniform(0, 1, 2)
            axis = int(rng.integers(2))
            place[axis] = abs(int(rng.integers(2)) - rng.uniform(0, _BAND))
        else:
            place = rng.normal(middles[rng.integers(len(middles))], _CROWD)
        half = np.array([half_width, half_height]) + 1
        x, y = np.clip(place * size, half, size - half)
        return float(x), float(y)

    return propose


def textured(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Two tinted tones mixed by one of four patterns: float32[height, width, 3]."""
    middle, contrast = rng.uniform(95, 160), rng.uniform(25, 55)
    low, high = middle - contrast, middle + contrast
    tints = rng.normal(0, 12, (2, 3))
    share = _MIXTURES[rng.integers(len(_MIXTURES))](rng, width, height)[..., None]
    canvas = (low + tints[0]) * (1 - share) + (high + tints[1]) * share
    return canvas.astype(np.float32)


def _turned(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates of a turned and shifted raster: float[height, width] each."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width] + rng.uniform(0, 32, (2, 1, 1))
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _stripes(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    across, _ = _turned(rng, width, height)
    period = rng.uniform(9, 26)
    return 0.5 + 0.5 * np.clip(3 * np.sin(2 * np.pi * across / period), -1, 1)


def _checks(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    across, down = _turned(rng, width, height)
    period = rng.uniform(20, 40)
    waves = np.sin(2 * np.pi * across / period) * np.sin(2 * np.pi * down / period)
    return 0.5 + 0.5 * np.clip(4 * waves, -1, 1)


def _gradient(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    across, _ = _turned(rng, width, height)
    return (across - across.min()) / np.ptp(across)


def _blotches(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    rows, columns = max(3, height // 12), max(3, width // 12)
    knots = rng.standard_normal((rows, columns))
    smooth = interpolated(knots, width, height)
    return 0.5 + 0.5 * np.clip(3 * smooth, -1, 1)


_MIXTURES = (_stripes, _checks, _gradient, _blotches)

CROWDED = Arrangement((3, 4, 4, 5, 8, 9), ("small", "small", "small", "large"), np.pi, crowded)
LOUD = Style(HUES, textured, _PLATES, frame=1)
