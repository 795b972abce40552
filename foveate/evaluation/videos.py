"""Frames of video files, decoded when they are looked at."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import InputError, MissingDependency
from foveate.evaluation.stored import Stored

if TYPE_CHECKING:
    from PIL import Image

FRAMES = 8  # of a video, unless more are asked for
SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")


def frames_of(file: Path, count: int = FRAMES) -> tuple[Stored, ...]:
    """The frames in the middles of equally long parts of a video; of a shorter one some twice.

    Args:
        file: the video.
        count: how many.

    Raises:
        MissingDependency: PyAV is not installed.
    """
    _av()
    which = f"{file.resolve()} {_state(file)} of {count}"
    return tuple(
        Stored(
            hashlib.sha256(f"{which}: {index}".encode()).hexdigest(),
            functools.partial(_frame, file, count, index),
        )
        for index in range(count)
    )


def _state(file: Path) -> tuple[int, int]:
    """What changes when a file does."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _frame(file: Path, count: int, index: int) -> Image.Image:
    return _decoded(file, count, _state(file))[index].copy()


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependency("av", "A video file", "video") from error
    return av


# A dialogue's frames are looked at one after the other.
@functools.lru_cache(maxsize=1)
def _decoded(file: Path, count: int, state: tuple[int, int]) -> list[Image.Image]:
    """All frames that are taken of a video, as long as its state is that.

    Raises:
        InputError: it cannot be decoded.
    """
    av = _av()
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise InputError(f"{file} holds no video stream.")
            stream = container.streams.video[0]
            # Packets are read and not decoded: that is fast, and counts what a header may not know.
            packets = [
                (each.pts, each.dts or 0, each.is_keyframe)
                for each in container.demux(stream)
                if each.pts is not None
            ]
            if not packets:
                raise InputError(f"{file} holds no frame with a time.\nConvert it to MP4 first.")
            times = sorted(shown for shown, _, _ in packets)
            middles = [times[(2 * i + 1) * len(times) // (2 * count)] for i in range(count)]
            # By the times of decoding, as files are searched: never behind those of showing.
            keys = {shown: min(shown, decoded) for shown, decoded, is_key in packets if is_key}
            found = dict(_at(container, stream, sorted(set(middles)), keys))
            return [found[each] for each in middles]
    except av.FFmpegError as error:
        raise InputError(f"{file} is no video that can be read: {error.strerror}.") from error


def _at(
    container: Any, stream: Any, times: Sequence[int], keys: Mapping[int, int]
) -> Iterator[tuple[int, Image.Image]]:
    """The picture shown at each of some times.

    Args:
        container, stream: of the video.
        times: when they are shown.
        keys: when the frames are shown that need no other, and where to look for them.
    """
    for time in times:
        before = [key for key in keys if key <= time]
        container.seek(keys[max(before)] if before else 0, stream=stream)
        last = None
        for frame in container.decode(stream):
            last = frame
            if frame.pts is not None and frame.pts >= time:
                break
        if last is None:
            raise InputError(f"A video ends before its frame at {time} ({container.name}).")
        yield time, last.to_image().convert("RGB")
