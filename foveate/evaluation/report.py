"""A comparison for people: a table in the terminal, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

from foveate.evaluation.comparison import Accuracy, Comparison, Row
from foveate.evaluation.stats import Interval

Picture = tuple[str, Image.Image]  # caption, image


def tables(found: Comparison) -> tuple[Table, Table]:
    """Accuracy and cost for the terminal; each fits into 80 columns."""
    turns = _turn_names(len(found.full.turns))
    accuracy = _table(
        f"{found.model} on {found.data}: {found.questions} questions, {found.dialogues} dialogues",
        ("method", "keep", *turns, "Avg", r"- full \[95 %]"),
    )
    accuracy.add_row("full model", "100%", *_cells(found.full), "", style="bold")
    for name, each in baselines(found):
        accuracy.add_row(name, "", *_cells(each), "", style="dim")
    guess = f"{found.majority:.3f}"
    accuracy.add_row("majority", "", *[""] * len(turns), guess, "", style="dim", end_section=True)
    cost = _table(
        "Cost of a prefill, as shares of the full model's",
        ("method", "keep", "entering", "mean", "FLOPs", "KV", r"time \[quartiles]"),
    )
    cost.caption, cost.caption_justify = _caption(found), "left"
    for row in found.rows:
        name = row.method if row.draws == 1 else f"{row.method} x{row.draws}"
        accuracy.add_row(name, row.budget, *_cells(row.accuracy), delta(row))
        cost.add_row(name, row.budget, *counts(row), *costs(row))
    return accuracy, cost


def _table(title: str, columns: Sequence[str]) -> Table:
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        out.add_column(name, justify="right" if number else "left", no_wrap=True)
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
    reasons = {(m, reason.splitlines()[0]): None for m, _, reason in found.skipped}
    lines += [f"left out: {method}: {reason}" for method, reason in reasons]
    return "\n".join(lines)


def _turn_names(turns: int) -> list[str]:
    return [f"Acc{i + 1}" for i in range(turns)] if turns > 1 else []


def _cells(accuracy: Accuracy) -> list[str]:
    turns = accuracy.turns if len(accuracy.turns) > 1 else ()
    return [f"{value:.3f}" for value in (*turns, accuracy.mean)]


def baselines(found: Comparison) -> list[tuple[str, Accuracy]]:
    """The full model without the picture it was asked about."""
    wrong = [("wrong picture", found.wrong)] if found.wrong is not None else []
    return [("grey picture", found.blind), *wrong]


def turn_deltas(row: Row) -> list[str]:
    """The difference to the full model in each turn, where there are several."""
    shown = row.turn_differences if len(row.turn_differences) > 1 else ()
    return [_interval(each) for each in shown]


def _interval(difference: Interval) -> str:
    value, low, high = difference
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def counts(row: Row) -> tuple[str, str]:
    """Tokens entering the LLM, and averaged over its layers."""
    return f"{row.entering:.4g}", f"{row.average:.4g}"


def delta(row: Row) -> str:
    """The difference to the full model with its interval."""
    return _interval(row.difference)


def costs(row: Row) -> tuple[str, str, str]:
    """Shares of the full model's FLOPs, KV bytes and prefill time."""
    return (
        f"{row.flops_share:.3f}",
        f"{row.kv_share:.3f}",
        f"{row.time.median:.2f} [{row.time.low:.2f}, {row.time.high:.2f}]",
    )


# ---------------------------------------------------------------------- HTML


