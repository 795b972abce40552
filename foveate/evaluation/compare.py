"""`compare`: methods and budgets on one model and one set of dialogues."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.progress import Progress

import foveate
from foveate.compressor import Reads, Stage
from foveate.errors import BudgetError, InputError, StageNotAvailable
from foveate.evaluation import cost, stats
from foveate.evaluation.answering import BLIND, FULL, WRONG, Batch, grey
from foveate.evaluation.comparison import Accuracy, Comparison, Row
from foveate.evaluation.data import Dialogue, fingerprint
from foveate.evaluation.settings import Keep, Setting, expand
from foveate.evaluation.store import Store

ANSWERS = "answers.jsonl"


@dataclasses.dataclass
class _Group:
    """One row of the table in the making."""

    settings: list[Setting]
    reason: str = ""

    @property
    def first(self) -> Setting:
        return self.settings[0]


def compare(
    model: Any,
    processor: Any,
    data: Sequence[Dialogue],
    methods: Sequence[str],
    budgets: Sequence[Keep],
    *,
    out: str | Path,
    model_name: str = "",
    data_name: str = "",
    draws: int = 3,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    repeats: int = 5,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Accuracy and cost of every method at every budget, beside the full model.

    Answers are stored in `out` as they come: called again with the same arguments, it goes on
    where it was interrupted.

    Args:
        model, processor: a supported model and its processor.
        data: dialogues, as `from_reference` or `from_jsonl` give them.
        methods: as `settings.parse_method` reads them.
        budgets: counts or shares, for methods without a preset.
        out: folder of the stored answers.
        model_name, data_name: how they are called in the report.
        draws: seeds of methods that draw at random.
        batch_size: dialogues answered at a time.
        max_new_tokens: the longest answer.
        repeats: timed prefills of each setting.
        fresh: forget stored answers.
        progress: where to show how far it is.

    Raises:
        InputError: no data, or images and videos mixed in it.
        SavedFileError: `out` holds answers of another model, data or version.
        UnknownName, BudgetError: a method or budget that does not exist.
    """
    if not data:
        raise InputError("There is nothing to compare on: the data holds no dialogue.")
    if len({each.is_video for each in data}) > 1:
        raise InputError("The data mixes images and videos.\nCompare on one of them at a time.")
    groups = [_Group(settings) for settings in expand(methods, budgets, draws)]
    path = Path(out) / ANSWERS
    if fresh:
        path.unlink(missing_ok=True)
    facts = {
        "foveate": foveate.__version__,
        "transformers": transformers.__version__,
        "model": weights_fingerprint(model),
        "data": fingerprint(data),
        "max_new_tokens": max_new_tokens,
    }
    answering = _Answering(
        model, processor, data, groups, Store(path, facts), batch_size, max_new_tokens, progress
    )
    try:
        answering.run()
    finally:
        answering.store.close()
    costs = _costs(answering, repeats)
    return _summary(answering, costs, model_name or type(model).__name__, data_name)


