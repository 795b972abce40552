"""What methods share that learn to say, before the answer, where it will come from.

They rank tokens by a net that was fitted to `foveate.relevance.explain`
(`foveate.training.relevance`), and differ in what the net is given.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping as Table
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate import catalog, ops
from foveate.compressor import VisualTokens
from foveate.errors import BudgetError, StageNotAvailable
from foveate.learned import LearnedCompressor
from foveate.mapping import Mapping

KINDS = ("image", "video")


def exact(x: Tensor) -> torch.autocast:
    """Full precision inside, where a training takes products in a lower one.

    The values that a softmax goes over need it. Their gradients add up to nothing, and rounded
    they do not: all values drift together, which the loss does not see until they are so large
    that rounding takes what tells them apart.

    Args:
        x: on the device that computes.
    """
    return torch.autocast(x.device.type, enabled=False)


@dataclasses.dataclass(frozen=True)
class RelevancePredictor(LearnedCompressor):
    """Keeps the tokens that a net predicts to be relevant to the answer.

    Attributes:
        kinds: what there are nets for.

    Class attributes:
        of_picture: which entries of `observe` do not depend on the question; they are stored once
            for all questions about a picture.
    """

    kinds: tuple[str, ...] = dataclasses.field(default=KINDS, kw_only=True)
    of_picture: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise BudgetError(f"{type(self).__name__} needs kinds of {KINDS}; got {self.kinds}.")

    @abc.abstractmethod
    def observe(self, tokens: VisualTokens) -> dict[str, Tensor]:
        """What the net is told of one picture and its question: rows of tokens, or of words."""

    @abc.abstractmethod
    def net_of_kind(self, width: int) -> nn.Module:
        """Fresh parameters for one kind, drawn from torch's default generator.

        Args:
            width: of the language model's tokens.
        """

    @abc.abstractmethod
    def logits(
        self, net: nn.Module, seen: Table[str, Tensor], there: Table[str, Bool[Tensor, "b _"]]
    ) -> Float[Tensor, "b n"]:
        """Logarithms of the predicted relevance, up to a constant of each row.

        Args:
            net: of the pictures' kind.
            seen: what `observe` and `prepared` gave of each picture, in a batch, padded with zeros.
            there: of each entry, which of its rows are no padding.

        Returns:
            -inf where a picture has no token.
        """

    def prepared(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `observe` gave of one picture, as the net takes it."""
        return seen

    def build(self, width: int) -> nn.Module:
        """A net of each kind."""
        return nn.ModuleDict({kind: self.net_of_kind(width) for kind in self.kinds})

    @torch.no_grad()
    def score(self, tokens: VisualTokens) -> Float[Tensor, " n"]:
        """What ranks the tokens of one picture: without a gradient, which a choice does not have.

        Raises:
            StageNotAvailable: there is no net for pictures of its kind.
        """
        kind = KINDS[tokens.is_video]
        if kind not in self.kinds:
            raise StageNotAvailable(
                f"This compressor was trained on {self.kinds[0]}s, and this is "
                f"{'an image' if kind == 'image' else 'a video'}.\nTrain one for both: "
                f"foveate train {catalog.name_of(self)}."
            )
        nets = self.module(tokens.features.device)
        assert isinstance(nets, nn.ModuleDict)
        seen = {name: x[None] for name, x in self.prepared(self.observe(tokens)).items()}
        there = {name: torch.ones(x.shape[:2], dtype=torch.bool) for name, x in seen.items()}
        there = {name: x.to(tokens.features.device) for name, x in there.items()}
        return self.logits(nets[kind], seen, there)[0]

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P of the tokens that score highest."""
        m = tokens.n if keep is None else keep
        return Mapping.select(ops.top(self.score(tokens), m).sort().values, tokens.n)
