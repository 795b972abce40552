"""Where the training of MetaCompress starts: at random as published, or where tokens differ.

With W_q = W_k = W a row of P looks at tokens that are like its own pooled one in the space that W
spans. Random W spans any; the directions in which a model's tokens vary make likeness mean
something from the first step on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveate import ops
from foveate.methods.metacompress import MetaCompress
from foveate.training.features import Packed, join

STARTS = ("random", "pca")


def principal_directions(
    tokens: Float[Tensor, "k d"], dim: int, *, sharpness: float = 8.0, whiten: bool = False
) -> Float[Tensor, "d c"]:
    """W (d, d_c) of the `dim` directions in which `tokens` vary most, widest first.

    What all tokens share is taken out of the directions, as it would favour the same sources in
    every row. The scale is such that a token's logit for itself, (x W)^2 / sqrt(d_c) without that
    share, is `sharpness` on average; with omega = 1 and no pooling.

    Args:
        tokens: (k, d) some tokens of a model.
        dim: d_c, at most d - 1.
        sharpness: the mean logit of a token for itself.
        whiten: whether every direction counts the same, instead of by its variance.
    """
    wide = tokens.double()
    mean = wide.mean(0)
    centred = wide - mean
    shared = mean / mean.norm().clamp(min=torch.finfo(torch.float64).tiny)
    centred = centred - (centred @ shared)[:, None] * shared
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(wide))
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim]
    variances = variances.clamp(min=0)
    if whiten:
        least = variances[0] * 1e-6  # directions without variance are noise
        directions = directions / variances.clamp(min=least).sqrt()
        variances = variances / variances.clamp(min=least)
    # The sign of an eigenvector is free: the largest entry is positive.
    signs = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    mean_logit = variances.sum() / dim**0.5
    return (directions * signs * (sharpness / mean_logit).sqrt()).to(tokens.dtype)


def pca_start(
    method: MetaCompress,
    model: Any,
    pictures: Sequence[Packed],
    *,
    sharpness: float = 8.0,
    whiten: bool = False,
) -> MetaCompress:
    """MetaCompress with W_q = W_k = the principal directions of some pictures' tokens.

    Args:
        method: its fields; parameters are made anew.
        model: the model.
        pictures: features of a sample of training pictures; a few dozen are enough.
        sharpness, whiten: see `principal_directions`.
    """
    found = method.initialised(model)
    tokens = torch.cat([_seen(method, each) for each in pictures])
    start = principal_directions(tokens, method.dim, sharpness=sharpness, whiten=whiten)
    net: Any = found.net
    with torch.no_grad():
        net.query.copy_(start)
        net.key.copy_(start)
    assert isinstance(found, MetaCompress)
    return dataclasses.replace(found, net=net)


def _seen(method: MetaCompress, packed: Packed) -> Float[Tensor, "n d"]:
    """The tokens of all pictures of a prompt as the method sees them, positions added."""
    parts = []
    for out in join([packed]).inputs["mm_encoder_outputs"].values():
        pooled = out.pooler_output
        for each in pooled if isinstance(pooled, list) else [pooled.flatten(0, -2)]:
            x = each.float()
            parts.append(x + method.position_scale * ops.sine_positions(*x.shape))
    return torch.cat(parts)
