"""Where the training of MetaCompress starts: at random as published, or where tokens differ.

With W_q = W_k = W a row of P looks at tokens that are like its own pooled one in the space that W
spans. Random W spans any; the directions in which a model's tokens vary make likeness mean
something from the first step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveate import ops
from foveate.attach import attach
from foveate.compressor import VisualTokens
from foveate.errors import InputError
from foveate.learned import LearnedCompressor
from foveate.methods.metacompress import MetaCompress
from foveate.training.batches import Lesson, collate
from foveate.training.learning import Start
from foveate.training.student import frozen
from foveate.training.teacher import Entry
from foveate.training.watching import Watching


def principal_directions(
    tokens: Float[Tensor, "k d"], dim: int, *, sharpness: float = 8.0, whiten: bool = False
) -> Float[Tensor, "d c"]:
    """W (d, d_c) of the `dim` directions in which `tokens` vary most around their mean.

    The scale is such that a token's logit for itself, |(x - mean) W|^2 / sqrt(d_c), is `sharpness`
    on average; with omega = 1 and no pooling.

    Args:
        tokens: (k, d) some tokens of a model.
        dim: d_c, at most d.
        sharpness: the mean logit of a token for itself.
        whiten: whether every direction counts the same, instead of by its variance.
    """
    wide = tokens.double()
    centred = wide - wide.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(wide))
    variances, directions = variances.flip(0)[:dim].clamp(min=0), directions.flip(1)[:, :dim]
    if whiten:
        least = variances[0] * 1e-6  # directions without variance are noise
        directions = directions / variances.clamp(min=least).sqrt()
        variances = variances / variances.clamp(min=least)
    # The sign of an eigenvector is free: its largest entry is positive.
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    mean_logit = variances.sum() / dim**0.5
    return (directions * signs * (sharpness / mean_logit).sqrt()).to(tokens.dtype)


def pca_start(sharpness: float = 8.0, whiten: bool = False) -> Start:
    """MetaCompress with W_q = W_k = the principal directions, and minus the mean as the offset.

    Args:
        sharpness, whiten: see `principal_directions`.

    Raises:
        InputError: (by what is returned) the method's `dim` is above the width of a token, or it
            has parameters already.
    """

    def start(method: Any, model: Any, examples: Sequence[Entry]) -> LearnedCompressor:
        if method.net is not None:
            raise InputError(
                "The start pca makes first parameters, and the method has some already.\n"
                "Leave out start=, or take the method without them."
            )
        found: LearnedCompressor = method.initialised(model)
        net: Any = found.net
        width = len(net.query)
        if method.dim > width:
            raise InputError(
                f"The start pca has {width} directions at most, as many as tokens have numbers; "
                f"got dim={method.dim}.\nTake a smaller dim, or start at random."
            )
        tokens = torch.cat([_seen(method, model, each()) for each in examples])
        directions = principal_directions(tokens, method.dim, sharpness=sharpness, whiten=whiten)
        with torch.no_grad():
            net.query.copy_(directions)
            net.key.copy_(directions)
            net.offset.copy_(-tokens.mean(0))
        return found

    return start


@torch.no_grad()
def _seen(method: MetaCompress, model: Any, lesson: Lesson) -> Float[Tensor, "n d"]:
    """The tokens of all pictures of a dialogue as the method sees them, positions added."""

    def look(tokens: VisualTokens) -> Tensor:
        x = tokens.features.float().cpu()
        return x + method.position_scale * ops.sine_positions(*x.shape)

    watching = Watching(method, look)
    shown = collate([lesson]).to(model.device)
    encoded = shown.encoded(model)
    with frozen(model), attach(model, watching, encoded=encoded, _force=True):
        shown.answer_logits(model, encoded)
    return torch.cat(watching.noted)
