"""A setting as typed in the shell, and as a line of Python."""

from __future__ import annotations

import dataclasses
from typing import Any

from foveate.cli.output import call
from foveate.errors import BudgetError
from foveate.evaluation.settings import Setting, parse_keep, parse_method


def setting_of(method: str, keep: str | None, preset: str | None) -> Setting:
    """What `--method`, `--keep` and `--preset` say.

    Raises:
        BudgetError: both or neither of a budget and a preset were given.
        UnknownName: no such method, field or preset.
    """
    named = parse_method(method if preset is None else f"{method}@{preset}")
    if named.preset is not None and keep is not None:
        raise BudgetError(f"The preset {named.preset!r} states its own budget; leave out --keep.")
    if named.preset is not None:
        return named
    if keep is None and named.make().states_budget:
        return named
    if keep is None:
        raise BudgetError('Give a budget: --keep 64, --keep "25%", or --preset NAME.')
    return dataclasses.replace(named, keep=parse_keep(keep))


def attach_line(setting: Setting, positions: str | None = None) -> str:
    """The `foveate.attach(...)` that the setting stands for."""
    return call(
        "foveate.attach",
        "model",
        repr(setting.method),
        "processor=processor",
        keep=setting.keep,
        preset=setting.preset,
        positions=positions,
        **dict(setting.fields),
    )


def chat_line(setting: Setting, **options: Any) -> str:
    """The `chat = foveate.Chat(...)` that the setting stands for."""
    return "chat = " + call(
        "foveate.Chat",
        "model",
        "processor",
        repr(setting.method),
        keep=setting.keep,
        preset=setting.preset,
        **options,
        **dict(setting.fields),
    )
