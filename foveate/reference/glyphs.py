"""Digits and letters as 5 x 7 bitmaps, so that plates look the same with every font library."""

from __future__ import annotations

import numpy as np

_ROWS: dict[str, str] = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    "a": "01110 10001 10001 11111 10001 10001 10001",
    "c": "01110 10001 10000 10000 10000 10001 01110",
    "e": "11111 10000 10000 11110 10000 10000 11111",
    "h": "10001 10001 10001 11111 10001 10001 10001",
    "k": "10001 10010 10100 11000 10100 10010 10001",
    "l": "10000 10000 10000 10000 10000 10000 11111",
    "m": "10001 11011 10101 10101 10001 10001 10001",
    "r": "11110 10001 10001 11110 10100 10010 10001",
    "s": "01111 10000 10000 01110 00001 00001 11110",
    "t": "11111 00100 00100 00100 00100 00100 00100",
    "x": "10001 10001 01010 00100 01010 10001 10001",
    "z": "11111 00001 00010 00100 01000 10000 11111",
}
SCALE = 2
WIDTH, HEIGHT = 5 * SCALE, 7 * SCALE


def bitmap(character: str) -> np.ndarray:
    """The glyph as bool[HEIGHT, WIDTH], True where there is ink."""
    rows = [[pixel == "1" for pixel in row] for row in _ROWS[character].split()]
    return np.kron(np.array(rows), np.ones((SCALE, SCALE))).astype(bool)


def line(text: str) -> np.ndarray:
    """Several glyphs side by side, two pixels apart: bool[HEIGHT, width]."""
    gap = np.zeros((HEIGHT, 2), bool)
    parts = [part for character in text for part in (bitmap(character), gap)]
    return np.concatenate(parts[:-1], axis=1)
