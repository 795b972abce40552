"""Features on one scale in every direction while the projector learns, folded into it afterwards.

A CLIP tower's features have a large common part and directions whose sizes differ a hundredfold;
read raw, what tells one patch from another is a small share of what the decoder's norm lets pass,
and looking anything up is not learned in an hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Directions smaller than this share of the root mean square are left small: they are mostly noise.
_FLOOR = 0.15


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) matrix, with mean float[d] and matrix float[d, d]."""

    mean: Tensor
    matrix: Tensor

    @staticmethod
    def of(features: Tensor) -> Whitening:
        """The transform that makes these features (float[..., d]) white, roughly."""
        flat = features.flatten(0, -2).double()
        centred = flat - flat.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        scale = (values.clamp(min=0) + _FLOOR**2 * values.mean()) ** -0.5
        matrix = vectors * scale @ vectors.T
        return Whitening(flat.mean(0).float(), matrix.float())

    def __call__(self, features: Tensor) -> Tensor:
        """Whitened features: float[..., d]."""
        return (features - self.mean) @ self.matrix

    @torch.no_grad()
    def fold(self, linear: nn.Linear) -> None:
        """Make a layer that was trained on whitened features take raw ones."""
        weight = linear.weight @ self.matrix.T
        linear.bias.sub_(weight @ self.mean)
        linear.weight.copy_(weight)

    @torch.no_grad()
    def unfold(self, linear: nn.Linear) -> None:
        """Make a layer that was trained on raw features take white ones: `fold` undone."""
        linear.bias.add_(linear.weight @ self.mean)
        linear.weight.copy_(torch.linalg.solve(self.matrix, linear.weight.T).T)
