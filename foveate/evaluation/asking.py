"""Everything that is asked of one model: batch by batch, setting by setting, stored as it comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.progress import Progress

from foveate.attach.prompt import placed
from foveate.compressor import Reads, Stage
from foveate.errors import BudgetError, StageNotAvailable
from foveate.evaluation.answering import BLIND, FULL, WRONG, Batch, grey
from foveate.evaluation.comparison import Skipped
from foveate.evaluation.data import Dialogue, others, parts
from foveate.evaluation.reach import refusal
from foveate.evaluation.settings import EACH, Setting
from foveate.evaluation.store import Store


@dataclasses.dataclass
class Group:
    """One row of the table in the making.

    Attributes:
        settings: the draws that are averaged in it.
        skipped: why it is left out; None while it is not.
    """

    settings: Sequence[Setting]
    skipped: Skipped | None = None

    @property
    def first(self) -> Setting:
        """What stands for all draws where one is enough."""
        return self.settings[0]

    @property
    def twin(self) -> tuple[Setting, ...]:
        """The same settings, choosing at each turn."""
        return tuple(dataclasses.replace(each, turns=EACH) for each in self.settings)

    @property
    def turns(self) -> str:
        """Where it chooses, as `Row.turns` says it."""
        return self.first.turns if self.first.reads_prompt else "either"

    @property
    def name(self) -> str:
        """How progress calls it."""
        way = "" if self.first.turns == EACH else f" ({self.first.turns} turn)"
        return f"{self.first.label} {self.first.budget}{way}"

    @property
    def oracle(self) -> bool:
        """Whether it is no method."""
        return bool(self.first.note)

    def skip(self, reason: str, lowest: int | None = None) -> None:
        """Leave it out."""
        first = self.first
        self.skipped = Skipped(first.label, first.budget, self.turns, reason, lowest)


class Asking:
    """All questions to one model, and its answers.

    Args:
        model, processor: as loaded.
        data: the dialogues.
        groups: what is compared; those that cannot be served are marked.
        store: where the answers are.
        batch_size: dialogues answered at a time.
        max_new_tokens: the longest answer.
        progress: where to show how far it is.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        data: Sequence[Dialogue],
        groups: Sequence[Group],
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
            *(m.reads for m in methods if m.parts[0].stage not in (Stage.IMAGE, Stage.ENCODER))
        )

    def foresee(self) -> None:
        """Leave out what the first pictures' sizes rule out already, and say so."""
        batch = self.batch(0, next(parts(self.data, self.batch_size)).stop)
        sizes = self._sizes(batch)
        said: dict[str, None] = {}
        for group in self.groups:
            found = refusal(self.model, group.first, sizes)
            if found is None:
                continue
            group.skip(*found)
            assert group.skipped is not None
            short = group.skipped.short or found[0].splitlines()[0]
            said[f"{group.first.label} {group.first.budget}: {short}"] = None
        if self.progress is not None:
            for line in said:
                self.progress.console.print(line, highlight=False, markup=False)

    def run(self) -> None:
        """Ask what is not stored yet."""
        runs = (3 if self.others else 2) + sum(len(group.settings) for group in self.groups)
        task = None
        if self.progress is not None:
            task = self.progress.add_task("answering", total=runs * len(self.data))
        for part in parts(self.data, self.batch_size):
            start, stop = part.start, part.stop
            for name in self._conditions(start, stop):
                if self.progress is not None and task is not None:
                    self.progress.update(task, description=escape(name), advance=stop - start)

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

    def _sizes(self, batch: Batch) -> set[int]:
        """Visual tokens of the pictures of a batch."""
        rows = range(len(batch.dialogues))
        inputs = batch.inputs(rows, 0, [[]] * len(rows))
        return {picture.layout.n for picture in placed(self.model, inputs)}

    def _conditions(self, start: int, stop: int) -> Iterator[str]:
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
        if missing(FULL):
            batch = self.batch(start, stop)
            keep(FULL, batch.converse(None))
        yield FULL
        for group in self.groups:
            for setting in group.settings:
                if missing(setting.key) and group.skipped is None:
                    batch = batch or self.batch(start, stop)
                    try:
                        keep(setting.key, batch.converse(setting))
                    except (StageNotAvailable, BudgetError) as error:
                        # A picture of another size than the first ones, or what only a run shows.
                        found = refusal(self.model, setting, self._sizes(batch))
                        group.skip(*(found or (str(error), None)))
                yield group.name
