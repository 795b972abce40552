"""The command line: `foveate list | show | run | draw | chat | compare | train`.

Every verb returns 0, or 1 for an error that it explains, 2 for a command it does not understand,
130 if interrupted. Nothing here imports torch before a verb needs it.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from foveate.cli import catalogue, chat, compare, draw, run, train
from foveate.errors import FoveateError

app = typer.Typer(
    name="foveate",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("list")(catalogue.list_)
app.command("show")(catalogue.show)
app.command("run")(run.run)
app.command("draw")(draw.draw)
app.command("chat")(chat.chat)
app.command("compare")(compare.compare)
app.add_typer(train.app, name="train")


_INTERRUPTED = 130
_GOES_ON = "a comparison or a training goes on from here when it is started again."


def _version(asked: bool) -> bool:
    if asked:
        import foveate

        typer.echo(foveate.__version__)
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Fewer visual tokens, the same answers, on any Hugging Face vision-language model."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is returned, and given to the shell.

    Args:
        arguments: those of the command; the process's own if None.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(args=arguments, standalone_mode=False)
    except FoveateError as error:
        _explain(type(error).__name__, str(error), "--json" in arguments)
        return 1
    except (KeyboardInterrupt, typer.Abort):
        _explain("Interrupted", _GOES_ON, False)
        return _INTERRUPTED
    except OSError as error:  # of the disk: no such folder, no permission, no space
        where = f": {error.filename}" if error.filename is not None else ""
        reason = error.strerror or (str(error).splitlines() or [""])[0]
        _explain(type(error).__name__, f"{reason}{where}", "--json" in arguments)
        return 1
    except Exception as error:
        # Usage errors of typer's parser know how to show themselves.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    if status == _INTERRUPTED:  # typer has taken the Ctrl-C for itself
        _explain("Interrupted", _GOES_ON, False)
    return status if isinstance(status, int) else 0


def _explain(kind: str, message: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": kind, "message": message}))
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold red]{kind}[/]: {escape(message)}"
    )
