"""The measured accuracies as a Markdown table, written into the page that shows them.

`python -m foveate.reference.table docs/reference-model.md` replaces what stands between the two
marker lines by what `training.json` says, so no number in the page was ever typed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.reference import path

START, END = "<!-- measured: start -->", "<!-- measured: end -->"
_COLUMNS = {
    "accuracy": "accuracy",
    "majority": "majority answer",
    "blind": "mean image",
    "wrong_image": "wrong image",
    "at_112_pixels": "112 px",
    "at_96_pixels": "96 px",
    "at_64_pixels": "64 px",
}


def markdown(record: dict[str, Any]) -> str:
    """The whole measured part of the page, from a parsed training.json."""
    training, evaluation = record["training"], record["evaluation"]
    lines = [
        f"{evaluation['scenes']} scenes of the {evaluation['split']} split, three questions each; "
        f"standard error of the last row {evaluation['standard_error']:.3f}. The last three "
        "columns show the picture at a lower resolution (196, 144 and 64 visual tokens instead "
        "of 256).",
        "",
        "| kind | questions | " + " | ".join(_COLUMNS.values()) + " | learned |",
        "|---" * (len(_COLUMNS) + 3) + "|",
    ]
    rows = sorted(evaluation["kinds"].items(), key=lambda item: -item[1]["accuracy"])
    for kind, row in [*rows, ("all", evaluation["all"])]:
        numbers = " | ".join(f"{row[column]:.3f}" for column in _COLUMNS)
        mark = "" if kind == "all" else "yes" if kind in evaluation["learned"] else "no"
        lines.append(f"| {kind} | {row['questions']} | {numbers} | {mark} |")
    attention, done = evaluation["cls_attention"], training["steps_done"]
    lines += [
        "",
        "*Learned* means ten points above both the majority answer and the mean image; only those "
        "kinds should carry a claim about a compression method.",
        "",
        "CLS attention (in the block that the projector reads): "
        f"{attention['attention_on_objects']:.0%} of its mass falls on patches that show "
        "an object or a plate, which are "
        f"{attention['object_area']:.0%} of the patches; of the 16 patches it looks at most, "
        f"{attention['precision_at_16']:.0%} show one; of the 64, "
        f"{attention['precision_at_64']:.0%}.",
        "",
        f"Training: seed {training['seed']}, {training['parameters'] / 1e6:.2f} M parameters, "
        f"{training['recipe']['vision_steps']} + {done['step']} steps, "
        f"{training['wall_minutes']:.0f} minutes on {training['hardware']}.",
    ]
    return "\n".join(lines)


def insert(page: str, text: str) -> str:
    """The page with `text` between its markers."""
    if START not in page or END not in page:
        raise InputError(f"The page has no line {START!r} followed by {END!r}.")
    before, rest = page.split(START, 1)
    return f"{before}{START}\n{text}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """`python -m foveate.reference.table PAGE`: bring the page up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page")
    parser.add_argument("--weights", default=str(path()))
    options = parser.parse_args()
    record = json.loads((Path(options.weights) / "training.json").read_text())
    page = Path(options.page)
    page.write_text(insert(page.read_text(), markdown(record)))


if __name__ == "__main__":
    main()
