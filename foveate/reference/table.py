"""The measured accuracies as Markdown tables, written into the page that shows them.

`python -m foveate.reference.table docs/reference-model.md` replaces what stands between the two
marker lines by what `training.json` says, so no number in the page was ever typed; with
`--model reference-tiles` the same for that model's page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.reference import NAMES, path
from foveate.reference.measure import CLEAR, clear

# Whatever a record has of these, in this order.
_COLUMNS = {
    "accuracy": "accuracy",
    "majority": "majority answer",
    "blind": "mean image",
    "wrong_image": "wrong image",
    "overview_only": "overview alone",
    "middle_frame": "middle frame alone",
    "at_8_frames": "8 frames",
    "at_32_frames": "32 frames",
    "at_112_pixels": "112 px",
    "at_96_pixels": "96 px",
    "at_64_pixels": "64 px",
    "views_of_56_pixels": "56 px",
    "views_of_48_pixels": "48 px",
    "views_of_32_pixels": "32 px",
}
_TOP = "precision_at_"
_LEARNED = (
    "*Learned* means ten points above both the majority answer and the mean image; only those "
    "kinds should carry a claim about a compression method."
)
_CLEAR = f"at least {100 * CLEAR:.0f} points above the majority answer"


def markdown(record: dict[str, Any]) -> str:
    """The whole measured part of the page, from a parsed training.json."""
    training, evaluation = record["training"], record["evaluation"]
    lines = _tiled(record) if "clips" in evaluation else _scenes(evaluation)
    done = training["steps_done"]
    lines += [
        "",
        f"Training: seed {training['seed']}, {training['parameters'] / 1e6:.2f} M parameters, "
        f"{training['recipe']['vision_steps']} + {done['step']} steps, "
        f"{training['wall_minutes']:.0f} minutes on {training['hardware']}.",
    ]
    return "\n".join(lines)


def _scenes(evaluation: dict[str, Any]) -> list[str]:
    """Of the model of one size."""
    return [
        f"{evaluation['scenes']} scenes of the {evaluation['split']} split, three questions each; "
        f"standard error of the last row {evaluation['standard_error']:.3f}. The last three "
        "columns show the picture at a lower resolution (196, 144 and 64 visual tokens instead "
        "of 256).",
        "",
        *_rows(evaluation),
        "",
        f"{_LEARNED} {_clear_of(evaluation)} are {_CLEAR}.",
        "",
        "CLS attention (in the block that the projector reads): "
        + _looks(evaluation["cls_attention"]),
    ]


def _tiled(record: dict[str, Any]) -> list[str]:
    """Of the model of tiles and clips, with its second world if that was measured."""
    evaluation = record["evaluation"]
    lines = []
    for part, says in (
        ("scenes", "*Overview alone*: without the tiles."),
        ("clips", "*Middle frame alone*: shown as long as the clip."),
    ):
        found = evaluation[part]
        lines += [
            f"{found['count']} {part} of the {evaluation['split']} split, three questions each; "
            f"standard error of the last row {found['standard_error']:.3f}. {says} The last three "
            "columns show every view smaller than its 64 pixels.",
            "",
            *_rows(found),
            "",
        ]
    kinds = " and ".join(f"{_clear_of(evaluation[part])} of {part}" for part in ("scenes", "clips"))
    lines += [f"{_LEARNED} {kinds} are {_CLEAR}.", ""]
    lines += ["CLS attention (in the block that the projector reads):", ""]
    lines += [f"- {name}: {_looks(found)}" for name, found in evaluation["cls_attention"].items()]
    if second := record.get("second_world"):
        shares = " and ".join(
            f"{second[part]['all']['accuracy']:.3f} of {second[part]['count']} {part}"
            for part in ("scenes", "clips")
        )
        lines += ["", f"In the second world, which it never saw, it answers {shares} right."]
    return lines


def _rows(found: dict[str, Any]) -> list[str]:
    """Accuracy by kind under every condition."""
    columns = {name: shown for name, shown in _COLUMNS.items() if name in found["all"]}
    lines = [
        "| kind | questions | " + " | ".join(columns.values()) + " | learned |",
        "|---" * (len(columns) + 3) + "|",
    ]
    rows = sorted(found["kinds"].items(), key=lambda item: -item[1]["accuracy"])
    for kind, row in [*rows, ("all", found["all"])]:
        numbers = " | ".join(f"{row[column]:.3f}" for column in columns)
        mark = "" if kind == "all" else "yes" if kind in found["learned"] else "no"
        lines.append(f"| {kind} | {row['questions']} | {numbers} | {mark} |")
    return lines


def _clear_of(found: dict[str, Any]) -> str:
    """How many kinds are well above guessing."""
    rows = found["kinds"].values()
    return f"{sum(map(clear, rows))} of {len(rows)} kinds"


def _looks(found: dict[str, float]) -> str:
    """Where CLS looks, in words."""
    tops = {
        name.removeprefix(_TOP): share for name, share in found.items() if name.startswith(_TOP)
    }
    (count, share), *others = tops.items()
    return (
        f"{found['attention_on_objects']:.0%} of its mass falls on patches that show an object or "
        f"a plate, which are {found['object_area']:.0%} of the patches; of the {count} patches it "
        f"looks at most, {share:.0%} show one"
        + "".join(f"; of the {count}, {share:.0%}" for count, share in others)
        + "."
    )


def insert(page: str, text: str, part: str = "measured") -> str:
    """The page with `text` between the two marker lines of a part.

    Raises:
        InputError: it has no such part.
    """
    start, end = f"<!-- {part}: start -->", f"<!-- {part}: end -->"
    if start not in page or end not in page.split(start, 1)[1]:
        raise InputError(f"The page has no line {start!r} followed by {end!r}.")
    before, rest = page.split(start, 1)
    return f"{before}{start}\n{text}\n{end}{rest.split(end, 1)[1]}"


def main() -> None:
    """`python -m foveate.reference.table PAGE`: bring the page up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page")
    parser.add_argument("--model", default=NAMES[0], choices=NAMES)
    options = parser.parse_args()
    record = json.loads((path(options.model) / "training.json").read_text())
    page = Path(options.page)
    page.write_text(insert(page.read_text(), markdown(record)))


if __name__ == "__main__":
    main()
