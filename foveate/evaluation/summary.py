"""From stored answers and measured costs to the rows of a comparison."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

import foveate
from foveate.evaluation import stats
from foveate.evaluation.answering import FULL
from foveate.evaluation.comparison import Accuracy, Row
from foveate.evaluation.cost import Cost
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import Setting
from foveate.evaluation.store import Store

Rights = list[list[float]]  # of each dialogue, of each turn


def row(
    store: Store, data: Sequence[Dialogue], settings: Sequence[Setting], found: Cost, full: Cost
) -> Row:
    """One row of the table.

    Args:
        store: the answers of all `settings` and of the full model.
        data: the dialogues.
        settings: the draws that are averaged.
        found, full: what the first of them and the full model cost.
    """
    assert found.time is not None
    keys = [setting.key for setting in settings]
    answered = rights(store, data, keys)
    counted = [store[key, each.name] for key in keys for each in data]
    images = sum(_pictures(each) * len(each.turns) for each in data) * len(keys)
    per = {name: sum(r[name] for r in counted) / images for name in ("n", "entering", "average")}
    kv_bytes = found.kv_bytes or full.kv_bytes
    overall, turns, kinds = _differences(data, answered, rights(store, data, [FULL]))
    return Row(
        method=settings[0].label,
        budget=settings[0].budget,
        draws=len(keys),
        accuracy=accuracy(data, answered),
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
    )


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


def _differences(
    data: Sequence[Dialogue], answered: Rights, full: Rights
) -> tuple[stats.Interval, tuple[stats.Interval, ...], dict[str, stats.Interval]]:
    """To the full model: of all questions, of each turn, of each kind."""
    longest = max(len(each.turns) for each in data)
    kinds = sorted({turn.kind for each in data for turn in each.turns if turn.kind})

    def column(chosen: Iterable[list[bool]]) -> stats.Interval:
        gains, asked = [], []
        for mask, right, base in zip(chosen, answered, full, strict=True):
            if any(mask):
                gains.append(sum(r - b for m, r, b in zip(mask, right, base, strict=True) if m))
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
        answers.setdefault(turn.kind, Counter()).update(set(turn.answers))
    asked = sum(len(each.turns) for each in data)
    return sum(each.most_common(1)[0][1] for each in answers.values()) / asked
