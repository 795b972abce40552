"""A method's card: the parts of its module's docstring, for the shell and the documentation."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveate.compressor import Compressor

# The fixed headings, in their order.
HEADINGS = (
    "What it does",
    "The mapping",
    "Needs",
    "Differs from the paper's code",
    "When it fails",
    "Reference",
)


def card(cls: type[Compressor]) -> str:
    """The docstring of a method's module."""
    return inspect.cleandoc(inspect.getmodule(cls).__doc__ or "")


def summary(cls: type[Compressor]) -> str:
    """The first sentence of the card, without the method's name."""
    first = card(cls).split("\n\n")[0].replace("\n", " ")
    return first.partition(": ")[2] or first


def sections(cls: type[Compressor]) -> dict[str, str]:
    """Heading -> text of the card, in its own order."""
    found: dict[str, str] = {}
    heading = ""
    for line in card(cls).splitlines():
        if line.rstrip(":") in HEADINGS and line.endswith(":"):
            heading = line.rstrip(":")
            found[heading] = ""
        elif heading:
            found[heading] += line + "\n"
    return {heading: inspect.cleandoc(text).strip() for heading, text in found.items()}