class _Answering:
    """Everything that is asked, batch by batch, setting by setting."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        data: Sequence[Dialogue],
        groups: list[_Group],
        store: Store,
        batch_size: int,
        max_new_tokens: int,
        progress: Progress | None,
    ) -> None:
        self.model, self.processor, self.data, self.groups = model, processor, data, groups
        self.store, self.batch_size, self.max_new_tokens = store, batch_size, max_new_tokens
        self.progress = progress
        methods = [group.first.make() for group in groups]
        self.reads: frozenset[Reads] = frozenset().union(
            *(m.reads for m in methods if m.stage not in (Stage.IMAGE, Stage.ENCODER))
        )

    def run(self) -> None:
        """Ask what is not stored yet."""
        runs = 3 + sum(len(group.settings) for group in self.groups)
        task = None
        if self.progress is not None:
            task = self.progress.add_task("answering", total=runs * len(self.data))
        for start in range(0, len(self.data), self.batch_size):
            stop = min(start + self.batch_size, len(self.data))
            for name in self._conditions(start, stop):
                if self.progress is not None and task is not None:
                    self.progress.update(task, description=name, advance=stop - start)

    def batch(self, start: int, stop: int, condition: str = FULL) -> Batch:
        """These dialogues, with their own, no, or each other's pictures."""
        shift = 1 if condition == WRONG else 0
        sources = [self.data[(i + shift) % len(self.data)] for i in range(start, stop)]
        pictures = [each.load() for each in sources]
        if condition == BLIND:
            pictures = [grey(each) for each in pictures]
        if condition == WRONG:
            # The prompt has as many placeholders for pictures as the dialogue itself.
            own = [len(each.pictures) for each in self.data[start:stop]]
            pictures = [
                [p[i % len(p)] for i in range(n)] for p, n in zip(pictures, own, strict=True)
            ]
        reads = self.reads if condition == FULL else frozenset()
        return Batch(
            self.model,
            self.processor,
            self.data[start:stop],
            pictures,
            reads,
            self.max_new_tokens,
        )

    def _conditions(self, start: int, stop: int) -> Any:
        names = [each.name for each in self.data[start:stop]]

        def missing(key: str) -> bool:
            return any((key, name) not in self.store for name in names)

        def keep(key: str, found: list[dict[str, Any]]) -> None:
            for name, record in zip(names, found, strict=True):
                if (key, name) not in self.store:
                    self.store.add(key, name, **record)

        for condition in (BLIND, WRONG):
            if missing(condition):
                keep(condition, self.batch(start, stop, condition).converse(None))
            yield condition
        batch = None
        every = [(setting, group) for group in self.groups for setting in group.settings]
        for setting, group in [(None, None), *every]:
            key = FULL if setting is None else setting.key
            if missing(key) and not (group and group.reason):
                batch = batch or self.batch(start, stop)
                try:
                    keep(key, batch.converse(setting))
                except (StageNotAvailable, BudgetError) as error:
                    if group is None:
                        raise
                    group.reason = str(error)
            yield FULL if setting is None else f"{setting.label} {setting.budget}"


def weights_fingerprint(model: Any) -> str:
    """A hash of the configuration and a few numbers of every parameter."""
    found = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, parameter in model.named_parameters():
        few = parameter.detach().flatten()[:16].float().cpu().numpy()
        found.update(name.encode())
        found.update(few.tobytes())
    return found.hexdigest()[:16]


# ---------------------------------------------------------------------- cost


def _costs(answering: _Answering, repeats: int) -> tuple[int, cost.Cost, float, list[cost.Cost]]:
    """(batch, the full model's cost, its seconds a prefill, the cost of each group)."""
    model, data = answering.model, answering.data
    most = min(len(data), cost.LARGEST)
    batch = answering.batch(0, most)

    def inputs(rows: int) -> dict[str, Any]:
        return batch.inputs(range(rows), 0, [[]] * rows)

    rows = cost.compute_bound_batch(model, inputs, most)
    given = inputs(rows)
    full = cost.measure(model, given, None, repeats)
    found: list[cost.Cost] = []
    able = [group for group in answering.groups if not group.reason]
    task = None
    if answering.progress is not None:
        task = answering.progress.add_task("timing", total=len(able))
    for group in able:
        setting = group.first
        attach = functools.partial(setting.attach, model, processor=answering.processor)
        found.append(cost.measure(model, given, attach, repeats))
        if answering.progress is not None and task is not None:
            answering.progress.update(
                task, description=f"timing {setting.label} {setting.budget}", advance=1
            )
    base = [each.time.base_seconds for each in found if each.time is not None]
    return rows, full, float(np.median(base)) if base else float("nan"), found


# ---------------------------------------------------------------------- summary


