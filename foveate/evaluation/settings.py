"""One setting of a comparison: a method with its fields, at one budget or published preset."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import foveate
from foveate import catalog
from foveate.compressor import Compressor, check_keep, with_preset
from foveate.errors import BudgetError, InputError

Keep = int | float


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is attached for one run over the data.

    Attributes:
        method: catalogued name.
        keep: the budget; None with a preset.
        preset: a published setting instead.
        fields: fields of the method that differ from its defaults.
    """

    method: str
    keep: Keep | None = None
    preset: str | None = None
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """The method with what was set, without the budget: "divprune", "visionzip@authors-64"."""
        shown = [f"{key}={value}" for key, value in self.fields if key != "seed"]
        return (
            self.method
            + (f"@{self.preset}" if self.preset else "")
            + (f":{','.join(shown)}" if shown else "")
        )

    @property
    def budget(self) -> str:
        """The budget as text: "64", "25%", or the preset's or the fields' own."""
        if self.keep is None:
            return "preset" if self.preset else "by its fields"
        return str(self.keep) if isinstance(self.keep, int) else f"{100 * self.keep:g}%"

    @property
    def key(self) -> str:
        """What stored answers of this setting go by."""
        parts = {"keep": self.keep, "preset": self.preset, "fields": dict(self.fields)}
        return f"{self.method} {json.dumps(parts, sort_keys=True)}"

    def make(self) -> Compressor:
        """The compressor."""
        if self.preset is not None:
            cls = catalog.method_class(self.method)
            return with_preset(cls, self.preset, **dict(self.fields))[0]
        return catalog.make(self.method, **dict(self.fields))

    def attach(self, model: Any, **options: Any) -> foveate.Run:
        """`foveate.attach` with this setting."""
        return foveate.attach(
            model,
            self.method,
            keep=self.keep,
            preset=self.preset,
            **options,
            **dict(self.fields),
        )

    def chat(self, model: Any, processor: Any, **options: Any) -> foveate.Chat:
        """`foveate.Chat` with this setting."""
        return foveate.Chat(
            model,
            processor,
            self.method,
            keep=self.keep,
            preset=self.preset,
            **options,
            **dict(self.fields),
        )


def parse_keep(text: str) -> Keep:
    """A budget as typed: "64" tokens, "0.25" or "25%" of them.

    Raises:
        BudgetError: it is no number, or out of range.
    """
    try:
        if text.endswith("%"):
            keep: Keep = float(text[:-1]) / 100
        else:
            keep = int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise BudgetError(
            f"A budget is a count like 64 or a share like 0.25 or 25%; got {text!r}."
        ) from None
    check_keep(keep)
    return keep


def parse_method(text: str) -> Setting:
    """A method as typed: `name`, `name@preset`, `name:field=value,field=value`.

    Values are read as JSON where they can be (numbers, true, null), else as words.

    Raises:
        UnknownName: no such method, preset or field.
        InputError: a field without a value.
    """
    head, _, tail = text.partition(":")
    name, _, preset = head.partition("@")
    fields = []
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"Expected field=value behind {head!r}:, got {item!r}.")
        try:
            fields.append((key.strip(), json.loads(value)))
        except json.JSONDecodeError:
            fields.append((key.strip(), value))
    setting = Setting(name, None, preset or None, tuple(fields))
    setting.make()  # unknown names are told now, not after an hour
    return setting


def expand(methods: Sequence[str], budgets: Sequence[Keep], draws: int = 3) -> list[list[Setting]]:
    """Every method at every budget; what is drawn at random is drawn several times.

    Args:
        methods: as `parse_method` reads them.
        budgets: for those without a preset.
        draws: seeds of methods that have a `seed` and were not given one.

    Returns:
        One group for each row of the table: the draws that are averaged in it.
    """
    for keep in budgets:
        check_keep(keep)
    groups = []
    for text in methods:
        setting = parse_method(text)
        known = {field.name for field in dataclasses.fields(catalog.method_class(setting.method))}
        seeds: list[tuple[tuple[str, Any], ...]] = [()]
        if "seed" in known and "seed" not in dict(setting.fields):
            seeds = [(("seed", seed),) for seed in range(draws)]
        own: list[Keep | None] = [None] if setting.preset else [*budgets]
        for budget in own:
            groups.append(
                [
                    dataclasses.replace(setting, keep=budget, fields=setting.fields + seed)
                    for seed in seeds
                ]
            )
    return groups
