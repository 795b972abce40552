"""What the verbs print: for people, or one JSON object."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.syntax import Syntax


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
