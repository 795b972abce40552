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
class Row:
    """One method at one budget.

    Attributes:
        method, budget: as shown.
        draws: seeds that are averaged.
        accuracy: of the dialogues.
        difference: (Avg minus the full model's, low, high), 95 % by the paired bootstrap.
        turn_differences, kind_differences: the same of each turn, and of each kind of question.
        visual: visual tokens of an image (or a video) before compression.
        entering: those that enter the LLM.
        average: those averaged over executed decoder layers.
        flops, kv_bytes: of one prefill, and their shares of the full model's.
        time: of a prefill beside the full model's.
    """

    method: str
    budget: str
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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows, and what they are compared with.

    Attributes:
        model, data: what was compared on.
        dialogues, questions: how many.
        full, blind, wrong: accuracy of the full model, with grey pictures, with others' pictures
            (None where all dialogues are about one picture).
        majority: of always giving each kind's (or all data's) most frequent answer.
        flops, kv_bytes, prefill_seconds, batch: of the full model's timed prefill, a prompt.
        rows: in the order they were asked for.
        skipped: (method, budget, reason) of what this model cannot do.
        setting: device, dtype, versions.
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
    skipped: tuple[tuple[str, str, str], ...]
    setting: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return dataclasses.asdict(self)
