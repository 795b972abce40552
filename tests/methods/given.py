"""Visual tokens made by hand."""

from __future__ import annotations

from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

import torch

from foveate.attention import LayerAttention, Logits
from foveate.compressor import Grid, Step, VisualTokens


def rows(*values: Any) -> torch.Tensor:
    """Numbers as a float32 tensor."""
    return torch.tensor(values, dtype=torch.float32)


def tokens(features: torch.Tensor, *grids: Grid, **fields: Any) -> VisualTokens:
    """Tokens in one row of slots, unless grids are given."""
    return VisualTokens(features, grids or (Grid(1, 1, len(features)),), **fields)


def raster(height: int, width: int, frames: int = 1) -> VisualTokens:
    """A raster whose slots hold their own number, 0, 1, 2 .."""
    n = frames * height * width
    return tokens(torch.arange(n, dtype=torch.float32)[:, None], Grid(frames, height, width))


def look(
    *heads: Table[int, Sequence[float]],
    visual: Sequence[int],
    text: Sequence[int],
    question: Sequence[int] = (),
    keys: torch.Tensor | None = None,
    ones: torch.Tensor | None = None,
) -> LayerAttention:
    """Attention of a layer whose probabilities are written down.

    Args:
        heads: for each head, token -> how much it looks at tokens 0, 1 .. of the prompt, up to a
            factor; what a row leaves out is looked at by nothing, and a row that is left out looks
            at all tokens alike.
        visual, text, question: the parts of the prompt, which ends with the text.
        keys: (g, s, d) if they matter beside that.
        ones: (s, d) what the position encoding makes of a vector of ones, if it matters.
    """
    s = max(*visual, *text) + 1
    scale = 0.5  # a method that forgets it squares the proportions
    weights = torch.ones(len(heads) or 1, s, s)
    for head, rows_of in enumerate(heads):
        for row, values in rows_of.items():
            weights[head, row] = 0
            weights[head, row, : len(values)] = torch.tensor(values, dtype=torch.float32)
    return LayerAttention(
        q=weights.clamp(min=1e-30).log() / scale if keys is None else keys[:1],
        k=torch.eye(s)[None] if keys is None else keys,
        logits=Logits(scale),
        offset=0,
        mask=None,
        visual=torch.tensor(visual),
        text=torch.tensor(text),
        question=torch.tensor(question, dtype=torch.long),
        everyone=torch.arange(s),
        last=s - 1,
        ones=None if ones is None else lambda: ones,
    )


def average(steps: Sequence[Step], n: int, total: int) -> float:
    """Visual tokens of a picture of n that a decoder layer runs on, mean over `total` layers."""
    left = {step.layer: step.keep for step in steps}
    now, ran = n, 0
    for layer in range(total):
        now = left.get(layer, now)
        ran += now
    return ran / total


def preset_steps(method: Any, name: str, n: int = 576, total: int = 32) -> list[tuple[int, int]]:
    """(layer, tokens left) of a preset, on a picture of n tokens."""
    made = method(**method.presets[name].fields)
    return [(step.layer, step.keep) for step in made.steps(n, None, total)]
