"""`foveate chat`: a conversation about pictures, in the terminal or as a page."""

from __future__ import annotations

from typing import Annotated

import typer

from foveate.cli import options

_HERE = "127.0.0.1"


def chat(
    image: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, or scene:N: what the first question is about."),
    ] = None,
    method: options.Method = "visionzip",
    keep: Annotated[
        str | None,
        typer.Option("--keep", "-k", help='Tokens (64), or a share ("25%", 0.25). 25% if none.'),
    ] = None,
    preset: options.Preset = None,
    positions: options.Positions = None,
    turns: Annotated[
        str,
        typer.Option(
            help='"first": tokens are chosen once, later turns go on from the cache. '
            '"each": chosen anew by every question.'
        ),
    ] = "first",
    max_new_tokens: options.MaxNewTokens = 256,
    model: options.Model = "reference",
    revision: options.Revision = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    attn: options.Attn = None,
    web: Annotated[
        bool, typer.Option("--web", help="As a page, the full model's answer beside it.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the page.", min=1, max=65535)] = 7860,
    host: Annotated[
        str | None, typer.Option(help=f"Address that the page listens on; {_HERE} if none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a reply.")] = False,
) -> None:
    """Talk about pictures, on one compressed cache.

    Questions are read line by line, from the keyboard or from a pipe, and answered as they come:

        foveate chat scene:1 -m visionzip -k 64

    `/help` lists the commands: another picture, another method, a new beginning.
    """
    from rich.console import Console

    from foveate.chat import TURNS
    from foveate.cli.attaching import setting_of
    from foveate.cli.loading import Source
    from foveate.cli.output import python_lines
    from foveate.errors import UnknownName
    from foveate.pictures import load_image

    if turns not in TURNS:
        raise UnknownName("way of turning", turns, TURNS)
    if keep is None and preset is None and "@" not in method:
        keep = "25%"
    setting = setting_of(method, keep, preset)
    pictures = [(name, load_image(name)) for name in image or ()]
    source = Source(model, revision, dtype, device_map, attn)
    talking = {"turns": turns, "positions": positions, "max_new_tokens": max_new_tokens}
    if web:
        from foveate import web as page

        page.require_gradio()  # before a large model is loaded in vain
        page.serve(*source.load(), setting, pictures, name=model, host=host, port=port, **talking)
        return
    from foveate.cli.terminal import Terminal, typed

    out = Console(stderr=as_json, soft_wrap=True, highlight=False)
    loaded, processor = source.load()
    conversation = Terminal(
        loaded,
        processor,
        setting,
        pictures,
        python=source.python,
        out=out,
        as_json=as_json,
        **talking,
    )
    conversation.run(typed(out, echo=not as_json))
    if not as_json and any("chat.ask" in line for line in conversation.python):
        for each in python_lines(conversation.python):
            out.print(each)
    if conversation.failed and not interactive():
        raise typer.Exit(1)


def interactive() -> bool:
    """Whether somebody types."""
    import sys

    return sys.stdin.isatty()
