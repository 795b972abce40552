"""Small video files, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def film(path: Path, greys: Sequence[int], between: int = 2) -> Path:
    """A video of grey frames, 32 by 32, every sixth of them coded by itself.

    Args:
        path: its ending says what kind of file it is.
        greys: of each frame, 0 to 255.
        between: frames in a row that are coded after those behind them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.bit_rate = 4_000_000  # all greys stay apart
        stream.codec_context.gop_size = 6
        stream.codec_context.max_b_frames = between
        for grey in greys:
            shown = np.full((32, 32, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    return path
