"""How the trainings of `reference` that differ in nothing but their seed differ in what they know.

    python -m benchmarks.seeds RUNS            # a folder of finished trainings seed0, seed1 ..
    python -m benchmarks.seeds                 # the page again, from the records that are kept

The table stands in `docs/reference-model.md`; the records, which `foveate train reference` wrote
into each model's folder, are kept in `benchmarks/reference-seeds.json`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.pages import errors_told, note
from foveate.cli.seeds import seeds_in
from foveate.errors import InputError
from foveate.reference.measure import CLEAR, clear
from foveate.reference.table import insert

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference-model.md"
KEPT = ROOT / "benchmarks" / "reference-seeds.json"
CONDITIONS = {"blind": "mean image", "wrong_image": "wrong image", "majority": "majority answer"}


def records(runs: Path) -> dict[str, dict[str, Any]]:
    """Name -> the record of each training in a folder.

    Raises:
        InputError: one is not finished or not measured, or they differ in more than their seeds.
    """
    found = {}
    for name, folder in seeds_in(runs).items():
        file = Path(folder) / "training.json"
        found[name] = json.loads(file.read_text()) if file.is_file() else {}
        if "evaluation" not in found[name]:
            raise InputError(
                f"{folder} was not measured.\n"
                f"Run `python -m foveate.reference.measure --weights {folder}`."
            )
    if len({record["evaluation"]["scenes"] for record in found.values()}) > 1:
        raise InputError(f"The trainings in {runs} were measured on different numbers of scenes.")
    return found


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy by kind and training, the kind that differs most first."""
    evaluations = [record["evaluation"] for record in found.values()]
    one = evaluations[0]
    lines = [
        f"The same recipe from {len(found)} seeds; {one['scenes']} scenes of the {one['split']} "
        f"split, {one['all']['questions']} questions.",
        "",
        f"| kind | {' | '.join(found)} | mean | ± | majority answer |",
        "| --- " * (len(found) + 4) + "|",
    ]

    def row(says: str, values: list[float], majority: str) -> str:
        cells = [f"{each:.3f}" for each in (*values, statistics.mean(values))]
        spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"| {says} | {' | '.join(cells)} | {spread} | {majority} |"

    def of(kind: str) -> list[float]:
        return [each["kinds"][kind]["accuracy"] for each in evaluations]

    def apart(kind: str) -> float:
        return max(of(kind)) - min(of(kind))

    for kind in sorted(one["kinds"], key=apart, reverse=True):
        lines.append(row(kind, of(kind), f"{one['kinds'][kind]['majority']:.3f}"))
    every = [each["all"] for each in evaluations]
    lines.append(row("all", [each["accuracy"] for each in every], f"{one['all']['majority']:.3f}"))
    for condition in ("blind", "wrong_image"):
        lines.append(row(CONDITIONS[condition], [each[condition] for each in every], ""))
    short = [
        f"{kind} ({name})"
        for name, each in zip(found, evaluations, strict=True)
        for kind, values in each["kinds"].items()
        if not clear(values)
    ]
    said = f"less than {100 * CLEAR:.0f} points above its majority answer"
    lines += ["", f"{', '.join(short)}: {said}." if short else f"No kind is {said}."]
    return "\n".join(lines)


app = typer.Typer(add_completion=False)


@app.command()
@errors_told()
def main(
    runs: Annotated[
        Path | None, typer.Argument(help="Folder of trainings; what is kept if none.")
    ] = None,
    page: Annotated[Path, typer.Option(help="The page with the table.")] = PAGE,
    kept: Annotated[Path, typer.Option(help="The records.")] = KEPT,
) -> None:
    """Bring the page's table up to date."""
    if runs is not None:
        note(kept, records(runs))
    page.write_text(insert(page.read_text(), markdown(json.loads(kept.read_text())), "seeds"))


if __name__ == "__main__":
    app()
