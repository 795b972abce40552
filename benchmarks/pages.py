"""What the commands share that ask the models and write a page of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from foveate.errors import FoveateError, InputError

ASKED = "asked.json"  # what the last run that came to its end was asked


def last_run(store: Path) -> dict[str, Any]:
    """What the last run in a folder was asked.

    Raises:
        InputError: none has come to its end.
    """
    noted = store / ASKED
    if not noted.is_file():
        raise InputError(f"{store} holds no finished run.\nRun it without --from-store.")
    found: dict[str, Any] = json.loads(noted.read_text())
    return found


def note(path: Path, record: Any) -> None:
    """Write a record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """What is wrong with the input in lines, without a traceback."""
    try:
        yield
    except FoveateError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
