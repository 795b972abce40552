"""How many questions a trained compressor leaves right, and at how many visual tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Table
from typing import Any

from foveate.attach import Run, attach
from foveate.compressor import Compressor, Stage
from foveate.errors import BudgetError, StageNotAvailable
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue, form, parts
from foveate.evaluation.settings import Keep, Setting
from foveate.training.processes import Process
from foveate.training.student import frozen

MOST = 100  # dialogues: enough for a card, few enough for the end of every training


@dataclasses.dataclass(frozen=True)
class Row:
    """The full model, or the compressed one at a budget.

    Attributes:
        keep: the budget; None of the full model.
        accuracy: share of the questions that it answers right.
        entering: visual tokens of a picture that enter the language model.
        average: those averaged over its layers.
    """

    keep: Keep | None
    accuracy: float
    entering: float
    average: float


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """What was measured on held-out dialogues.

    Attributes:
        dialogues, held: how many were asked, and among how many held out.
        questions: asked, of all their turns.
        rows: the full model's first; budgets that these pictures cannot have are left out.
    """

    dialogues: int
    held: int
    questions: int
    rows: tuple[Row, ...]

    @property
    def values(self) -> dict[str, float]:
        """The same by names."""
        found = {}
        for row in self.rows:
            budget = "full" if row.keep is None else f"{row.keep:g}"
            for name in ("accuracy", "entering", "average"):
                found[f"{name}_{budget}"] = getattr(row, name)
        return found


@dataclasses.dataclass(frozen=True)
class _Given(Setting):
    """A compressor that is at hand, with further options of `foveate.attach`."""

    compressor: Compressor = dataclasses.field(kw_only=True)
    attached: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    def resolved(self) -> tuple[Compressor, Keep | None]:
        """The compressor and the budget."""
        return self.compressor, self.keep

    def attach(self, model: Any, **options: Any) -> Run:
        """`foveate.attach` with it."""
        return attach(model, self.compressor, keep=self.keep, **options | self.attached)


def measure(
    method: Compressor,
    model: Any,
    processor: Any,
    dialogues: Sequence[Dialogue],
    keeps: Iterable[Keep],
    process: Process,
    *,
    most: int = MOST,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    attached: Table[str, Any] | None = None,
) -> Accuracy | None:
    """Exact-match accuracy of the full and the compressed model, as `foveate compare` counts it.

    Args:
        method: with its parameters.
        model, processor: as loaded.
        dialogues: held out.
        keeps: budgets.
        process: which of several this is; each asks its share.
        most: dialogues that are asked, the first ones.
        max_new_tokens: the longest answer.
        batch_size: dialogues answered at a time.
        attached: further options of `foveate.attach`.

    Returns:
        None where no dialogue has an answer to each of its turns.
    """
    held = [each for each in dialogues if all(any(turn.answers) for turn in each.turns)]
    asked = held[:most]
    if not asked:
        return None
    settings = [
        _Given("", keep, compressor=method, attached=dict(attached or {})) for keep in keeps
    ]
    share = sorted(process.share(asked), key=form)
    encoded = method.parts[0].stage not in (Stage.IMAGE, Stage.ENCODER)
    sums: dict[int, list[float]] = {i: [0.0] * 4 for i in range(-1, len(settings))}
    out_of_reach: set[int] = set()
    with frozen(model):
        for part in parts(share, batch_size):
            some = share[part]
            batch = Batch(
                model,
                processor,
                some,
                [each.load() for each in some],
                method.reads if encoded else frozenset(),
                max_new_tokens,
            )
            _count(sums[-1], some, batch.converse(None))
            for i, setting in enumerate(settings):
                if i in out_of_reach:
                    continue
                try:
                    _count(sums[i], some, batch.converse(setting))
                except (BudgetError, StageNotAvailable):
                    out_of_reach.add(i)
    net = getattr(method, "net", None)
    if net is not None:
        net.cpu()  # as trainings hand it out; attaching has moved it
    everyone = process.gathered((sums, out_of_reach))
    total = {
        i: [sum(s) for s in zip(*(each[i] for each, _ in everyone), strict=True)] for i in sums
    }
    served = [i for i in range(len(settings)) if not any(i in out for _, out in everyone)]
    questions = sum(len(each.turns) for each in asked)
    pictures = sum((1 if d.is_video else len(d.pictures)) * len(d.turns) for d in asked)
    rows = [
        Row(
            settings[i].keep,
            total[i][0] / questions,
            total[i][2] / pictures,
            total[i][3] / pictures,
        )
        for i in served
    ]
    whole = total[served[0]][1] / pictures if served else 0.0
    full = Row(None, total[-1][0] / questions, whole, whole)
    return Accuracy(len(asked), len(held), questions, (full, *rows))


def _count(sums: list[float], dialogues: Sequence[Dialogue], records: list[dict[str, Any]]) -> None:
    """Add right answers and visual tokens: before, entering, on average."""
    for dialogue, record in zip(dialogues, records, strict=True):
        said = zip(dialogue.turns, record["answers"], strict=True)
        sums[0] += sum(turn.right(answer) for turn, answer in said)
        for i, name in enumerate(("n", "entering", "average"), start=1):
            sums[i] += record[name]
