"""`compare`: methods and budgets on one set of dialogues, and one model or several."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

import transformers
from rich.markup import escape
from rich.progress import Progress

from foveate.adapters import adapter_for
from foveate.errors import InputError, SavedFileError, StageNotAvailable
from foveate.evaluation import cost, fingerprints, summary
from foveate.evaluation.asking import Asking, Group
from foveate.evaluation.comparison import Comparison, Price
from foveate.evaluation.data import Dialogue, fingerprint, parts
from foveate.evaluation.oracle import Oracle, check
from foveate.evaluation.price import price
from foveate.evaluation.settings import BOTH, EACH, FIRST, Keep, Setting, expand
from foveate.evaluation.store import Store
from foveate.evaluation.timing import seconds

ANSWERS = "answers.jsonl"
DIALOGUE = "dialogue"  # the setting of records that say what a dialogue is
_LEAST = {"draws": 1, "batch_size": 1, "max_new_tokens": 1, "repeats": 2}  # a spread needs two


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
    turns: str = EACH,
    oracle: bool = False,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    repeats: int = 5,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Accuracy and cost of every method at every budget, beside the full model.

    Answers are stored in `out` as they come: called again with the same arguments, it goes on
    where it was interrupted; with more dialogues, methods or budgets it asks only for those.

    Args:
        model, processor: a supported model and its processor.
        data: dialogues, as `from_reference` or `from_jsonl` give them.
        methods: as `settings.parse_method` reads them.
        budgets: counts or shares, for methods without a preset.
        out: folder of the stored answers.
        model_name, data_name: how they are called in the report.
        draws: seeds of methods that draw at random.
        turns: where methods that read the prompt choose their tokens: at ``"each"`` turn anew, at
            the ``"first"`` for the whole dialogue, as where its cache is gone on from, or
            ``"both"`` one after the other, with what a later turn takes.
        oracle: whether to add what is told where the shipped scenes show something.
        batch_size: dialogues answered at a time.
        max_new_tokens: the longest answer.
        repeats: timed prefills of each setting, at least 2.
        fresh: forget stored answers.
        progress: where to show how far it is.

    Raises:
        InputError: a number that is too small, no data, images and videos mixed in it, no later
            turn where one is asked for, or an oracle for other data than the shipped scenes.
        StageNotAvailable: the model cannot go on from a cache, and `turns` asks for it.
        SavedFileError: `out` holds answers of another model or version, or to other dialogues of
            the same names, or another run is adding to it.
        UnknownName, BudgetError: a method or budget that does not exist.
    """
    task = _Task(
        data,
        methods,
        budgets,
        draws=draws,
        turns=turns,
        oracle=oracle,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        fresh=fresh,
        progress=progress,
    )
    name = model_name or type(model).__name__
    found = task.measured(model, processor, Path(out), name)
    return summary.comparison([found], data, name, data_name)


def compare_models(
    models: Table[str, Callable[[], tuple[Any, Any]]],
    data: Sequence[Dialogue],
    methods: Sequence[str],
    budgets: Sequence[Keep],
    *,
    out: str | Path,
    data_name: str = "",
    **options: Any,
) -> Comparison:
    """The same on several models, such as one trained with several seeds, and their means.

    One model is in memory at a time. Stored answers are in a folder of each model's name.

    Args:
        models: name -> what loads the model and its processor.
        data, methods, budgets, data_name: as `compare` takes them.
        out: folder of the folders with the stored answers.
        options: further ones of `compare`.

    Returns:
        Means over the models, intervals over dialogues, standard deviations between models, and
        each model's own comparison.

    Raises:
        InputError: no model, or what `compare` raises it for.
    """
    if not models:
        raise InputError("There is nothing to compare: no model was given.")
    task = _Task(data, methods, budgets, **options)
    found: list[summary.Measured] = []
    for name, load in models.items():
        batch = found[0].batch if found else None
        found.append(task.measured(*load(), Path(out) / name, name, batch))
    title = found[0].name if len(found) == 1 else f"{len(found)} models ({', '.join(models)})"
    return summary.comparison(found, data, title, data_name)


