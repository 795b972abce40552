"""Every setting of a page, in tables and as curves."""

from __future__ import annotations

from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.claims.kinds import FAMILIES, SCENES
from benchmarks.claims.stored import Asked, share
from foveate.evaluation import stats, verdicts
from foveate.evaluation.answering import FULL
from foveate.evaluation.claims import Page, Side
from foveate.evaluation.reach import in_last_layer
from foveate.evaluation.verdicts import Answered

DEEP, _WIDE = 32, 576  # layers and tokens of LLaVA-1.5-7B


def scores(found: Answered, models: Sequence[Asked], sides: Sequence[Side]) -> str:
    """Every setting's accuracy and tokens as a table."""
    counted = found.counted()
    full = np.asarray(found.right(Side(FULL)))[:, counted]
    sizes = sorted({n for each in models for n in each.facts["tokens"]})
    layers = min(each.facts["layers"] for each in models)
    lines = [
        "| setting | keep | accuracy | % of full | - full [95 %] | entering | mean | "
        f"last of {layers} layers | last of {DEEP} |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| full model | {' / '.join(map(str, sizes))} | {full.mean():.3f} | 100 | | | | 100 % | "
        "100 % |",
    ]
    asked = [(side, found.right(side)) for side in sides if side.settings]
    there = [(side, right[:, counted]) for side, right in asked if not isinstance(right, str)]
    intervals = _gains(found, [value - full for _, value in there])
    for (side, value), (_, low, high) in zip(there, intervals, strict=True):
        entering, mean = (_left(found, side, where) for where in ("entering", "average"))
        cells = [
            "" if left is None else f"{100 * left / n:.0f} %"
            for n, total in ((sizes[-1], layers), (_WIDE, DEEP))
            for left in (in_last_layer(side.settings[0], n, total),)
        ]
        gain = value.mean() - full.mean()
        of_full = f"{100 * value.mean() / full.mean():.1f}" if full.any() else ""
        cells = [f"{100 * entering:.0f} %", f"{100 * mean:.0f} %", *cells]
        lines.append(
            f"| {side.label} | {share(side.keep)} | {value.mean():.3f} | {of_full} | "
            f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _left(found: Answered, side: Side, where: str) -> float:
    """Which share of the visual tokens it left, ``"entering"`` or ``"average"`` over layers."""
    records = found.records(side)
    return sum(each[where] for each in records) / sum(each["n"] for each in records)


def _gains(found: Answered, each: Sequence[Any], kinds: Sequence[str] = ()) -> list[stats.Interval]:
    """Differences by question with their intervals over dialogues and models.

    How much models differ is told by all of them together.
    """
    dialogue = found.dialogue[found.counted(kinds)]
    counts = np.bincount(dialogue)
    some = counts > 0
    asked = counts[some].astype(float)
    gains = [
        np.array([np.bincount(dialogue, weights=one) for one in gain])[:, some] for gain in each
    ]
    spreads = verdicts.shared_spreads([(gain, asked) for gain in gains])
    return [
        stats.between_models(gain, asked, spread=spread, made_up=verdicts.MADE_UP)[0]
        for gain, spread in zip(gains, spreads, strict=True)
    ]


def trainings(page: Page, models: Table[str, Sequence[Asked]]) -> str:
    """What every variant is, and how far it came from what the full models say."""
    lines = [
        "| name | what it is | method | trainings of a model | dialogues | recipe | measured |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    noted = [
        each.facts.get("trained", {}) for family in FAMILIES for each in models.get(family, ())
    ]
    for name, each in page.variants.items():
        sums: dict[str, list[float]] = {}
        for there in noted:
            for identity in map(each.identity, range(each.seeds)):
                for key, value in there.get(identity, {}).get("measured", {}).items():
                    sums.setdefault(key.removeprefix("eval_").replace("_", " "), []).append(value)
        cells = [
            f"`{name}`",
            each.says,
            f"`{each.method}`",
            str(each.seeds),
            f"{each.dialogues} {each.data}".strip(),
            ", ".join(f"{key} {value}" for key, value in (*each.start, *each.recipe)),
            ", ".join(
                f"{key} {sum(values) / len(values):.3f}"
                for key, values in sums.items()
                if "loss" not in key  # sums of the others
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(found: Answered, page: Page) -> Any:
    """Accuracy over budgets of every setting that is claimed about at three or more (None: none).

    One panel of all questions, and one of each set of kinds that a claim is about. Tokens are
    those counted in the runs.
    """
    from matplotlib.figure import Figure

    lines: dict[str, list[Side]] = {}
    for side in page.sides(SCENES):
        if side.settings:
            lines.setdefault(side.curve, []).append(side)
    lines = {
        label: [side for side in each if not isinstance(found.right(side), str)]
        for label, each in lines.items()
        if len(each) >= 3
    }
    lines = {label: each for label, each in lines.items() if each}
    if not lines:
        return None
    left = {side: _left(found, side, "average") for each in lines.values() for side in each}
    claimed = (claim.kinds for part in page.parts if part.data == SCENES for claim in part.claims)
    panels = [each for each in dict.fromkeys(((), *claimed)) if found.counted(each).any()]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, kinds in zip(axes, panels, strict=False):
        counted = found.counted(kinds)
        full = np.asarray(found.right(Side(FULL)))[:, counted]
        drawn = {
            label: sorted(sides, key=lambda side: left[side]) for label, sides in lines.items()
        }
        rights = {
            side: np.asarray(found.right(side))[:, counted]
            for sides in drawn.values()
            for side in sides
        }
        intervals = _gains(found, [right - full for right in rights.values()], kinds)
        known = dict(zip(rights, intervals, strict=True))
        for number, (label, sides) in enumerate(drawn.items()):
            values, gains = [rights[side] for side in sides], [known[side] for side in sides]
            panel.errorbar(
                [100 * left[side] * (1 + 0.012 * (number - len(lines) / 2)) for side in sides],
                [value.mean() for value in values],
                yerr=[[g[0] - g[1] for g in gains], [g[2] - g[0] for g in gains]],
                label=label,
                marker="osD^vP*X"[number % 8],
                color=f"C{number}",
                markersize=4,
                linewidth=1.2,
                elinewidth=0.7,
                capsize=2,
            )
        panel.axhline(full.mean(), color="0.4", linewidth=0.9, label="full model")
        panel.set_title(", ".join(kinds) or "all questions", fontsize=8, wrap=True)
        panel.set_xlabel("tokens, % of all (mean over layers)", fontsize=8)
        panel.set_ylabel("accuracy", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        fontsize=8,
        loc="outside lower center",
        ncols=2 * columns + (max(map(len, labels)) < 24),
        frameon=False,
    )
    return figure