def _summary(answering: _Answering, costs: Any, model_name: str, data_name: str) -> Comparison:
    rows, full_cost, seconds, found = costs
    data, store, model = answering.data, answering.store, answering.model
    full = _rights(store, data, [FULL])
    asked = np.array([len(each.turns) for each in data], float)
    table, costs_left = [], iter(found)
    for group in answering.groups:
        if group.reason:
            continue
        keys = [setting.key for setting in group.settings]
        rights = _rights(store, data, keys)
        each = next(costs_left)
        assert each.time is not None
        counted = [store[key, d.name] for key in keys for d in data]
        images = sum(d_images(d) * len(d.turns) for d in data) * len(keys)
        per = {
            name: sum(r[name] for r in counted) / images for name in ("n", "entering", "average")
        }
        table.append(
            Row(
                method=group.first.label,
                budget=group.first.budget,
                draws=len(keys),
                accuracy=_accuracy(data, rights),
                difference=stats.difference(_totals(rights), _totals(full), asked),
                visual=per["n"],
                entering=per["entering"],
                average=per["average"],
                flops=each.flops,
                flops_share=each.flops / full_cost.flops,
                kv_bytes=each.kv_bytes or full_cost.kv_bytes,
                kv_share=(each.kv_bytes or full_cost.kv_bytes) / full_cost.kv_bytes,
                time=each.time,
            )
        )
    skipped = tuple((g.first.label, g.first.budget, g.reason) for g in answering.groups if g.reason)
    device = model.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return Comparison(
        model=model_name,
        data=data_name,
        dialogues=len(data),
        questions=int(asked.sum()),
        full=_accuracy(data, full),
        blind=_accuracy(data, _rights(store, data, [BLIND])),
        wrong=_accuracy(data, _rights(store, data, [WRONG])),
        majority=majority(data),
        flops=full_cost.flops,
        kv_bytes=full_cost.kv_bytes,
        prefill_seconds=seconds,
        batch=rows,
        rows=tuple(table),
        skipped=skipped,
        setting={
            "device": f"{device.type} ({where})",
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "foveate": foveate.__version__,
        },
    )


def d_images(dialogue: Dialogue) -> int:
    """Pictures that a mapping is made for: a video is one."""
    return 1 if dialogue.is_video else len(dialogue.pictures)


def _rights(store: Store, data: Sequence[Dialogue], keys: Sequence[str]) -> list[list[float]]:
    """For each dialogue and turn, the share of the draws that answered right."""
    return [
        [
            float(np.mean([turn.right(store[key, each.name]["answers"][i]) for key in keys]))
            for i, turn in enumerate(each.turns)
        ]
        for each in data
    ]


def _totals(rights: list[list[float]]) -> np.ndarray:
    return np.array([sum(each) for each in rights], float)


def _accuracy(data: Sequence[Dialogue], rights: list[list[float]]) -> Accuracy:
    longest = max(len(each) for each in rights)
    kinds: dict[str, list[float]] = {}
    for dialogue, each in zip(data, rights, strict=True):
        for turn, right in zip(dialogue.turns, each, strict=True):
            if turn.kind:
                kinds.setdefault(turn.kind, []).append(right)
    return Accuracy(
        turns=tuple(
            float(np.mean([each[i] for each in rights if len(each) > i])) for i in range(longest)
        ),
        mean=float(np.concatenate(rights).mean()),
        kinds={kind: float(np.mean(each)) for kind, each in sorted(kinds.items())},
    )


def majority(data: Sequence[Dialogue]) -> float:
    """Share of right answers of who knows each kind's most frequent answer, and nothing else."""
    answers: dict[str, Counter[str]] = {}
    for turn in (turn for each in data for turn in each.turns):
        answers.setdefault(turn.kind, Counter()).update(set(turn.answers))
    asked = sum(len(each.turns) for each in data)
    return sum(each.most_common(1)[0][1] for each in answers.values()) / asked
