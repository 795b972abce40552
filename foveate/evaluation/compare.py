"""`compare`: methods and budgets on one model and one set of dialogues."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from rich.progress import Progress

from foveate.compressor import Reads, Stage
from foveate.errors import BudgetError, InputError, StageNotAvailable
from foveate.evaluation import cost, fingerprints, summary
from foveate.evaluation.answering import BLIND, FULL, WRONG, Batch, grey
from foveate.evaluation.comparison import Accuracy, Comparison
from foveate.evaluation.data import Dialogue, fingerprint, others
from foveate.evaluation.settings import Keep, Setting, expand
from foveate.evaluation.store import Store
from foveate.evaluation.timing import seconds

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
        "foveate": fingerprints.code(),
        "transformers": transformers.__version__,
        "model": fingerprints.model(model),
        "processor": fingerprints.processor(processor),
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
        self.others = others(data)
        methods = [group.first.make() for group in groups]
        self.reads: frozenset[Reads] = frozenset().union(
            *(m.reads for m in methods if m.stage not in (Stage.IMAGE, Stage.ENCODER))
        )

    def run(self) -> None:
        """Ask what is not stored yet."""
        runs = (3 if self.others else 2) + sum(len(group.settings) for group in self.groups)
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
        chosen = self.others if condition == WRONG else range(len(self.data))
        sources = [self.data[i] for i in chosen[start:stop]]
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

        # Where all dialogues are about one picture, there is no wrong one.
        for condition in (BLIND, WRONG) if self.others else (BLIND,):
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
    # With every method left out, nothing has been timed beside the full model.
    base = base or [
        seconds(lambda: cost.prefill(model, given), model.device.type) for _ in range(repeats)
    ]
    return rows, full, statistics.median(base), found


# ---------------------------------------------------------------------- summary


def _summary(answering: _Answering, costs: Any, model_name: str, data_name: str) -> Comparison:
    batch, full, seconds, found = costs
    data, store = answering.data, answering.store

    def of(condition: str) -> Accuracy:
        return summary.accuracy(data, summary.rights(store, data, [condition]))

    able = [group for group in answering.groups if not group.reason]
    return Comparison(
        model=model_name,
        data=data_name,
        dialogues=len(data),
        questions=sum(len(each.turns) for each in data),
        full=of(FULL),
        blind=of(BLIND),
        wrong=of(WRONG) if answering.others else None,
        majority=summary.majority(data),
        flops=full.flops,
        kv_bytes=full.kv_bytes,
        prefill_seconds=seconds,
        batch=batch,
        rows=tuple(
            summary.row(store, data, group.settings, each, full)
            for group, each in zip(able, found, strict=True)
        ),
        skipped=tuple(
            (g.first.label, g.first.budget, g.reason) for g in answering.groups if g.reason
        ),
        setting=summary.setting_of(answering.model),
    )
