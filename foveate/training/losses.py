"""What a learned compressor is trained for: the full model's answers, from few and distinct tokens.

MetaCompress (arXiv 2603.21701), Eq. 5 and 10. Pure functions of what the models said and of P.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts; 1 and 1 in the paper (section 6.1).

    Attributes:
        entropy: alpha_entropy of Eq. 10, and alpha of Eq. 5.
        collapse: alpha_collapse.
    """

    entropy: float = 1.0
    collapse: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Distribution:
    """What a model holds likely at t places, whole or as its likeliest tokens and the rest.

    Attributes:
        log_probs: (t, k) natural logarithms.
        tokens: (t, k) the ids that they belong to; None: all ids in their order.
        rest: (t,) logarithm of the mass of all other tokens; None if there are none.
    """

    log_probs: Float[Tensor, "t k"]
    tokens: Int[Tensor, "t k"] | None = None
    rest: Float[Tensor, " t"] | None = None

    @classmethod
    def of(cls, logits: Float[Tensor, "t v"], top: int | None = None) -> Distribution:
        """From logits, in float32 at least.

        Args:
            logits: (t, v).
            top: how many tokens are kept apart, the others as one sum; all if None or top >= v.
        """
        log_probs = _wide(logits).log_softmax(-1)
        if top is None or top >= log_probs.shape[1]:
            return cls(log_probs)
        values, tokens = log_probs.topk(top)
        return cls(values, tokens, _without(log_probs, tokens))

    def to(self, device: torch.device | str) -> Distribution:
        """The same on a device."""
        tokens = None if self.tokens is None else self.tokens.to(device)
        rest = None if self.rest is None else self.rest.to(device)
        return Distribution(self.log_probs.to(device), tokens, rest)


def prediction(full: Distribution, logits: Float[Tensor, "t v"]) -> Float[Tensor, " t"]:
    """KL(full || compressed) at each place: L_pred of Eq. 5 and 10, before any mean.

    Where `full` holds the likeliest tokens only, both sides sum up the others. That is a lower
    bound of the divergence, short of it by the rest's mass times the divergence within the rest.

    Args:
        full: what the model says with all tokens.
        logits: (t, v) what it says with the compressed ones.
    """
    found = _wide(logits).log_softmax(-1)
    if full.tokens is None:
        return _divergence(full.log_probs, found)
    tokens = full.tokens.long()
    total = _divergence(full.log_probs, found.gather(1, tokens))
    if full.rest is None:
        return total
    return total + _divergence(full.rest[:, None], _without(found, tokens)[:, None])


def entropy(matrix: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """L_entropy of Eq. 5: the mean over the rows of P of their entropy, in nats."""
    # Softmax underflows to 0, where the logarithm has no slope.
    least = torch.finfo(matrix.dtype).tiny
    return -(matrix * matrix.clamp(min=least).log()).sum(1).mean()


def collapse(matrix: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """L_collapse of Eq. 10: the most that one source gives to all rows of P together."""
    return matrix.sum(0).max()


def _divergence(p: Float[Tensor, "t k"], q: Float[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """Sum of p log(p / q) from logarithms; what has no mass in p adds nothing."""
    term = p.exp() * (p - q)
    return torch.where(p.isneginf(), torch.zeros_like(term), term).sum(-1)


def _without(log_probs: Float[Tensor, "t v"], tokens: Int[Tensor, "t k"]) -> Float[Tensor, " t"]:
    """Logarithm of the mass of all tokens but these."""
    return log_probs.scatter(1, tokens.long(), -torch.inf).logsumexp(-1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
