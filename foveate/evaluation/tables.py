"""A comparison in the terminal, and the cells that its report has as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from foveate.evaluation.comparison import Accuracy, Comparison, Price, Reuse, Row, Skipped
from foveate.evaluation.stats import Interval
from foveate.evaluation.timing import Ratio


def tables(found: Comparison) -> list[Table]:
    """Accuracy, cost, and what else was asked for, for the terminal; each fits into 80 columns."""
    turns = turn_names(len(found.full.turns))
    accuracy = _table(
        escape(f"{found.model} on {found.data}: ")
        + f"{found.questions} questions, {found.dialogues} dialogues",
        ("method", "keep", *turns, "Avg", r"- full \[95 %]"),
    )
    accuracy.add_row("full model", "100%", *cells(found.full), "", style="bold")
    for name, each in baselines(found):
        accuracy.add_row(name, "", *cells(each), "", style="dim")
    guess = f"{found.majority:.3f}"
    accuracy.add_row("majority", "", *[""] * len(turns), guess, "", style="dim", end_section=True)
    cost = _table(
        "Cost of a prefill, as shares of the full model's",
        ("method", "keep", "entering", "mean", "FLOPs", "KV", r"time \[quartiles]"),
    )
    anew = {(row.method, row.budget) for row in found.rows if row.turns == "each"}
    for row in entries(found):
        if isinstance(row, Skipped):
            accuracy.add_row(escape(named(row)), row.budget, *[""] * (len(turns) + 1), row.short)
            continue
        style = "italic" if row.oracle else None
        accuracy.add_row(
            escape(named(row)), row.budget, *cells(row.accuracy), delta(row), style=style
        )
        # A first turn is the same wherever later ones choose.
        if row.turns != "first" or (row.method, row.budget) not in anew:
            cost.add_row(escape(named(row)), row.budget, *counts(row), *costs(row), style=style)
    accuracy.caption, accuracy.caption_justify = escape("\n".join(notes(found))) or None, "left"
    cost.caption, cost.caption_justify = escape(_caption(found)), "left"
    shown = [accuracy, cost]
    if found.reuse:
        shown.append(_reuse_table(found))
    if found.models:
        shown.append(_models_table(found))
    return shown


def _reuse_table(found: Comparison) -> Table:
    out = _table(
        "Choosing at the first turn, as on a cache that is gone on from, beside each turn",
        ("method", "keep", r"first - each \[95 %]", "again", "new", r"time \[quartiles]"),
    )
    for each in found.reuse:
        out.add_row(escape(named(each)), each.budget, interval(each.difference), *paid(each.price))
    out.caption, out.caption_justify = "\n".join(reuse_notes(found)), "left"
    return out


def _models_table(found: Comparison) -> Table:
    out = _table(
        f"Between the {len(found.models)} models: mean, standard deviation, least and most",
        ("method", "keep", "Avg", "sd", "- full", "sd", "least", "most"),
    )
    out.add_row("full model", "100%", f"{found.full.mean:.3f}", f"{found.spread:.3f}", style="bold")
    for row in found.rows:
        if row.spread is None:
            continue
        gains = [each.difference[0] for each in of_models(found, row)]
        ends = f"{min(gains):+.3f}", f"{max(gains):+.3f}"
        gain, spread = row.difference[0], row.spread
        values = f"{row.accuracy.mean:.3f}", f"{spread.accuracy:.3f}", f"{gain:+.3f}"
        out.add_row(escape(named(row)), row.budget, *values, f"{spread.difference:.3f}", *ends)
    return out


def of_models(found: Comparison, row: Row) -> list[Row]:
    """A row as each model has it."""
    return [
        each
        for model in found.models
        for each in model.rows
        if (each.method, each.budget, each.turns) == (row.method, row.budget, row.turns)
    ]


def entries(found: Comparison) -> list[Row | Skipped]:
    """Rows, and budgets that are out of reach beside those of the same method; oracles last."""
    both = {(each.method, each.budget) for each in found.skipped if each.turns == "each"}
    out_of_reach = [
        each
        for each in found.skipped
        if each.short and (each.turns != "first" or (each.method, each.budget) not in both)
    ]
    methods = [row for row in found.rows if not row.oracle]
    together: list[Row | Skipped] = [*methods, *out_of_reach]
    order = list(dict.fromkeys(each.method for each in together))
    oracles = [row for row in found.rows if row.oracle]
    return [*sorted(together, key=lambda each: order.index(each.method)), *oracles]


def named(each: Row | Reuse | Skipped) -> str:
    """A method's name with what the table does not say otherwise."""
    way = " first" if not isinstance(each, Reuse) and each.turns == "first" else ""
    draws = 1 if isinstance(each, Skipped) else each.draws
    return f"{each.method}{way}" + (f" x{draws}" if draws > 1 else "")