def write_html(found: Comparison, path: str | Path, pictures: Sequence[Picture] = ()) -> Path:
    """One file with table, plots and pictures in it; nothing is loaded from elsewhere.

    Args:
        found: what was compared.
        path: the file.
        pictures: (caption, image) of what the methods kept.
    """
    from jinja2 import Environment

    source = resources.files("foveate.evaluation").joinpath("report.html").read_text()
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    text = page.render(
        found=found,
        turns=_turn_names(len(found.full.turns)),
        cells=_cells,
        counts=counts,
        delta=delta,
        turn_deltas=turn_deltas,
        interval=_interval,
        baselines=baselines(found),
        costs=costs,
        kinds=sorted(found.full.kinds),
        plots=[
            ("against tokens that enter the LLM", plot(found, "entering")),
            ("against FLOPs of a prefill", plot(found, "flops_share")),
        ]
        if found.rows
        else [],
        pictures=[(caption, _uri(image, "PNG")) for caption, image in pictures],
    )
    target, partial = Path(path), Path(f"{path}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
    return target


def plot(found: Comparison, cost: str) -> str:
    """Accuracy against a cost, as the data URI of an SVG.

    Args:
        found: what was compared.
        cost: field of `Row` on the horizontal axis.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # A figure of its own: pyplot's global state and backend stay as the user has them.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "foveate", "font.size": 10}):
        figure = Figure(figsize=(7.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        lines: dict[str, list[Row]] = {}
        for row in found.rows:
            lines.setdefault(row.method, []).append(row)
        markers = "osD^vP*XphH<>d"
        for number, (name, rows) in enumerate(lines.items()):
            rows = sorted(rows, key=lambda row: float(getattr(row, cost)))
            x = [float(getattr(row, cost)) for row in rows]
            y = [row.accuracy.mean for row in rows]
            low = [row.difference[0] - row.difference[1] for row in rows]
            high = [row.difference[2] - row.difference[0] for row in rows]
            # Points of one budget would hide each other's intervals.
            nudge = 1 + 0.012 * (number - len(lines) / 2) * (cost == "entering")
            axes.errorbar(
                [value * nudge for value in x],
                y,
                yerr=[low, high],
                label=name,
                marker=markers[number % len(markers)],
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else "--",
                markersize=5,
                linewidth=1.2,
                elinewidth=0.7,
                capsize=2,
            )
        for label, value, style in (
            ("full model", found.full.mean, "-"),
            *((name, each.mean, ":") for name, each in baselines(found) if each is found.wrong),
            ("majority", found.majority, "-."),
        ):
            axes.axhline(value, color="0.45", linewidth=0.9, linestyle=style)
            axes.annotate(
                label,
                (0.0, value),
                xycoords=("axes fraction", "data"),
                xytext=(4, 3),
                textcoords="offset points",
                color="0.35",
                fontsize=8,
            )
        axes.set_xlabel(
            "visual tokens entering the LLM" if cost == "entering" else "FLOPs / full model's"
        )
        if cost == "entering":
            axes.set_xscale("log")
            ticks = sorted({row.entering for row in found.rows})
            axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks], minor=False)
            axes.set_xticks([], minor=True)
        axes.set_ylabel("accuracy (bars: 95 % of the difference to full)")
        axes.grid(alpha=0.25)
        figure.legend(fontsize=8, loc="outside right upper", frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def kept_pictures(
    model: Any, processor: Any, data: Sequence[Any], settings: Sequence[Any], count: int
) -> list[Picture]:
    """What each setting keeps of the first pictures.

    Args:
        model, processor: as loaded.
        data: dialogues; the first question of each is asked.
        settings: what is drawn, one panel each.
        count: how many pictures.
    """
    from foveate import drawing
    from foveate.evaluation.answering import Batch
    from foveate.evaluation.cost import prefill

    found = []
    for dialogue in data[:count]:
        pictures = dialogue.load()
        batch = Batch(model, processor, [dialogue], [pictures], frozenset(), 1)
        inputs = batch.inputs([0], 0, [[]])
        panels, labels = [], []
        for setting in settings:
            with setting.attach(model, processor=processor) as run:
                prefill(model, inputs)
            shown = pictures if dialogue.is_video else pictures[run.items[0].index]
            panels.append(drawing.draw(shown, run.items[0], title="", side=240))
            labels.append(f"{setting.label} {setting.budget}")
        found.append((dialogue.turns[0].question, drawing.sheet(panels, labels, columns=4)))
    return found
