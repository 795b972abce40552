r"""Does the reference model tell methods apart? Every method's accuracy at half the tokens to few.

    python -m benchmarks.discrimination                             # the shipped model
    python -m benchmarks.discrimination --all-seeds RUNS            # every training seed in RUNS
    python -m benchmarks.discrimination --from-store                # the page alone, nothing runs

Answers are stored as they come: interrupted, the same command goes on. The page,
`docs/discrimination.md`, and its picture are made of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.pages import ASKED, errors_told, last_run, note
from foveate import catalog
from foveate.cli.loading import Source
from foveate.cli.seeds import named, seeds_in
from foveate.evaluation import stats
from foveate.evaluation.answering import BLIND, FULL, WRONG
from foveate.evaluation.asking import Group
from foveate.evaluation.compare import ANSWERS, answers
from foveate.evaluation.data import Dialogue, from_reference
from foveate.evaluation.oracle import NAME as ORACLE
from foveate.evaluation.oracle import Oracle
from foveate.evaluation.settings import Setting, expand
from foveate.evaluation.store import Store
from foveate.evaluation.summary import majority, mean, rights

DOCS = Path(__file__).parents[1] / "docs"
BUDGETS = (0.5, 0.25, 0.1, 0.05)
SURE = 0.05
# Methods that are not asked, and why.
LEFT_OUT = {
    ("trim",): "which needs CLIP's text tower beside the model's own",
    (
        "metacompress",
        "relevance",
        "seek",
    ): "trained for one model each time, and shipped for the reference models alone",
}

Array = np.ndarray


class Found:
    """Stored answers of several models, by method and budget.

    Args:
        stores: of each model.
        data: the dialogues.
    """

    def __init__(self, stores: Sequence[Store], data: Sequence[Dialogue]) -> None:
        self.stores, self.data = stores, data
        self.asked = np.array([float(len(each.turns)) for each in data])

    def right(self, keys: Sequence[str]) -> Array | None:
        """(models, dialogues) right answers to each dialogue, a mean over keys; None: not asked."""
        known = all((k, d.name) in s for s in self.stores for k in keys for d in self.data)
        if not known:
            return None
        found = [mean([rights(store, self.data, list(keys))]) for store in self.stores]
        return np.array([[sum(turns) for turns in each] for each in found])

    def accuracy(self, right: Array) -> float:
        """Share of right answers, a mean over the models."""
        return float(right.mean(0).sum() / self.asked.sum())

    def apart(
        self, first: Array, second: Array, spread: stats.Spread | None = None
    ) -> tuple[stats.Interval, float]:
        """The difference of two settings with its interval, and how sure its sign is.

        Args:
            first, second: right answers of each model to each dialogue.
            spread: how much models differ in it, to speak of any training of such a model; of
                those that were asked if None.
        """
        gains = first - second
        if spread is None:
            gains = gains.mean(0, keepdims=True)
        return stats.between_models(gains, self.asked, spread=spread)


def groups() -> list[tuple[Setting, ...]]:
    """Every method at every budget, and the oracle; what is drawn at random three times.

    Learned compressors are judged in pages of their own.
    """
    left_out = {name for names in LEFT_OUT for name in names}
    methods = [name for name in catalog.names() if name not in left_out]
    found = [tuple(each) for each in expand(methods, BUDGETS, 3)]
    return [*found, *((Oracle(keep=keep),) for keep in BUDGETS)]


def table(found: Found) -> dict[str, dict[float, Array]]:
    """Method -> budget -> right answers, as far as a budget can be met; the best at 10 % first."""
    rows: dict[str, dict[float, Array]] = {}
    for group in groups():
        right = found.right([each.key for each in group])
        if right is not None and isinstance(group[0].keep, float):
            rows.setdefault(group[0].label, {})[group[0].keep] = right
    full = found.right([FULL])

    def rank(item: tuple[str, dict[float, Array]]) -> tuple[bool, float]:
        budget = 0.1 if 0.1 in item[1] else min(item[1])
        return budget != 0.1, -found.accuracy(item[1][budget])

    assert full is not None
    return dict(sorted(rows.items(), key=rank))


class Pairs(NamedTuple):
    """Pairs of methods at a budget: those that differ for sure, all of them, and those of the sure
    ones that every model puts in the same order.
    """

    sure: int
    all: int
    alike: int


def separated(
    found: Found, rows: Mapping[str, dict[float, Array]], any_model: bool = False
) -> dict[float, Pairs]:
    """Budget -> pairs of methods; the oracle is no method.

    Sure: p below 0.05 in the paired bootstrap, corrected by Holm for all pairs of the budget.

    Args:
        found: the answers.
        rows: as `table` gives them.
        any_model: whether of any training of such a model; of those that were asked if not.
    """
    counts = {}
    for keep in BUDGETS:
        there = [each[keep] for name, each in rows.items() if keep in each and name != ORACLE]
        both = list(itertools.combinations(there, 2))
        spreads: list[stats.Spread | None] = [None] * len(both)
        if any_model:
            spreads = [*stats.spreads([stats.own_spread(a - b, found.asked) for a, b in both])]
        values = stats.holm(
            [found.apart(a, b, how)[1] for (a, b), how in zip(both, spreads, strict=True)]
        )
        sure = [
            (a - b).sum(1) for (a, b), p in zip(both, values, strict=True) if p < SURE
        ]  # of each model
        alike = sum(bool((each > 0).all() or (each < 0).all()) for each in sure)
        counts[keep] = Pairs(len(sure), len(both), alike)
    return counts


def steepest(path: Mapping[float, float]) -> str:
    """The most that is lost from one budget to the next, and where that leads.

    Args:
        path: budget -> accuracy, the largest budget first.
    """
    steps = itertools.pairwise(path.items())
    loss, keep = max((before - after, keep) for (_, before), (keep, after) in steps)
    return f"{loss:.3f} to {100 * keep:g} %"


def page(found: Found, facts: Mapping[str, Any]) -> str:
    """The page, from stored answers alone."""
    rows = table(found)
    conditions = {name: found.right([name]) for name in (FULL, BLIND, WRONG)}
    full = conditions[FULL]
    assert full is not None
    heads = [f"{100 * keep:g} %" for keep in BUDGETS]
    lines = [
        f"| method | {' | '.join(heads)} | steepest |",
        "| --- |" + " --- |" * (len(BUDGETS) + 1),
    ]
    for name, each in rows.items():
        cells, path = [], {1.0: found.accuracy(full)}
        for keep in BUDGETS:
            if keep not in each:
                cells.append("out of reach")
                continue
            path[keep] = found.accuracy(each[keep])
            (value, low, high), _ = found.apart(each[keep], full)
            cells.append(f"{path[keep]:.3f} ({value:+.3f} [{low:+.3f}, {high:+.3f}])")
        lines.append(f"| {name} | {' | '.join(cells)} | {steepest(path)} |")
    said = [
        f"{found.accuracy(right):.3f} {name}"
        for name, right in conditions.items()
        if right is not None
    ]
    models = facts["models"]
    absent = "; ".join(
        f"{' and '.join(f'`{name}`' for name in names)}, {why}" for names, why in LEFT_OUT.items()
    )
    counts = separated(found, rows)
    sure = ", ".join(f"{each.sure} of {each.all} at {100 * k:g} %" for k, each in counts.items())
    also = ""
    if len(models) > 1:
        alike = sum(each.alike for each in counts.values())
        anywhere = separated(found, rows, any_model=True)
        also = (
            f" All {len(models)} models put {alike} of these "
            f"{sum(each.sure for each in counts.values())} in the same order. With the doubt "
            "about any other training added (Student's t, where all pairs of a budget together "
            f"tell how much models differ) {sum(each.sure for each in anywhere.values())} are left."
        )
    return "\n".join(
        [
            "<!-- Made by `python -m benchmarks.discrimination`; edit that file. -->",
            "",
            "# Does the reference model tell methods apart?",
            "",
            f"{len(models)} model{'s' if len(models) > 1 else ''} ({', '.join(models)}), "
            f"{len(found.data)} dialogues of the test split, {int(found.asked.sum())} questions. "
            f"Accuracy: {', '.join(said)}; {majority(found.data):.3f} by each kind's most "
            f"frequent answer. Code: {found.stores[0].facts['foveate']}, transformers "
            f"{found.stores[0].facts['transformers']}.",
            "",
            "In brackets: the difference from the full model with its 95 % interval, by the paired "
            f"bootstrap over dialogues, of {'these models' if len(models) > 1 else 'this model'}: "
            "another training may differ by more. Budgets are shares of the visual tokens, on "
            "average over the decoder's layers. *Out of reach*: with few layers, those that run on "
            "all tokens before the first drop take more than the budget. `random` is the mean of "
            "three draws. `oracle` is no method: it is told which patches show something, but not "
            "what will be asked. *Steepest*: the most that is lost from one budget to the next, "
            "beginning with all tokens, and the budget that it is lost at.",
            "",
            f"Left out: {absent}.",
            "",
            *lines,
            "",
            f"Pairs of methods that differ for sure: {sure} (p < {SURE:g}, corrected by Holm for "
            "all pairs of a budget)." + also,
            "",
            "![Accuracy over budgets](pictures/discrimination.png)",
            "",
            *(by_model(found, rows, full, models) if len(models) > 1 else ()),
        ]
    )


def by_model(
    found: Found, rows: Mapping[str, dict[float, Array]], full: Array, models: Sequence[str]
) -> list[str]:
    """Accuracy of each model, as a section."""

    def each_of(right: Array) -> str:
        return " / ".join(f"{value:.3f}" for value in right.sum(1) / found.asked.sum())

    heads = " | ".join(f"{100 * keep:g} %" for keep in BUDGETS)
    lines = [
        f"## {', '.join(models)}",
        "",
        f"The same by model. All tokens: {each_of(full)}.",
        "",
        f"| method | {heads} |",
        "| --- |" + " --- |" * len(BUDGETS),
    ]
    for name, each in rows.items():
        cells = [each_of(each[keep]) if keep in each else "out of reach" for keep in BUDGETS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def picture(found: Found) -> Any:
    """Accuracy over budgets: methods before and inside the language model in a panel each."""
    from matplotlib.figure import Figure

    full = found.right([FULL])
    assert full is not None
    rows = table(found)
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    inside = {name for name in rows if name != ORACLE and 0.05 not in rows[name]}
    for panel, title, names in (
        (panels[0], "every budget can be met", [name for name in rows if name not in inside]),
        (panels[1], "the first layers run on all tokens", [ORACLE, *sorted(inside)]),
    ):
        for number, name in enumerate(names):
            each = rows.get(name, {})
            budgets = [keep for keep in BUDGETS if keep in each]
            panel.plot(
                [100, *(100 * keep for keep in budgets)],
                [found.accuracy(full), *(found.accuracy(each[keep]) for keep in budgets)],
                label=name,
                marker="osD^vP*X"[number % 8],
                color="0.2" if name == ORACLE else f"C{number % 10}",
                linestyle="--" if name == ORACLE or number >= 10 else "-",
                markersize=4,
                linewidth=1.1,
            )
        panel.set_xscale("log")
        panel.set_xticks([100, *(100 * keep for keep in BUDGETS)])
        panel.set_xticklabels(["100", *(f"{100 * keep:g}" for keep in BUDGETS)])
        panel.minorticks_off()
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("visual tokens, % (mean over layers)", fontsize=9)
        panel.grid(alpha=0.25)
        # Where no line runs: few tokens are out of reach on the right.
        corner = "lower right" if panel is panels[0] else "lower left"
        panel.legend(fontsize=7, ncols=2, loc=corner)
    panels[0].set_ylabel("accuracy", fontsize=9)
    return figure


def ask(
    models: Mapping[str, str],
    data: Sequence[Dialogue],
    store: Path,
    batch: int,
    progress: Progress,
) -> None:
    """Everything that the page needs, stored."""
    for name, place in models.items():
        model, processor = Source(place, dtype="float32").load()
        asked = [Group(each) for each in groups()]
        answers(model, processor, data, asked, store / name, batch_size=batch, progress=progress)


app = typer.Typer(add_completion=False)


@app.command()
@errors_told()
def main(
    model: Annotated[list[str] | None, typer.Option(help="Several for their mean.")] = None,
    all_seeds: Annotated[
        Path | None, typer.Option(help="A folder of folders seed0, seed1 .. instead.")
    ] = None,
    dialogues: Annotated[int, typer.Option(help="Test scenes.", min=2)] = 1000,
    store: Annotated[Path, typer.Option(help="Folder of the answers.")] = Path(
        "output/discrimination"
    ),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = DOCS,
    batch: Annotated[int, typer.Option(help="Dialogues answered at a time.", min=1)] = 25,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="The page of the last run; nothing runs.")
    ] = False,
) -> None:
    """Run what the page needs, and write it."""
    if from_store:
        facts = last_run(store)
        data = from_reference(facts["dialogues"])
    else:
        models = seeds_in(all_seeds) if all_seeds else named(model or ["reference"])
        data = from_reference(dialogues)
        with Progress(transient=True) as progress:
            ask(models, data, store, batch, progress)
        facts = {"models": list(models), "dialogues": dialogues}
        note(store / ASKED, facts)
    found = Found([Store.existing(store / name / ANSWERS) for name in facts["models"]], data)
    write(found, facts, out)
    typer.echo(str(out / "discrimination.md"))


def write(found: Found, facts: Mapping[str, Any], out: Path) -> None:
    """The page and its picture."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    picture(found).savefig(out / "pictures" / "discrimination.png", dpi=110)
    (out / "discrimination.md").write_text(page(found, facts))


if __name__ == "__main__":
    app()
