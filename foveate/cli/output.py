"""What the verbs print: for people, or one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax

from foveate.errors import InputError


def finish(result: dict[str, Any], shown: list[Any], python: list[str], as_json: bool) -> None:
    """The end of a verb.

    Args:
        result: what `--json` prints; the Python lines are added to it.
        shown: renderables for people.
        python: the lines that do the same.
        as_json: which of both.
    """
    if as_json:
        print(json.dumps({**result, "python": python}))
        return
    console = Console(soft_wrap=True, highlight=False)
    for each in shown:
        console.print(each)
    for each in python_lines(python):
        console.print(each)


def folder_for(out: Path | None, *otherwise: str) -> Path:
    """Where a verb writes: what was said, or a folder under `output`.

    Raises:
        InputError: a file is there.
    """
    found = out or Path("output", *otherwise)
    if found.exists() and not found.is_dir():
        raise InputError(f"{found} is a file; --out needs a folder.")
    return found


def python_lines(python: list[str]) -> list[Any]:
    """The lines that do the same, for people."""
    code = Syntax("\n".join(python), "python", background_color="default")
    return ["\n[dim]The same in Python:[/]", code]


def call(function: str, *arguments: str, **options: Any) -> str:
    """A call as source; options that are None are left out."""
    given = [
        # A chain's methods have fields like "fastv.layer", which is no name in Python.
        f"{name}={value!r}" if name.isidentifier() else f"**{{{name!r}: {value!r}}}"
        for name, value in options.items()
        if value is not None
    ]
    return f"{function}({', '.join([*arguments, *given])})"
