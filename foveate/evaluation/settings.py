"""One setting of a comparison: a method with its fields, at one budget or published preset."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import foveate
from foveate import catalog
from foveate.compressor import Compressor, check_keep, with_preset
from foveate.errors import BudgetError, InputError, UnknownName
from foveate.evaluation import fingerprints
from foveate.evaluation.data import Dialogue
from foveate.fingerprint import of_bits
from foveate.mapping import Mapping

Keep = int | float
# Of a dialogue's number, of each picture: the mappings of a method's parts (`Item.answers`).
Chosen = dict[int, list[list[Mapping]]]

EACH, FIRST, BOTH = "each", "first", "both"
TURNS = (EACH, FIRST, BOTH)
# What may be named like a method and is none: it is told what to keep.
TOLD: dict[str, str] = {
    "relevance-map": "foveate.evaluation.relevance_map:RelevanceMap",
}
_COMMAS = re.compile(r",(?![^\[\]]*\])")  # those outside of brackets


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is attached for one run over the data.

    Attributes:
        method: catalogued name, or several for a chain: "visionzip/fastv".
        keep: the budget; None with a preset, and where the method's fields state it.
        preset: a published setting instead.
        fields: fields of the method that differ from its defaults.
        turns: whether the tokens are chosen at ``"each"`` turn of a dialogue, or at the
            ``"first"`` for all of it.
        drawn: further fields, the seeds of this draw.

    Class attributes:
        note: what to say of something that is no method, but told what to keep; else empty.
    """

    method: str
    keep: Keep | None = None
    preset: str | None = None
    fields: tuple[tuple[str, Any], ...] = ()
    turns: str = EACH
    drawn: tuple[tuple[str, int], ...] = ()
    note: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """The method with what was set, without the budget: "divprune", "visionzip@authors-64"."""
        shown = [f"{key}={_typed(value)}" for key, value in self.fields]
        return (
            _shown(self.method)
            + (f"@{self.preset}" if self.preset else "")
            + (f":{','.join(shown)}" if shown else "")
        )

    @property
    def budget(self) -> str:
        """The budget as text: "64", "25%", or where it comes from."""
        if self.keep is None:
            return "preset" if self.preset else "own"
        return str(self.keep) if isinstance(self.keep, int) else f"{100 * self.keep:g}%"

    @property
    def key(self) -> str:
        """What stored answers of this setting go by."""
        parts: dict[str, Any] = {
            "keep": self.keep,
            "preset": self.preset,
            "fields": self._fields,
        }
        if self.turns != EACH:
            parts["turns"] = self.turns
        if catalog.is_saved(self.method):
            made = self.make()
            net = getattr(made, "net", None)
            parts["saved"] = [repr(made), None if net is None else of_bits(net)]
        else:
            # Found by name alone: answers of other weights are others.
            names = self.method.split(catalog.CHAINED)
            if shipped := {name: found for name in names if (found := fingerprints.shipped(name))}:
                parts["shipped"] = shipped
        return f"{self.method} {json.dumps(parts, sort_keys=True)}"

    @property
    def _fields(self) -> dict[str, Any]:
        return dict(self.fields + self.drawn)

    @property
    def reads_prompt(self) -> bool:
        """Whether what is chosen depends on the question."""
        return self.make().prompt_aware

    @property
    def chooses_again(self) -> bool:
        """Whether a later turn of a dialogue may keep other tokens than the first."""
        return self.turns == EACH and self.reads_prompt

    @property
    def field_names(self) -> list[str]:
        """The fields that it may have."""
        return catalog.field_names(self.method)

    def make(self) -> Compressor:
        """The compressor."""
        return self.resolved()[0]

    def resolved(self) -> tuple[Compressor, Keep | None]:
        """The compressor and the budget, a preset's own included; None: its fields decide."""
        if self.preset is not None:
            cls = catalog.method_class(self.method)
            return with_preset(cls, self.preset, **self._fields)[:2]
        return catalog.make(self.method, **self._fields), self.keep

    def told(
        self,
        model: Any,
        dialogues: Sequence[Dialogue],
        turn: int,
        inputs: Callable[[], dict[str, Any]],
        max_new_tokens: int,
    ) -> list[list[list[Mapping]]] | None:
        """What to keep of each dialogue's pictures, where it is not the method that decides.

        Args:
            model: as loaded, nothing attached.
            dialogues: those of the rows.
            turn: the turn that is to be answered, counted from 0.
            inputs: makes that turn's, pictures not yet encoded.
            max_new_tokens: the longest answer.

        Returns:
            Of each dialogue, of each picture: the mappings of a method's parts.
        """
        return None

    @property
    def options(self) -> dict[str, Any]:
        """What `foveate.attach` and `foveate.Chat` take of it."""
        return {
            "method": self.method,
            "keep": self.keep,
            "preset": self.preset,
            **self._fields,
        }

    def attach(self, model: Any, **options: Any) -> foveate.Run:
        """`foveate.attach` with this setting."""
        return foveate.attach(model, **self.options, **options)

    def chat(self, model: Any, processor: Any, **options: Any) -> foveate.Chat:
        """`foveate.Chat` with this setting."""
        return foveate.Chat(model, processor, **self.options, **options)


