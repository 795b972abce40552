"""What stored prefill times say of claims about speed."""

from __future__ import annotations

import json
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from foveate.evaluation import verdicts
from foveate.evaluation.claims import Prefill
from foveate.evaluation.timing import Ratio

_ALIKE = 0.05
_FEW = 0.01


def prefill(said: Prefill, path: Path) -> str:
    """Times from a stored run of `benchmarks/overhead.py`, and what they say."""
    methods = " ".join(f"-m '{name}'" if ":" in name else f"-m {name}" for name in said.paper)
    if said.keep != Prefill.keep:
        methods += f" --keep {said.keep}"
    kept = f"benchmarks/results/{path.name}"
    lines = [f"\n## {said.title}\n", said.text.strip() + "\n"]
    if not path.is_file():
        spoken = "--words 16 " if said.answers else ""
        command = f"python -m benchmarks.overhead --shape deep {spoken}{methods} --out {kept}"
        return "\n".join([*lines, f"Not measured yet: `{command}`."])
    record = json.loads(path.read_text())
    times = {kind: _times(record, kind) for kind in ("prefill", "answer")}
    lines += [
        f"From `{kept}`: "
        + ", ".join(f"{key} {value}" for key, value in record["setting"].items())
        + ".",
        "\n| method | tokens of 576 | time / full [quartiles] | times as fast | the paper | "
        "to the end of an answer / full | peak memory / full | FLOPs / full |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, printed in said.paper.items():
        if row := times["prefill"].get(name):
            ratio, later = _ratio(row), times["answer"].get(name)
            shares = [
                f"{row[what] / row[f'stock_{what}']:.3f}" if what in row else ""
                for what in ("peak", "flops")
            ]
            cells = [f"{1 / ratio.median:.2f}", printed, str(_ratio(later)) if later else ""]
            left = row.get("keep") or f"{row['average']:.0f} on average"
            lines.append(f"| {name} | {left} | {ratio} | {' | '.join([*cells, *shares])} |")
    lines += ["\n| it says | verdict |", "| --- | --- |"]
    for kind, pairs, what in (
        ("prefill", said.faster, "is faster than"),
        ("answer", said.answers, "is at the end of an answer before"),
    ):
        for better, worse in pairs:
            word = _faster(times[kind], better, worse)
            lines.append(f"| {better} {what} {worse} | **{word}** |")
    for one, other in said.alike:
        word = _alike(times["prefill"], one, other)
        lines.append(f"| {one} is as fast as {other} | **{word}** |")
    for one, beside in said.light:
        word, extra = _light(times["prefill"], one, beside)
        lines.append(f"| {one} takes less than a hundredth by itself{extra} | **{word}** |")
    lines.append(
        "\nA verdict on times holds where the quartiles of the ratios lie apart"
        + (
            f", one of being alike where they lie within {_ALIKE} of the full model's time"
            if said.alike
            else ""
        )
        + (
            ", one of FLOPs by what they are beside those of plain dropping, of the full model's"
            if said.light
            else ""
        )
        + "; these are not among the claims that are counted and corrected above."
    )
    return "\n".join(lines)


def _times(record: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """The rows of a kind by method; the full model beside itself among them, if there are any."""
    rows = {
        row.get("method") or row["name"].split(",")[0]: row
        for row in record["rows"]
        if row["kind"] == kind
    }
    return rows and {**rows, "full": {"low": 1.0, "high": 1.0}}


def _ratio(row: dict[str, Any]) -> Ratio:
    return Ratio(*(row[key] for key in ("median", "low", "high", "base_seconds")))


def _pair(
    rows: Table[str, dict[str, Any]], *names: str
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Two methods' times; None if both were measured at budgets that differ."""
    first, second = (rows.get(each) for each in names)
    if first is None or second is None:
        return None
    alike = len({row["keep"] for row in (first, second) if "keep" in row}) <= 1
    return (first, second) if alike else None


def _faster(rows: Table[str, dict[str, Any]], better: str, worse: str) -> str:
    pair = _pair(rows, better, worse)
    if pair is None:
        return verdicts.OUT_OF_REACH
    first, second = pair
    if first["high"] < second["low"]:
        return verdicts.HOLDS
    return verdicts.REVERSED if first["low"] > second["high"] else verdicts.OPEN


def _alike(rows: Table[str, dict[str, Any]], one: str, other: str) -> str:
    pair = _pair(rows, one, other)
    if pair is None:
        return verdicts.OUT_OF_REACH
    gaps = [a["high"] - b["low"] for a, b in (pair, pair[::-1])]
    if max(gaps) < _ALIKE:
        return verdicts.HOLDS
    # The nearest ends of the two spans.
    return verdicts.REVERSED if -min(gaps) > _ALIKE else verdicts.OPEN


def _light(rows: Table[str, dict[str, Any]], one: str, beside: str) -> tuple[str, str]:
    """Whether a method's own FLOPs are few, and how many they are."""
    pair = _pair(rows, one, beside)
    if pair is None or "full" in (one, beside):
        return verdicts.OUT_OF_REACH, ""
    first, second = pair
    share = (first["flops"] - second["flops"]) / first["stock_flops"]
    word = verdicts.HOLDS if share < _FEW else verdicts.REVERSED
    return word, f" ({100 * share:.2f} % of the full model's FLOPs more than {beside})"
