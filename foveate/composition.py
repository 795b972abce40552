"""Several methods one after the other, as one: one composed P, with every step kept beside it."""

from __future__ import annotations

import dataclasses

from torch import nn

from foveate.compressor import (
    Compressor,
    Reads,
    Stage,
    VisualTokens,
    check_keep,
    most_entering,
    resolve_keep,
)
from foveate.errors import BudgetError
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Chain(Compressor):
    """Methods that act one after the other; see `foveate.chain`.

    Only the last may act between decoder layers, only the first on the vision side.

    Attributes:
        methods: the methods, in order.
        ratio: with one `keep` for all, every method leaves `ratio` times as much as the next one;
            the last meets it (the average over layers, where it acts between them, so that no
            more may enter than lets it).
        keeps: a budget for each instead; None where the method's own fields decide.
    """

    methods: tuple[Compressor, ...] = ()
    ratio: float = 2.0
    keeps: tuple[int | float | None, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.methods) < 2 or self.ratio < 1:
            raise BudgetError(
                f"A chain takes two methods or more, and a ratio of at least 1; got "
                f"{len(self.methods)} and ratio={self.ratio}."
            )
        if self.keeps is not None and len(self.keeps) != len(self.methods):
            raise BudgetError(
                f"A chain of {len(self.methods)} methods takes as many budgets; got "
                f"keeps={self.keeps}."
            )
        for keep in self.keeps or ():
            if keep is not None:
                check_keep(keep)

    @property
    def stage(self) -> Stage:  # type: ignore[override]  # a class knows its stage, a chain its own
        """Where the first method acts."""
        return self.methods[0].stage

    @property
    def reads(self) -> frozenset[Reads]:  # type: ignore[override]
        """What any of the methods looks at."""
        return frozenset().union(*(method.reads for method in self.methods))

    @property
    def parts(self) -> tuple[Compressor, ...]:
        """The methods, those of several stages taken apart."""
        return tuple(part for method in self.methods for part in method.parts)

    @property
    def states_budget(self) -> bool:
        """Whether each method has a budget of its own."""
        return self.keeps is not None

    def fitted(self, model: nn.Module) -> Chain:
        """The chain with each method as it acts on `model`."""
        methods = tuple(method.fitted(model) for method in self.methods)
        return dataclasses.replace(self, methods=methods)

    def budgets(self, n: int, keep: int | None, total: int) -> tuple[int | None, ...]:
        """One budget for each of `parts`."""
        found: list[int | None] = []
        for place, method in enumerate(self.methods):
            if self.keeps is not None:
                own = self.keeps[place]
                mine = None if own is None else resolve_keep(own, n)
            elif keep is None or place == len(self.methods) - 1:
                mine = keep
            else:
                left = len(self.methods) - 1 - place
                most = most_entering(self.parts[-1], n, keep, total)
                mine = min(most, round(self.ratio**left * keep))
            found += method.budgets(n, mine, total)
        return tuple(found)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """The first method, where a chain is asked by itself."""
        return self.methods[0](tokens, keep)
