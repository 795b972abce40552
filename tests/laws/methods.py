"""Methods that exist to be checked: predictable, uneven over rows, and allowed at any stage."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class SelectAll(Compressor):
    """Keeps everything; attached with force it sends every token through every table."""

    stage: Stage = Stage.INPUT  # type: ignore[misc]
    at: tuple[int, ...] = (0, 2)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        return Mapping.identity(tokens.n)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.at if self.stage == Stage.DECODER else ()


@dataclasses.dataclass(frozen=True)
class Every(Compressor):
    """Every step-th token from `first` on, or `keep` tokens spread evenly."""

    stage: Stage = Stage.INPUT  # type: ignore[misc]
    step: int = 3
    first: int = 0

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        if keep is None:
            index = torch.arange(self.first, tokens.n, self.step)
        else:
            index = torch.arange(keep) * tokens.n // keep
        return Mapping.select(index, tokens.n)


@dataclasses.dataclass(frozen=True)
class TopNorm(Compressor):
    """The tokens of largest norm, heaviest first; without a budget, those above the mean."""

    stage: Stage = Stage.INPUT  # type: ignore[misc]

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        norm = tokens.features.norm(dim=-1)
        if keep is None:
            keep = max(1, int((norm > norm.mean()).sum()))
        return Mapping.select(norm.topk(keep).indices, tokens.n)


@dataclasses.dataclass(frozen=True)
class First(Compressor):
    """The first few tokens: M-RoPE ids then have gaps for a re-indexing to close."""

    stage: Stage = Stage.INPUT  # type: ignore[misc]
    count: int = 3

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        return Mapping.select(torch.arange(self.count), tokens.n)


@dataclasses.dataclass(frozen=True)
class MergePairs(Compressor):
    """Neighbours become one token, weighted by their norms; it lives where the second was."""

    stage: Stage = Stage.INPUT  # type: ignore[misc]
    at: tuple[int, ...] = (1,)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        owner = torch.arange(tokens.n) // 2
        anchors = (2 * torch.arange(int(owner[-1]) + 1) + 1).clamp(max=tokens.n - 1)
        weight = 1 + tokens.features.norm(dim=-1).float()
        return Mapping.assign(owner, anchors, weight / weight.max())

    @property
    def layers(self) -> tuple[int, ...]:
        return self.at if self.stage == Stage.DECODER else ()


@dataclasses.dataclass(frozen=True)
class DropAt(Compressor):
    """Before decoder layer `at[i]` keeps the share `shares[i]` of the tokens: the heaviest ones.

    Caches from layer `settle` on are cut to what is left, if one is given.
    """

    stage: ClassVar[Stage] = Stage.DECODER
    at: tuple[int, ...] = (2,)
    shares: tuple[float, ...] = (0.4,)
    settle: int | None = None

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        assert tokens.layer is not None
        if keep is None:
            keep = max(1, round(self.shares[self.at.index(tokens.layer)] * tokens.n))
        keep = min(keep, tokens.n)
        return Mapping.select(tokens.features.norm(dim=-1).topk(keep).indices, tokens.n)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.at

    def settles_from(self, total: int) -> int | None:
        return self.settle

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        counts = []
        for share in self.shares:
            n = max(1, round(share * n))
            counts.append(n)
        return tuple(counts)
