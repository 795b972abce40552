"""A comparison as one HTML file that needs nothing else, with plots and what was kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from foveate.evaluation import tables
from foveate.evaluation.comparison import Comparison, Row

Picture = tuple[str, Image.Image]  # caption, image


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
        turns=tables.turn_names(len(found.full.turns)),
        cells=tables.cells,
        counts=tables.counts,
        delta=tables.delta,
        turn_deltas=tables.turn_deltas,
        interval=tables.interval,
        baselines=tables.baselines(found),
        costs=tables.costs,
        entries=tables.entries(found),
        named=tables.named,
        notes=tables.notes(found),
        reuse_notes=tables.reuse_notes(found) if found.reuse else [],
        paid=tables.paid,
        of_models=tables.of_models,
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
            lines.setdefault(tables.named(row), []).append(row)
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
                linestyle=":" if rows[0].oracle else "-" if number < 10 else "--",
                markersize=5,
                linewidth=1.2,
                elinewidth=0.7,
                capsize=2,
            )
        for label, value, style in (
            ("full model", found.full.mean, "-"),
            *(
                (name, each.mean, ":")
                for name, each in tables.baselines(found)
                if each is found.wrong
            ),
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
        batch = Batch(model, processor, [dialogue], [pictures], frozenset(), 16)
        inputs = batch.inputs([0], 0, [[]])
        panels, labels = [], []
        for setting in settings:
            with batch.attach(setting, [0], batch.told(setting)) as run:
                prefill(model, inputs)
            shown = pictures if dialogue.is_video else pictures[run.items[0].index]
            panels.append(drawing.draw(shown, run.items[0], title="", side=240))
            labels.append(f"{setting.label} {setting.budget}")
        found.append((dialogue.turns[0].question, drawing.sheet(panels, labels, columns=4)))
    return found
