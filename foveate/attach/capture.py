"""What was read while a picture was encoded, kept until the language model starts."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from foveate.adapters.base import Layout


@dataclasses.dataclass(eq=False)
class Capture:
    """One call that encoded images or videos.

    Attributes:
        modality: ``"image"`` or ``"video"``.
        layouts: one for each image (or tile) of the call.
        rows: (R, c) input rows of the projector, flattened over the call.
        cls: (t, c) CLS outputs of the selected block, one a tile; None without CLS.
        attention, keys, wide_attention, wide_keys: per tower token (CLS apart), flattened over
            the call; None unless read. See `VisualTokens`.
        alive: (t, tokens) which of a tile's tokens (CLS included) stand for something, where tiles
            that run together are left with different numbers; None for all.
        cells: per tower token, the distinct tower output behind it; None if the tower is stock.
        seconds: time the call took, measured on the host.
    """

    modality: str
    layouts: list[Layout]
    rows: Tensor | None = None
    cls: Tensor | None = None
    attention: Tensor | None = None
    keys: Tensor | None = None
    wide_attention: Tensor | None = None
    wide_keys: Tensor | None = None
    alive: Tensor | None = None
    cells: Tensor | None = None
    seconds: float = 0.0

    @property
    def placeholders(self) -> int:
        """Placeholders that this call's features fill."""
        return sum(layout.length for layout in self.layouts)
