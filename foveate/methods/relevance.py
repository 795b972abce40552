"""Relevance: a small learned net says before the first layer which tokens the answer will need.

What it does:
    Reads how much the question's tokens look at each visual token in the first decoder layer, and
    predicts from that one row, by a convolution along the tokens, how relevant each will be to the
    answer. The most relevant ones stay; all layers run on those alone.

The mapping:
    A^0 (heads, l, n) the attention that the first layer would give, from the l tokens of the
    question to the n visual ones.
    (2) A_v = mean of A^0 over heads and question; R = softmax of f(n A_v), f five depthwise
        separable convolutions with 32, 64, 128, 256 and 512 channels, and one pointwise to one.
    P = one-hot rows of the m largest R_j, in raster order.
    f was trained to give what `foveate.relevance.explain` gives with the full model's answer.

Needs:
    Weights trained for the model (`foveate train relevance`). The first layer's norm, queries and
    keys of all tokens, once more; not the layer.

Differs from the paper's code:
    No code was released. Open in the paper and decided here: the activation is ReLU, behind each
    of the five pointwise convolutions, which have a bias, as the depthwise have; zeros are beyond
    the ends; attention goes in times n (`scaling`), as its entries are about 1/n; the chat
    template's tokens are no part of the question; f is one of two nets, for images and for videos,
    both in one file. The paper computes queries of the text and keys of the picture alone; here
    the layer's own projections run on all tokens.

When it fails:
    Where the question stands before the picture: nothing looks back, and the first slots win. Where
    the first layer looks at places rather than things. A net for images says nothing of videos.

Reference:
    arXiv 2506.01097, section 3.3, Eq. 2, Appendix B and C; no repository.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping as Table
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.compressor import DecoderMethod, Reads, VisualTokens
from foveate.errors import BudgetError
from foveate.predicting import RelevancePredictor, exact

SCALINGS = ("count", "share", "log")


class Predictor(nn.Module):
    """f of Eq. 2: one value for each token, from the attention that it gets; of any length.

    Args:
        channels: after each pointwise convolution.
        kernel: of the depthwise ones, odd.
    """

    def __init__(self, channels: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise((1, *channels)))
        self.depthwise = nn.ModuleList(
            nn.Conv1d(a, a, kernel, padding=kernel // 2, groups=a) for a, _ in pairs
        )
        self.pointwise = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in pairs)
        self.last = nn.Conv1d(channels[-1], 1, 1)

    def forward(
        self, attention: Float[Tensor, "b n"], real: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b n"]:
        """Logarithms of the predicted relevance, up to a constant of each row.

        Args:
            attention: scaled.
            real: which entries there are, in a batch of different lengths; others are -inf.
        """
        x = attention[:, None]
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            # Beyond its end a row must look as if there were zeros, in every layer.
            x = x if real is None else x * real[:, None]
            x = pointwise(depthwise(x)).relu()
        with exact(x):
            found: Tensor = self.last(x.to(self.last.weight.dtype))[:, 0]
        return found if real is None else found.masked_fill(~real, -torch.inf)


def scaled(attention: Float[Tensor, " n"], scaling: str) -> Float[Tensor, " n"]:
    """What f is given.

    Args:
        attention: A_v of one picture.
        scaling: as `Relevance.scaling`.
    """
    n = len(attention)
    if scaling == "count":
        return n * attention
    share = n * attention / attention.sum().clamp(min=torch.finfo(attention.dtype).tiny)
    return share if scaling == "share" else share.clamp(min=1e-4).log()


def observed(tokens: VisualTokens) -> Float[Tensor, " n"]:
    """A_v: the mean over heads and over the question of the attention that each token gets.

    Args:
        tokens: before decoder layer 0, with what that layer would see.
    """
    assert tokens.ahead is not None
    asking = tokens.ahead.question
    return tokens.ahead.received(asking) / len(asking)


@dataclasses.dataclass(frozen=True)
class Relevance(RelevancePredictor, DecoderMethod):
    """Keep the tokens that a net predicts to be relevant to the answer, before decoder layer 0.

    Attributes:
        scaling: of the attention: ``"count"`` times n; ``"share"`` divided by its mean, so that it
            does not matter how much of it the picture gets; ``"log"`` the logarithm of that.
        channels: after each layer of the net.
        kernel: of its depthwise convolutions, odd.
    """

    scaling: str = "count"
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    kernel: int = 3
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.AHEAD})

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(type(each) is int and each > 0 for each in (*self.channels, self.kernel))
        sizes = bool(self.channels) and whole and self.kernel % 2 == 1
        if not sizes or self.scaling not in SCALINGS:
            raise BudgetError(
                f"Relevance needs channels, an odd kernel and scaling of {SCALINGS}; got "
                f"{self.channels}, {self.kernel}, {self.scaling!r}."
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The first."""
        return (0,)

    def net_of_kind(self, width: int) -> nn.Module:
        """A `Predictor`; the tokens' width does not matter."""
        return Predictor(self.channels, self.kernel)

    def observe(self, tokens: VisualTokens) -> dict[str, Tensor]:
        """A_v."""
        return {"attention": observed(tokens)}

    def prepared(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """A_v, scaled."""
        return {"attention": scaled(seen["attention"].float(), self.scaling)}

    def logits(
        self, net: nn.Module, seen: Table[str, Tensor], there: Table[str, Bool[Tensor, "b _"]]
    ) -> Float[Tensor, "b n"]:
        """What f of Eq. 2 gives; softmax keeps the order."""
        found: Tensor = net(seen["attention"], there["attention"])
        return found