def _shown(method: str) -> str:
    """A name as it is; of the place of a saved compressor its last part."""
    return Path(method).resolve().name if catalog.is_saved(method) else method


def _is_seed(field: str) -> bool:
    return field.rpartition(".")[2] == "seed"


def _typed(value: Any) -> str:
    """A value as `parse_method` reads it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


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

    A name may be a chain, "visionzip/fastv", whose fields are its own and those of its methods by
    "fastv.layer"; or where a compressor was saved, "./runs/x" or "hub:owner/name". Values are read
    as JSON where they can be (numbers, lists, true, null), else as words.

    Raises:
        UnknownName: no such method, preset or field.
        InputError: a field without a value, or with one of the wrong kind.
        BudgetError: fields that contradict each other.
    """
    if catalog.is_saved(text):
        catalog.make(text)
        return Setting(text)
    head, _, tail = text.partition(":")
    name, _, preset = head.partition("@")
    fields = []
    for item in filter(None, _COMMAS.split(tail)):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"Expected field=value behind {head!r}:, got {item!r}.")
        fields.append((key.strip(), _value(value)))
    setting = _kind(name)(name, None, preset or None, tuple(fields))
    try:
        setting.make()  # unknown names are told now, not after an hour
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"A field of {text!r} has a value of the wrong kind: {reason}.") from error
    return setting


def _kind(name: str) -> type[Setting]:
    if name not in TOLD:
        return Setting
    module, _, attribute = TOLD[name].partition(":")
    found: type[Setting] = getattr(importlib.import_module(module), attribute)
    return found


def _value(text: str) -> Any:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(found) if isinstance(found, list) else found


def expand(
    methods: Sequence[str], budgets: Sequence[Keep], draws: int = 3, turns: str = EACH
) -> list[list[Setting]]:
    """Every method at every budget; what is drawn at random is drawn several times.

    Args:
        methods: as `parse_method` reads them.
        budgets: for those that do not state one themselves.
        draws: seeds of methods that have a `seed` and were not given one.
        turns: where methods that read the prompt choose, or ``"both"`` ways one after the other.
            For all others both are the same: they come once.

    Returns:
        One group for each row of the table: the draws that are averaged in it. What is asked for
        twice comes once.

    Raises:
        UnknownName: no such method, preset, field or way of turning.
        BudgetError: a budget out of range.
    """
    if turns not in TURNS:
        raise UnknownName("way of turning", turns, TURNS)
    for keep in budgets:
        check_keep(keep)
    groups: list[tuple[Setting, ...]] = []
    for text in methods:
        setting = parse_method(text)
        given = dict(setting.fields)
        free = [f for f in setting.field_names if _is_seed(f) and f not in given]
        seeds = [tuple((f, seed) for f in free) for seed in range(draws if free else 1)]
        states = setting.preset is not None or setting.make().states_budget
        own: list[Keep | None] = [None] if states else [*budgets]
        ways = [turns] if setting.reads_prompt else [EACH]
        groups += [
            tuple(dataclasses.replace(setting, keep=k, turns=way, drawn=seed) for seed in seeds)
            for k in own
            for way in ((EACH, FIRST) if ways == [BOTH] else ways)
        ]
    return [list(group) for group in dict.fromkeys(groups)]
