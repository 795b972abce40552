"""Notes what a method would be told, while the model runs as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from foveate.compressor import Compressor, Reads, Stage, VisualTokens
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Watching(Compressor):
    """Keeps everything, and notes something of what a method would be told.

    Attributes:
        method: in whose place it is attached.
        look: makes what is noted.
        noted: of each picture, row by row.
    """

    method: Compressor
    look: Callable[[VisualTokens], Any]
    noted: list[Any] = dataclasses.field(default_factory=list)

    @property
    def stage(self) -> Stage:  # type: ignore[override]
        """The method's."""
        return self.method.stage

    @property
    def reads(self) -> frozenset[Reads]:  # type: ignore[override]
        """What the method reads."""
        return self.method.reads

    @property
    def layers(self) -> tuple[int, ...]:
        """The method's."""
        return self.method.layers

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P = I."""
        self.noted.append(self.look(tokens))
        return Mapping.identity(tokens.n)