def notes(found: Comparison) -> list[str]:
    """What the names in the table of accuracies mean."""
    lines = list(dict.fromkeys(f"{r.method}: {r.note}" for r in found.rows if r.note))
    if any(row.turns == "first" for row in found.rows):
        lines.append("first: tokens are chosen at a dialogue's first turn and kept.")
        same = dict.fromkeys(r.method for r in found.rows if r.turns == "either" and not r.oracle)
        if same:
            lines.append(f"both ways are one, as no prompt is read: {', '.join(same)}.")
    return lines


def reuse_notes(found: Comparison) -> list[str]:
    """What the columns of choosing at the first turn mean."""
    measured = [each.price for each in found.reuse if each.price is not None]
    if not measured:
        return ["The price of a later turn is measured on images only."]
    return [
        "again: tokens that enter the LLM where a later turn runs the conversation again;",
        "new: where it goes on from the cache; time: the second's over the first's, alternated, up "
        "to the",
        f"answer's first token, one conversation at a time, {measured[0].turns} later turns.",
    ]


def paid(price: Price | None) -> tuple[str, str, str]:
    """Tokens of a later turn both ways, and the share of the time that going on takes."""
    if price is None:
        return "", "", ""
    return f"{price.whole:.4g}", f"{price.new:.4g}", _ratio(price.time)


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _table(title: str, columns: Sequence[str]) -> Table:
    out = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for number, name in enumerate(columns):
        # A long name takes a second line; numbers are never cut.
        side: Any = "right" if number else "left"
        out.add_column(name, justify=side, no_wrap=bool(number), overflow="fold")
    return out


def _caption(found: Comparison) -> str:
    visual = f"{found.rows[0].visual:g}" if found.rows else "?"
    lines = [
        f"entering: visual tokens entering the LLM, of {visual} a picture; mean: over its layers.",
        f"full model, tower included: {found.flops / 1e9:.3g} GFLOPs (counted) and "
        f"{found.kv_bytes / 1024:.4g} KiB a prompt, {1e3 * found.prefill_seconds:.3g} ms "
        f"for {found.batch} prompts.",
        ", ".join(f"{key} {value}" for key, value in found.setting.items()),
    ]
    reasons = {(s.method, s.reason.splitlines()[0]): None for s in found.skipped if not s.short}
    lines += [f"left out: {method}: {reason}" for method, reason in reasons]
    return "\n".join(lines)


def turn_names(turns: int) -> list[str]:
    """Acc1, Acc2 .., where there are several turns."""
    return [f"Acc{i + 1}" for i in range(turns)] if turns > 1 else []


def cells(accuracy: Accuracy) -> list[str]:
    """Accuracy of each turn and of all."""
    turns = accuracy.turns if len(accuracy.turns) > 1 else ()
    return [f"{value:.3f}" for value in (*turns, accuracy.mean)]


def baselines(found: Comparison) -> list[tuple[str, Accuracy]]:
    """The full model without the picture it was asked about."""
    wrong = [("wrong picture", found.wrong)] if found.wrong is not None else []
    return [("grey picture", found.blind), *wrong]


def turn_deltas(row: Row | Reuse) -> list[str]:
    """The difference in each turn, where there are several."""
    shown = row.turn_differences if len(row.turn_differences) > 1 else ()
    return [interval(each) for each in shown]


def interval(difference: Interval) -> str:
    """A difference with its interval."""
    value, low, high = difference
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def counts(row: Row) -> tuple[str, str]:
    """Tokens entering the LLM, and averaged over its layers."""
    return f"{row.entering:.4g}", f"{row.average:.4g}"


def delta(row: Row | Reuse) -> str:
    """The difference with its interval."""
    return interval(row.difference)


def costs(row: Row) -> tuple[str, str, str]:
    """Shares of the full model's FLOPs, KV bytes and prefill time."""
    return (
        f"{row.flops_share:.3f}",
        f"{row.kv_share:.3f}",
        _ratio(row.time),
    )