def answers(
    model: Any,
    processor: Any,
    data: Sequence[Dialogue],
    groups: Sequence[Group],
    out: Path,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Asking:
    """Every answer of one model that is not stored yet, stored in `out` as it comes.

    Args:
        model, processor, data, batch_size, max_new_tokens, fresh, progress: as `compare` takes
            them.
        groups: the settings; those that cannot be served are marked.
        out: folder of the stored answers.

    Raises:
        SavedFileError: `out` holds answers of another model or version, or to other dialogues of
            the same names, or another run is adding to it.
    """
    facts = {
        "foveate": fingerprints.code(),
        "transformers": transformers.__version__,
        "model": fingerprints.model(model),
        "processor": fingerprints.processor(processor),
        "max_new_tokens": max_new_tokens,
    }
    with contextlib.closing(Store(out / ANSWERS, facts, fresh=fresh)) as store:
        _note(store, data)
        asking = Asking(model, processor, data, groups, store, batch_size, max_new_tokens, progress)
        asking.foresee()
        asking.run()
    return asking


def changed(store: Store, data: Sequence[Dialogue]) -> str | None:
    """The first dialogue of whose name another one was answered."""
    for each in data:
        key = DIALOGUE, each.name
        if key in store and store[key]["of"] != fingerprint([each]):
            return each.name
    return None


def _note(store: Store, data: Sequence[Dialogue]) -> None:
    """Store what each dialogue is, so that more of them can be asked later, but no others."""
    other = changed(store, data)
    if other is not None:
        raise SavedFileError(
            f"{store.path} holds answers to another dialogue {other!r}.\n"
            "Choose another folder, or start over with --fresh."
        )
    for each in data:
        if (DIALOGUE, each.name) not in store:
            store.add(DIALOGUE, each.name, of=fingerprint([each]))


@dataclasses.dataclass
class _Task:
    """What is asked of every model; see `compare`."""

    data: Sequence[Dialogue]
    methods: Sequence[str]
    budgets: Sequence[Keep]
    draws: int = 3
    turns: str = EACH
    oracle: bool = False
    batch_size: int = 16
    max_new_tokens: int = 16
    repeats: int = 5
    fresh: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("There is nothing to compare on: the data holds no dialogue.")
        if len({each.is_video for each in self.data}) > 1:
            raise InputError("The data mixes images and videos.\nCompare on one of them at a time.")
        self.groups()  # unknown names and budgets out of range
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}; got {getattr(self, name)}.")
        if self.turns != EACH and all(len(each.turns) < 2 for each in self.data):
            raise InputError(
                f"turns={self.turns!r} is about later turns, and no dialogue here has a second one."
                "\nLeave it out: there is one way to choose."
            )
        if self.oracle:
            check(self.data)

    def groups(self) -> list[Group]:
        """The rows to come."""
        found = expand(self.methods, self.budgets, self.draws, self.turns)
        told: list[list[Setting]] = [[Oracle(keep=keep)] for keep in self.budgets]
        return [Group(settings) for settings in [*found, *(told if self.oracle else [])]]

    def measured(
        self, model: Any, processor: Any, out: Path, name: str, batch: int | None = None
    ) -> summary.Measured:
        """Answers and costs of one model.

        Args:
            model, processor: as loaded.
            out: folder of its stored answers.
            name: how it is called.
            batch: prompts of the timed prefill; found out if None.
        """
        if self.turns != EACH and not adapter_for(model).later_turns:
            raise StageNotAvailable(
                f"{model.config.model_type!r} cannot go on from a cache with another turn, so "
                f"nothing is chosen for later ones.\nLeave out turns={self.turns!r}."
            )
        asking = answers(
            model,
            processor,
            self.data,
            self.groups(),
            out,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            fresh=self.fresh,
            progress=self.progress,
        )
        return self._costs(asking, name, batch)

    def _costs(self, asking: Asking, name: str, batch: int | None) -> summary.Measured:
        """What every setting takes that was not left out."""
        model, most = asking.model, next(parts(self.data, cost.LARGEST)).stop
        asked = asking.batch(0, most)

        def inputs(rows: int) -> dict[str, Any]:
            return asked.inputs(range(rows), 0, [[]] * rows)

        rows = batch or cost.compute_bound_batch(model, inputs, most)
        given = inputs(rows)
        full = cost.measure(model, given, None, self.repeats)
        task = None
        if self.progress is not None:
            task = self.progress.add_task("timing", total=len(asking.groups))
        known: dict[Setting, cost.Cost] = {}
        costs: list[cost.Cost | None] = []
        prices: list[Price | None] = []
        for group in asking.groups:
            setting = group.twin[0]  # a first turn is the same wherever later ones choose
            if group.skipped is None and setting not in known:
                attach = functools.partial(asked.attach, setting, range(rows), asked.told(setting))
                known[setting] = cost.measure(model, given, attach, self.repeats)
            costs.append(known[setting] if group.skipped is None else None)
            paid = self.turns == BOTH and group.turns == FIRST and group.skipped is None
            paid &= not group.oracle
            prices.append(self._price(asking, group.first) if paid else None)
            if self.progress is not None and task is not None:
                self.progress.update(task, description=f"timing {escape(group.name)}", advance=1)
        base = [each.time.base_seconds for each in known.values() if each.time is not None]
        # With every method left out, nothing has been timed beside the full model.
        base = base or [
            seconds(lambda: cost.prefill(model, given), model.device.type)
            for _ in range(self.repeats)
        ]
        return summary.Measured(
            name=name,
            store=asking.store,
            groups=asking.groups,
            batch=rows,
            full=full,
            seconds=statistics.median(base),
            costs=costs,
            prices=prices,
            setting=summary.setting_of(model),
        )

    def _price(self, asking: Asking, setting: Setting) -> Price | None:
        return price(
            asking.model,
            asking.processor,
            setting,
            self.data,
            self.max_new_tokens,
            self.repeats,
        )
