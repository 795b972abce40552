"""What a reference model has to know to be shipped, held against what was measured of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from foveate import reference

KEPT = Path(__file__).parents[2] / "benchmarks" / "reference-seeds.json"
OVERALL, ABOVE, KINDS = 0.85, 0.20, 8
NEEDED = frozenset({"existence", "count", "relation"})
Record = dict[str, Any]


def shortcomings(found: Record, needed: frozenset[str], kinds: int | None = None) -> list[str]:
    """What of an evaluation, or of a part of one, falls short.

    Args:
        found: with "all" and "kinds".
        needed: kinds that have to be well above their majority answer.
        kinds: how many kinds have to be; every one if None.
    """
    short = []
    if found["all"]["accuracy"] < OVERALL:
        short.append("overall")
    rows = {"all": found["all"], **found["kinds"]}
    for name, row in rows.items():
        # Without a picture or with another one, no kind is answered as with its own.
        short += [f"{name} {condition}" for condition in ("blind", "wrong_image")
                  if row.get(condition, 1.0) > row["accuracy"] - ABOVE]  # fmt: skip
    clear = {
        kind for kind, row in found["kinds"].items() if row["accuracy"] - row["majority"] >= ABOVE
    }
    if len(clear) < (len(found["kinds"]) if kinds is None else kinds):
        short.append("kinds")
    return [*short, *sorted(needed - clear)]


def shipped(name: str) -> Record:
    found: Record = json.loads((reference.path(name) / "training.json").read_text())
    return found


def test_the_first_model_knows_enough() -> None:
    assert not shortcomings(shipped("reference")["evaluation"], NEEDED, KINDS)


@pytest.mark.parametrize("part", ["scenes", "clips"])
def test_the_second_model_knows_enough_of_each_part(part: str) -> None:
    """Clips have no question about relations."""
    found = shipped("reference-tiles")["evaluation"][part]
    assert not shortcomings(found, NEEDED & set(found["kinds"]))


def test_every_training_that_pages_count_on_knows_enough() -> None:
    """Of `relation` the page says which training lacks it."""
    records = json.loads(KEPT.read_text())
    assert len(records) >= 3
    assert records["seed0"] == shipped("reference")
    for record in records.values():
        evaluation = copy.deepcopy(record["evaluation"])
        del evaluation["kinds"]["relation"]
        assert not shortcomings(evaluation, NEEDED - {"relation"}, KINDS)


@pytest.mark.parametrize(
    ("kind", "condition", "value", "short"),
    [
        ("all", "accuracy", 0.84, "overall"),
        ("count", "majority", 0.6, "count"),
        ("relation", "majority", 0.8, "relation"),
        ("colour", "blind", 0.8, "colour blind"),
        ("all", "wrong_image", None, "all wrong_image"),
    ],
)
def test_what_falls_short_is_seen(
    kind: str, condition: str, value: float | None, short: str
) -> None:
    found = copy.deepcopy(shipped("reference")["evaluation"])
    row = found["all"] if kind == "all" else found["kinds"][kind]
    row[condition] = value
    if value is None:
        del row[condition]
    assert shortcomings(found, NEEDED, KINDS) == [short]


def test_kinds_are_counted() -> None:
    found = copy.deepcopy(shipped("reference")["evaluation"])
    for kind in sorted(set(found["kinds"]) - NEEDED)[:5]:
        found["kinds"][kind]["majority"] = found["kinds"][kind]["accuracy"]
    assert shortcomings(found, NEEDED, KINDS) == ["kinds"]
