"""Pictures of what a mapping keeps: one more reader of P.

    with foveate.attach(model, "visionzip", keep=64) as run:
        model.generate(**inputs)
    drawing.draw(image, run.items[0]).save("kept.png")

A token that was kept alone is shown clearly, a dropped one fades, and tokens that were merged into
one share a tint and an outline, with a dot on the slot where the merged token lives.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.errors import InputError

if TYPE_CHECKING:
    from foveate.attach.forward import Item
    from foveate.compressor import Grid

SIDE = 512  # pixels of a panel's longer side
_GAP, _BAR = 8, 28
_FADED, _TINT = 0.2, 0.35
_PAPER, _INK, _LINE = (255, 255, 255), (33, 37, 41), (255, 255, 255)
_HOT, _VEIL = (220, 30, 30), 0.8
_PANELS_A_ROW = 4
# Successive hues this far apart stay distinct for any number of groups.
_GOLDEN = 0.618034


def draw(
    picture: Image.Image | Sequence[Image.Image],
    item: Item,
    *,
    layer: int | None = None,
    title: str | None = None,
    side: int = SIDE,
) -> Image.Image:
    """What was kept of one image or video.

    Args:
        picture: the image that went into the processor; for a video its frames.
        item: what a run says about it (`run.items`).
        layer: the decoder layer whose tokens are drawn; None for those that reach the last one.
        title: text above it; "n -> m tokens" if None, nothing if empty.
        side: pixels of the longer side of each panel. An image has one panel for each raster that
            the model made of it (base view, mosaic of tiles), a video one for each step in time.

    Raises:
        InputError: there are fewer frames than the model looked at.
    """
    frames = [picture] if isinstance(picture, Image.Image) else list(picture)
    mapping = item.mapping if layer is None else item.at(layer)
    owner = mapping.owner().cpu().numpy()
    anchors = mapping.anchors.cpu().numpy()
    anchored = np.zeros(item.n, bool)
    anchored[anchors] = True
    # At least one entry: everything may have been withdrawn.
    sizes = np.bincount(owner[owner >= 0], minlength=max(1, mapping.m))
    panels = [
        _panel(shown, owner[cells].reshape(shape), anchored[cells].reshape(shape), sizes)
        for shown, cells, shape in _rasters(frames, item.grids, side)
    ]
    text = f"{item.n} -> {mapping.m} tokens" if title is None else title
    return sheet(panels, [text] if text else [], columns=_PANELS_A_ROW)


def heat(
    picture: Image.Image | Sequence[Image.Image],
    grids: Sequence[Grid],
    values: Sequence[float],
    *,
    title: str = "",
    side: int = SIDE,
) -> Image.Image:
    """A value of each slot laid over one image or video, such as relevance or attention.

    Args:
        picture: as `draw` takes it.
        grids: the rasters that the slots form (`run.items[0].grids`).
        values: of the n slots; from the least that is above zero to the largest they go from clear
            to red. At and below zero nothing is laid over.
        title: text above it.
        side: as `draw` takes it.

    Raises:
        InputError: there are not as many values as slots, or fewer frames than the model saw.
    """
    shares = np.asarray(values, np.float32).clip(min=0)
    if shares.shape != (sum(grid.size for grid in grids),):
        raise InputError(
            f"Expected a value for each of the {sum(grid.size for grid in grids)} slots; got "
            f"{shares.size}."
        )
    shares = shares / max(float(shares.max()), np.finfo(np.float32).tiny)
    frames = [picture] if isinstance(picture, Image.Image) else list(picture)
    panels = [
        _heated(shown, shares[cells].reshape(shape))
        for shown, cells, shape in _rasters(frames, grids, side)
    ]
    return sheet(panels, [title] if title else [], columns=_PANELS_A_ROW)


def enlarged(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """The whole picture at the size of a panel, nothing drawn on it."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def bare(drawn: Image.Image) -> Image.Image:
    """A drawing that has no title, without its margin."""
    return drawn.crop((_GAP, _GAP, drawn.width - _GAP, drawn.height - _GAP))


def save(image: Image.Image, path: str | Path) -> Path:
    """Write a picture, its folder made if absent; a half-written one never stays.

    Raises:
        InputError: the name ends in no known kind of image.
    """
    target = Path(path)
    kind = Image.registered_extensions().get(target.suffix.lower())
    if kind is None:
        raise InputError(f"Cannot write {path}: name it .png (or .jpg, .webp).")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    image.save(partial, kind)
    partial.replace(target)
    return target


def sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str] = (), columns: int = 4
) -> Image.Image:
    """Pictures side by side, each under its label; one label for several stands above them all.

    Labels may have several lines.
    """
    columns = min(columns, len(pictures))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    each = len(labels) == len(pictures)
    bar = _BAR * max((label.count("\n") + 1 for label in labels), default=0)
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(columns)]
    heights = [max(one.height for one in row) + (bar if each else 0) for row in rows]
    above = 0 if each else bar
    whole = Image.new(
        "RGB",
        (sum(widths) + _GAP * (columns + 1), sum(heights) + _GAP * (len(rows) + 1) + above),
        _PAPER,
    )
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=16)
    if above:
        pen.text((_GAP, _GAP), labels[0], _INK, font)
    y = _GAP + above
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        x = _GAP
        for place, (one, width) in enumerate(zip(row, widths, strict=False)):
            if each:
                pen.text((x, y), labels[number * columns + place], _INK, font)
            whole.paste(one, (x, y + (bar if each else 0)))
            x += width + _GAP
        y += height + _GAP
    return whole


def _rasters(
    frames: Sequence[Image.Image], grids: Sequence[Grid], side: int
) -> Iterator[tuple[Image.Image, slice, tuple[int, int]]]:
    """What each raster of each step in time shows, its slots, and its height and width."""
    first = 0
    for grid in grids:
        for frame in _frames(frames, grid):
            cells = slice(first, first + grid.height * grid.width)
            yield _cut(frame, grid, side), cells, (grid.height, grid.width)
            first = cells.stop


def _frames(frames: Sequence[Image.Image], grid: Grid) -> list[Image.Image]:
    """The frame behind each step in time of a raster: models may fuse or skip frames."""
    if grid.frames == 1:
        return [frames[0]]
    if len(frames) < grid.frames:
        raise InputError(
            f"The model looked at {grid.frames} steps in time; {len(frames)} frames were given.\n"
            "Pass all the frames that went into the processor."
        )
    return [frames[step * len(frames) // grid.frames] for step in range(grid.frames)]


def _cut(frame: Image.Image, grid: Grid, side: int) -> Image.Image:
    """The part of the frame that a raster shows, at the size of a panel."""
    left, top, right, bottom = grid.box
    box = (left * frame.width, top * frame.height, right * frame.width, bottom * frame.height)
    scale = side / max(box[2] - box[0], box[3] - box[1])
    size = (
        max(grid.width, round((box[2] - box[0]) * scale)),
        max(grid.height, round((box[3] - box[1]) * scale)),
    )
    return frame.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=box)


def _cells(picture: Image.Image, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of the raster that each pixel row and column lies in."""
    y, x = np.arange(picture.height), np.arange(picture.width)
    return (y * height // picture.height)[:, None], (x * width // picture.width)[None]


def _heated(picture: Image.Image, shares: np.ndarray) -> Image.Image:
    """One raster under its values float[h, w] from 0 to 1."""
    here = shares[_cells(picture, *shares.shape)][..., None]
    pixels = np.asarray(picture, np.float32)
    grey = pixels.mean(-1, keepdims=True)
    shown = (1 - _VEIL * here) * ((pixels + grey) / 2) + _VEIL * here * np.array(_HOT, np.float32)
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def _panel(
    picture: Image.Image, owner: np.ndarray, anchored: np.ndarray, sizes: np.ndarray
) -> Image.Image:
    """One raster.

    Args:
        picture: what it shows.
        owner: int[h, w] the row that each slot went to, -1 if it was dropped.
        anchored: bool[h, w] whether a row lives there.
        sizes: int[m] slots of each row, over all rasters.
    """
    height, width = owner.shape
    here = owner[_cells(picture, height, width)]
    pixels = np.asarray(picture, np.float32)
    merged = (here >= 0) & (sizes[here.clip(0)] > 1)
    tints = np.array([_colour(row) for row in range(len(sizes))], np.float32).reshape(-1, 3)
    dull = _FADED * pixels + (1 - _FADED) * np.float32(238)
    tinted = (1 - _TINT) * pixels + _TINT * tints[here.clip(0)] if len(tints) else pixels
    shown = np.where((here < 0)[..., None], dull, np.where(merged[..., None], tinted, pixels))
    # An outline wherever neighbouring cells went to different rows.
    edge = np.zeros(here.shape, bool)
    edge[1:] |= here[1:] != here[:-1]
    edge[:, 1:] |= here[:, 1:] != here[:, :-1]
    # Kept cells that touch each other are told apart by the same line.
    shown[edge] = _LINE
    out = Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(out)
    radius = max(1.5, min(picture.height / height, picture.width / width) / 8)
    for row, column in np.argwhere(anchored & (owner >= 0)):
        if sizes[owner[row, column]] > 1:
            centre = (column + 0.5) * picture.width / width, (row + 0.5) * picture.height / height
            pen.ellipse(
                [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius],
                fill=_colour(int(owner[row, column])),
                outline=_INK,
            )
    return out


def _colour(row: int) -> tuple[int, int, int]:
    """A colour of its own for each row."""
    red, green, blue = colorsys.hsv_to_rgb(row * _GOLDEN % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
