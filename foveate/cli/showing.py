"""What a command is given to look at, and the Python lines that load it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.errors import InputError
from foveate.evaluation.videos import FRAMES, SUFFIXES, frames_of
from foveate.pictures import load_image

CLIP = "clip:"


@dataclasses.dataclass(frozen=True)
class Shown:
    """One image, or one video.

    Attributes:
        pictures: the image, or the video's frames.
        is_video: which of them it is.
        python: the lines that load it, as `picture` or `frames`.
    """

    pictures: tuple[Image.Image, ...]
    is_video: bool
    python: tuple[str, ...]

    @property
    def drawable(self) -> Any:
        """As `foveate.drawing` takes it."""
        return self.pictures if self.is_video else self.pictures[0]

    @property
    def name(self) -> str:
        """What the lines call it."""
        return "frames" if self.is_video else "picture"

    def asked(self, question: str) -> list[str]:
        """The lines from here to a model's inputs."""
        video = ", is_video=True" * self.is_video
        of = "frames" if self.is_video else "[picture]"
        return [
            *self.python,
            f"text = conversation(processor, [{question!r}]{video})",
            f"inputs = model_inputs(processor, model, [text], [{of}]{video})",
        ]


def shown(place: str, frames: int | None = None) -> Shown:
    """An image file, `scene:N`, a video file, or `clip:N`.

    Args:
        place: as it was typed.
        frames: how many are taken of a video.

    Raises:
        InputError: there is no such thing, or it cannot be read.
        MissingDependency: a video file without PyAV.
    """
    count = FRAMES if frames is None else frames
    if place.startswith(CLIP):
        return _clip(place, count)
    if Path(place).suffix.lower() not in SUFFIXES:
        lines = "from foveate.pictures import load_image", f"picture = load_image({place!r})"
        return Shown((load_image(place),), False, lines)
    if not Path(place).is_file():
        raise InputError(f"No video {place}.")
    return Shown(
        tuple(each.load() for each in frames_of(Path(place), count)),
        True,
        (
            "from pathlib import Path",
            "from foveate.evaluation.videos import frames_of",
            f"frames = [each.load() for each in frames_of(Path({place!r}), {count})]",
        ),
    )


def _clip(place: str, count: int) -> Shown:
    number = place.removeprefix(CLIP)
    if not number.isdigit():
        raise InputError(f"Clips are numbered from 0: clip:0, clip:1 ...; got {place!r}.")
    from foveate import reference

    (found,) = reference.clip_samples("test", 1, start=int(number), frames=count)
    drawn = f"reference.clip_samples('test', 1, start={number}, frames={count})"
    lines = "from foveate import reference", f"frames = next({drawn}).frames"
    return Shown(tuple(found.frames), True, lines)
