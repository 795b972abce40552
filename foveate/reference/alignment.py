"""Between the stages: the projector learns to say each patch in the decoder's own words.

What a patch shows becomes the sum of the embeddings of the words for it, and where its object is
becomes a smooth code. It takes seconds, on the features alone, and spares the decoder the long
plateau before looking something up is learned at all: the word "red" and a red patch then share a
direction from the first step. Every patch takes part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from foveate.reference import words
from foveate.reference.architecture import position_code
from foveate.reference.labels import PATCH_CLASSES
from foveate.reference.layout import SIDE

_STEPS, _BATCH, _RATE = 400, 2048, 3e-3
_WORDS = {
    "colour": tuple(words.COLOURS),
    "shape": words.SHAPES,
    "size": words.SIZES,
    "pattern": words.PATTERNS,
    "tone": words.TONES,
    "letter": words.LETTERS,
    "tens": words.DIGITS,
    "ones": words.DIGITS,
}
# A word's embedding and, where the sort is one of these, the word for the sort.
_SORTS = (None, "thing", "number", "sign")


def patch_targets(
    table: Tensor,
    labels: dict[str, Tensor],
    offsets: Tensor,
    grid: int,
    size: float,
) -> Tensor:
    """What each projected patch should be: float[b, grid * grid, width].

    Args:
        table: float[vocabulary, width] the decoder's embeddings.
        labels, offsets: as `labels.patch_labels` gives them.
        grid: patches per side.
        size: root mean square of the place code.
    """
    vocabulary = words.vocabulary()
    target = torch.zeros(*offsets.shape[:2], table.shape[1])
    for name in PATCH_CLASSES:
        known: Sequence[str | None] = _SORTS if name == "sort" else _WORDS[name]
        for index, word in enumerate(known):
            if word is not None:
                vector = table[vocabulary[word]]
                # Turned round, so that 47 is not 74.
                vector = vector.roll(1) if name == "ones" else vector
                target += (labels[name] == index)[..., None] * vector
    middles = (torch.arange(grid) + 0.5) * SIDE / grid
    here = torch.stack([middles.repeat(grid), middles.repeat_interleave(grid)], dim=-1)
    centres = here + 16 * offsets.nan_to_num(0.0)
    code = size * 2**0.5 * position_code(centres / 8 - 0.5, table.shape[1])
    thirds = (centres * 3 / SIDE).long().clamp(0, 2)
    regions = torch.stack([table[vocabulary[word]] for word in words.REGION_WORDS])
    named = regions[3 * thirds[..., 1] + thirds[..., 0]]
    return target + code + named


def align(model: PreTrainedModel, batches: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Fit the projector to the targets.

    Args:
        model: its projector is changed, nothing else.
        batches: whitened features float[b, n, d] and targets float[b, n, width].

    Returns:
        The mean squared error of each step, relative to the targets' variance.
    """
    features = torch.cat([each.flatten(0, 1) for each, _ in batches])
    targets = torch.cat([each.flatten(0, 1) for _, each in batches])
    projector = model.model.multi_modal_projector
    optimiser = torch.optim.AdamW(projector.parameters(), lr=_RATE)
    variance, errors = targets.var(), []
    for step in range(_STEPS):
        chosen = torch.randint(len(features), (_BATCH,))
        error = F.mse_loss(projector(features[chosen]), targets[chosen]) / variance
        error.backward()
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 - step / _STEPS)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        errors.append(error.item())
    return errors
