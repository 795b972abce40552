"""`foveate list` and `foveate show`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from foveate.cli.options import Json
from foveate.cli.output import finish


def list_(
    models: Annotated[
        bool, typer.Option("--models", help="Supported model types instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """All methods, a line each."""
    from rich.table import Table

    if models:
        from foveate.adapters import TABLE

        python = ["from foveate.adapters import TABLE", "sorted(TABLE)"]
        finish({"models": sorted(TABLE)}, [", ".join(sorted(TABLE))], python, as_json)
        return
    from foveate import catalog

    facts = [_facts(name) for name in catalog.names()]
    table = Table(box=None, pad_edge=False)
    for column in ("method", "stage", "reads", "presets", ""):
        table.add_column(column, no_wrap=column in ("method", "stage"))
    for each in facts:
        table.add_row(
            each["name"],
            each["stage"],
            ", ".join(each["reads"]),
            str(len(each["presets"]) or ""),
            each["summary"],
        )
    finish({"methods": facts}, [table], ["import foveate", "foveate.names()"], as_json)


def show(
    method: Annotated[str, typer.Argument(help="A method of `foveate list`.")],
    as_json: Json = False,
) -> None:
    """A method's card: its maths, what it reads, where it differs from its paper, its presets."""
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text

    from foveate import catalog
    from foveate.card import sections

    cls = catalog.method_class(method)
    facts = _facts(method)
    parts = sections(cls)
    shown: list[Any] = [Text(f"{method}: {facts['summary']}", style="bold")]
    reads = ", ".join(facts["reads"]) or "features only"
    shown.append(Text(f"acts at stage {facts['stage']}; reads {reads}", style="dim"))
    for heading, text in parts.items():
        shown.append(Text(f"\n{heading}", style="bold cyan"))
        shown.append(Text(text) if heading == "The mapping" else Markdown(text))
    if facts["fields"]:
        fields = Table(box=None, pad_edge=False)
        for column in ("field", "usual value"):
            fields.add_column(column)
        for name, value in facts["fields"].items():
            fields.add_row(name, value)
        shown += [Text("\nFields", style="bold cyan"), fields]
    if facts["presets"]:
        table = Table(box=None, pad_edge=False)
        for column in ("preset", "fields", "keep", "positions", "source"):
            table.add_column(column)
        for name, preset in facts["presets"].items():
            given = ", ".join(f"{key}={value}" for key, value in preset["fields"].items())
            keep = "by its fields" if preset["keep"] is None else str(preset["keep"])
            table.add_row(name, given, keep, preset["positions"], preset["source"])
        shown += [Text("\nPresets", style="bold cyan"), table]
    python = ["import foveate", f"method = foveate.make({method!r})"]
    finish({**facts, "card": parts}, shown, python, as_json)


def _facts(name: str) -> dict[str, Any]:
    from foveate import catalog
    from foveate.card import summary

    cls = catalog.method_class(name)
    return {
        "name": name,
        "stage": str(cls.stage),
        "reads": sorted(str(each) for each in cls.reads),
        "prompt_aware": catalog.make(name).prompt_aware,
        "trainable": cls.trainable,
        "fields": {field.name: repr(field.default) for field in dataclasses.fields(cls)},
        "presets": {
            preset: {**dataclasses.asdict(setting), "fields": dict(setting.fields)}
            for preset, setting in cls.presets.items()
        },
        "summary": summary(cls),
    }
