"""From stored answers and measured costs to the rows of a comparison, of one model or several."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

import foveate
from foveate.evaluation import stats
from foveate.evaluation.answering import BLIND, FULL, WRONG
from foveate.evaluation.asking import Group
from foveate.evaluation.comparison import (
    Accuracy,
    Comparison,
    Price,
    Reuse,
    Row,
    Skipped,
    Spread,
)
from foveate.evaluation.cost import Cost
from foveate.evaluation.data import Dialogue, normalised
from foveate.evaluation.settings import FIRST
from foveate.evaluation.store import Store
from foveate.evaluation.timing import Ratio

Rights = list[list[float]]  # of each dialogue, of each turn


@dataclasses.dataclass
class Measured:
    """One model's answers and costs.

    Attributes:
        name: the model.
        store: its answers.
        groups: what was compared.
        batch: prompts of the timed prefill.
        full, seconds: what that prefill costs the full model, and its time.
        costs, prices: of each group; None where it was left out, or not measured.
        setting: device, dtype, versions.
    """

    name: str
    store: Store
    groups: Sequence[Group]
    batch: int
    full: Cost
    seconds: float
    costs: Sequence[Cost | None]
    prices: Sequence[Price | None]
    setting: dict[str, Any]


def comparison(
    parts: Sequence[Measured], data: Sequence[Dialogue], model: str, data_name: str
) -> Comparison:
    """All rows; of several models the means over them, and each one's own beside it.

    Args:
        parts: the models, all asked the same.
        data: the dialogues.
        model, data_name: how they are called.
    """
    first = parts[0]
    stores = [part.store for part in parts]
    numbers = [
        i for i in range(len(first.groups)) if all(p.groups[i].skipped is None for p in parts)
    ]

    def of(condition: str) -> Accuracy:
        return accuracy(data, mean([rights(store, data, [condition]) for store in stores]))

    full = _together([part.full for part in parts])
    rows = tuple(
        row(stores, data, first.groups[i], _together([p.costs[i] for p in parts]), full)
        for i in numbers
    )
    alone = [accuracy(data, rights(store, data, [FULL])).mean for store in stores]
    return Comparison(
        model=model,
        data=data_name,
        dialogues=len(data),
        questions=sum(len(each.turns) for each in data),
        full=of(FULL),
        blind=of(BLIND),
        wrong=of(WRONG) if (WRONG, data[0].name) in first.store else None,
        majority=majority(data),
        flops=full.flops,
        kv_bytes=full.kv_bytes,
        prefill_seconds=statistics.median(part.seconds for part in parts),
        batch=first.batch,
        rows=rows,
        reuse=tuple(_reuses(parts, data, numbers)),
        skipped=tuple(_skipped(parts)),
        setting=first.setting,
        spread=_deviation(alone),
        models=tuple(comparison([part], data, part.name, data_name) for part in parts)
        if len(parts) > 1
        else (),
    )


def row(
    stores: Sequence[Store], data: Sequence[Dialogue], group: Group, found: Cost, full: Cost
) -> Row:
    """One row of the table.

    Args:
        stores: the answers of all the group's settings and of the full model, of each model.
        data: the dialogues.
        group: the draws that are averaged.
        found, full: what the first of them and the full model cost.
    """
    assert found.time is not None
    keys = [setting.key for setting in group.settings]
    answered = [rights(store, data, keys) for store in stores]
    base = [rights(store, data, [FULL]) for store in stores]
    counted = [store[key, each.name] for store in stores for key in keys for each in data]
    pictures = sum(_pictures(each) * len(each.turns) for each in data)
    images = pictures * len(keys) * len(stores)
    per = {name: sum(r[name] for r in counted) / images for name in ("n", "entering", "average")}
    kv_bytes = found.kv_bytes or full.kv_bytes
    overall, turns, kinds = differences(data, mean(answered), mean(base))
    return Row(
        method=group.first.label,
        budget=group.first.budget,
        turns=group.turns,
        oracle=group.oracle,
        note=group.first.note,
        draws=len(keys),
        accuracy=accuracy(data, mean(answered)),
        difference=overall,
        turn_differences=turns,
        kind_differences=kinds,
        visual=per["n"],
        entering=per["entering"],
        average=per["average"],
        flops=found.flops,
        flops_share=found.flops / full.flops,
        kv_bytes=kv_bytes,
        kv_share=kv_bytes / full.kv_bytes,
        time=found.time,
        spread=_spread(data, answered, base) if len(stores) > 1 else None,
    )


def _reuses(
    parts: Sequence[Measured], data: Sequence[Dialogue], numbers: Sequence[int]
) -> Iterable[Reuse]:
    """Choosing at the first turn beside choosing at each, where both were asked."""
    groups = parts[0].groups
    twins = {tuple(groups[i].settings): groups[i] for i in numbers}
    for i in numbers:
        group, twin = groups[i], twins.get(groups[i].twin)
        if group.first.turns != FIRST or twin is None:
            continue
        first, each = (
            [rights(part.store, data, [s.key for s in g.settings]) for part in parts]
            for g in (group, twin)
        )
        overall, turns, _ = differences(data, mean(first), mean(each))
        gains = [
            accuracy(data, a).mean - accuracy(data, b).mean
            for a, b in zip(first, each, strict=True)
        ]
        prices = [price for part in parts if (price := part.prices[i]) is not None]
        yield Reuse(
            method=group.first.label,
            budget=group.first.budget,
            draws=len(group.settings),
            first=accuracy(data, mean(first)),
            each=accuracy(data, mean(each)),
            difference=overall,
            turn_differences=turns,
            price=_price(prices),
            spread=_deviation(gains),
        )


def _skipped(parts: Sequence[Measured]) -> Iterable[Skipped]:
    for groups in zip(*(part.groups for part in parts), strict=True):
        left_out = [
            (part, group.skipped)
            for part, group in zip(parts, groups, strict=True)
            if group.skipped is not None
        ]
        if left_out:
            part, found = left_out[0]
            some = "" if len(left_out) == len(parts) else f"{part.name}: "
            yield dataclasses.replace(found, reason=some + found.reason)


# ---------------------------------------------------------------------- over several models


def mean(answered: Sequence[Rights]) -> Rights:
    """The mean over models, for each dialogue and turn."""
    return [
        [float(np.mean(turn)) for turn in zip(*dialogue, strict=True)]
        for dialogue in zip(*answered, strict=True)
    ]


def _spread(data: Sequence[Dialogue], answered: Sequence[Rights], base: Sequence[Rights]) -> Spread:
    """How much models differ in what they answer, and in what they gain on `base`."""
    right = np.array([[sum(dialogue) for dialogue in model] for model in answered], float)
    gains = right - np.array([[sum(dialogue) for dialogue in model] for model in base])
    asked = np.array([len(each.turns) for each in data], float)
    interval, _ = stats.between_models(gains, asked)
    total = asked.sum()
    return Spread(
        statistics.stdev((right.sum(1) / total).tolist()),
        statistics.stdev((gains.sum(1) / total).tolist()),
        interval,
    )


def _deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of what one value was drawn of; None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def _together(found: Sequence[Cost | None]) -> Cost:
    costs = [cost for cost in found if cost is not None]
    times = [cost.time for cost in costs if cost.time is not None]
    return Cost(
        statistics.median_low([cost.flops for cost in costs]),
        statistics.median_low([cost.kv_bytes for cost in costs]),
        _ratio(times) if times else None,
    )


def _price(found: Sequence[Price]) -> Price | None:
    if not found:
        return None
    return Price(
        statistics.fmean(each.whole for each in found),
        statistics.fmean(each.new for each in found),
        _ratio([each.time for each in found]),
        sum(each.turns for each in found),
    )


def _ratio(found: Sequence[Ratio]) -> Ratio:
    """Medians over models; of one, its own."""
    fields = [field.name for field in dataclasses.fields(Ratio)]
    return Ratio(*(statistics.median(getattr(each, name) for each in found) for name in fields))


# ---------------------------------------------------------------------- of one set of answers


def setting_of(model: Any) -> dict[str, Any]:
    """Device, dtype and versions, as the report states them."""
    device = model.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({where})",
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "foveate": foveate.__version__,
    }


def _pictures(dialogue: Dialogue) -> int:
    # What a mapping is made for: a video is one.
    return 1 if dialogue.is_video else len(dialogue.pictures)


def rights(store: Store, data: Sequence[Dialogue], keys: Sequence[str]) -> Rights:
    """For each dialogue and turn, the share of the draws that answered right."""
    return [
        [
            float(np.mean([turn.right(store[key, each.name]["answers"][i]) for key in keys]))
            for i, turn in enumerate(each.turns)
        ]
        for each in data
    ]


def accuracy(data: Sequence[Dialogue], answered: Rights) -> Accuracy:
    """Means over dialogues, by turn and by kind."""
    longest = max(len(each) for each in answered)
    kinds: dict[str, list[float]] = {}
    for dialogue, each in zip(data, answered, strict=True):
        for turn, right in zip(dialogue.turns, each, strict=True):
            if turn.kind:
                kinds.setdefault(turn.kind, []).append(right)
    return Accuracy(
        turns=tuple(
            float(np.mean([each[i] for each in answered if len(each) > i])) for i in range(longest)
        ),
        mean=float(np.concatenate(answered).mean()),
        kinds={kind: float(np.mean(each)) for kind, each in sorted(kinds.items())},
    )


def differences(
    data: Sequence[Dialogue], answered: Rights, base: Rights
) -> tuple[stats.Interval, tuple[stats.Interval, ...], dict[str, stats.Interval]]:
    """What `answered` gains on `base`: of all questions, of each turn, of each kind."""
    longest = max(len(each.turns) for each in data)
    kinds = sorted({turn.kind for each in data for turn in each.turns if turn.kind})

    def column(chosen: Iterable[list[bool]]) -> stats.Interval:
        gains, asked = [], []
        for mask, right, other in zip(chosen, answered, base, strict=True):
            if any(mask):
                gains.append(sum(r - b for m, r, b in zip(mask, right, other, strict=True) if m))
                asked.append(float(sum(mask)))
        return stats.difference(np.array(gains, float), np.array(asked))

    return (
        column([True] * len(each.turns) for each in data),
        tuple(
            column([i == turn for i in range(len(each.turns))] for each in data)
            for turn in range(longest)
        ),
        {
            kind: column([turn.kind == kind for turn in each.turns] for each in data)
            for kind in kinds
        },
    )


def majority(data: Sequence[Dialogue]) -> float:
    """Share of right answers of who knows each kind's most frequent answer, and nothing else."""
    answers: dict[str, Counter[str]] = {}
    for turn in (turn for each in data for turn in each.turns):
        answers.setdefault(turn.kind, Counter()).update(set(map(normalised, turn.answers)))
    asked = sum(len(each.turns) for each in data)
    return sum(each.most_common(1)[0][1] for each in answers.values()) / asked
