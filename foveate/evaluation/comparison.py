"""What a comparison found, as plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from foveate.evaluation.stats import Interval
from foveate.evaluation.timing import Ratio


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Shares of right answers.

    Attributes:
        turns: of the first turns, the second turns ...: Acc1, Acc2 ...
        mean: of all questions: Avg.
        kinds: by kind of question, where the data names kinds.
    """

    turns: tuple[float, ...]
    mean: float
    kinds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Spread:
    """How much models differ whose training differs in its seed.

    Attributes:
        accuracy: standard deviation of Avg.
        difference: the same of Avg minus the same model's uncompressed.
        interval: that difference's mean with the interval of another draw of dialogues and of
            models, where the one in `Row` is of dialogues alone.
    """

    accuracy: float
    difference: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one budget.

    Attributes:
        method, budget: as shown.
        turns: ``"each"`` or ``"first"``, where it chose; ``"either"`` if it reads no prompt, so
            that both are one.
        oracle: whether it is no method, but was told what to keep.
        note: what it was told, then; else empty.
        draws: seeds that are averaged.
        accuracy: of the dialogues.
        difference: (Avg minus the full model's, low, high), 95 % by the paired bootstrap.
        turn_differences, kind_differences: the same of each turn, and of each kind of question.
        visual: visual tokens of an image (or a video) before compression.
        entering: those that enter the LLM.
        average: those averaged over executed decoder layers.
        flops, kv_bytes: of one prefill, and their shares of the full model's.
        time: of a prefill beside the full model's.
        spread: between models, where there are several.
    """

    method: str
    budget: str
    turns: str
    oracle: bool
    draws: int
    accuracy: Accuracy
    difference: Interval
    turn_differences: tuple[Interval, ...]
    kind_differences: dict[str, Interval]
    visual: float
    entering: float
    average: float
    flops: int
    flops_share: float
    kv_bytes: int
    kv_share: float
    time: Ratio
    spread: Spread | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Price:
    """What a later turn takes both ways, without its answer's further tokens.

    Attributes:
        whole: tokens that enter the LLM where the conversation is run again.
        new: tokens that enter it where the cache of the turn before is gone on from.
        time: going on over running again, alternated; its base is the time of running again.
        turns: later turns that were measured.
    """

    whole: float
    new: float
    time: Ratio
    turns: int


@dataclasses.dataclass(frozen=True)
class Reuse:
    """A method that reads the prompt, choosing at the first turn only and at each one.

    Attributes:
        method, budget, draws: as in its rows.
        first, each: accuracy of both ways.
        difference: (Avg of choosing at the first turn minus at each, low, high).
        turn_differences: the same of each turn; the first one's is 0.
        price: of a later turn; None where it was not measured.
        spread: standard deviation of the difference between models, where there are several.
    """

    method: str
    budget: str
    draws: int
    first: Accuracy
    each: Accuracy
    difference: Interval
    turn_differences: tuple[Interval, ...]
    price: Price | None
    spread: float | None = None


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A setting that was not run, or not to its end.

    Attributes:
        method, budget, turns: as in `Row`.
        reason: why.
        lowest: the lowest count that could be met, where the budget is out of reach.
    """

    method: str
    budget: str
    turns: str
    reason: str
    lowest: int | None = None

    @property
    def short(self) -> str:
        """The reason in a few words, where it is the budget."""
        return "" if self.lowest is None else f"not reachable, lowest {self.lowest}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows, and what they are compared with. Of several models, the means over them.

    Attributes:
        model, data: what was compared on.
        dialogues, questions: how many.
        full, blind, wrong: accuracy of the full model, with grey pictures, with others' pictures
            (None where all dialogues are about one picture).
        majority: of always giving each kind's (or all data's) most frequent answer.
        flops, kv_bytes, prefill_seconds, batch: of the full model's timed prefill, a prompt.
        rows: in the order they were asked for.
        reuse: choosing at the first turn beside choosing at each, where both were asked for.
        skipped: what this model cannot do.
        setting: device, dtype, versions.
        spread: between models, of the full model's accuracy; None for one model.
        models: each model's own comparison, where there are several.
    """

    model: str
    data: str
    dialogues: int
    questions: int
    full: Accuracy
    blind: Accuracy
    wrong: Accuracy | None
    majority: float
    flops: int
    kv_bytes: int
    prefill_seconds: float
    batch: int
    rows: tuple[Row, ...]
    reuse: tuple[Reuse, ...]
    skipped: tuple[Skipped, ...]
    setting: dict[str, Any]
    spread: float | None = None
    models: tuple[Comparison, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return dataclasses.asdict(self)
