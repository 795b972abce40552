"""Every method by name: a table of strings, resolved on use.

Others' packages add theirs through the entry-point group ``foveate.methods``; a name that is
taken already is an error, never a silent replacement.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import BudgetError, FoveateError, InputError, UnknownName

if TYPE_CHECKING:
    from foveate.compressor import Compressor

GROUP = "foveate.methods"
CHAINED = "/"  # between the names of a chain's methods
# Type of a field, as written -> how an error calls it, and what it takes. Others check themselves.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda value: type(value) is bool),
    "int": ("a whole number", lambda value: type(value) is int),
    "float": ("a number", lambda value: type(value) in (int, float) and value == value),
    "str": ("a word", lambda value: isinstance(value, str)),
}
_OR_NONE = " | None"
SAVED = (".", "/", "~", "hub:")  # what the place of a saved compressor begins with, no name does

BUILT_IN: dict[str, str] = {
    "cover": "foveate.methods.cover:Cover",
    "dart": "foveate.methods.dart:DART",
    "divprune": "foveate.methods.divprune:DivPrune",
    "fastv": "foveate.methods.fastv:FastV",
    "fitprune": "foveate.methods.fitprune:FitPrune",
    "metacompress": "foveate.methods.metacompress:MetaCompress",
    "mmtok": "foveate.methods.mmtok:MMTok",
    "mustdrop": "foveate.methods.mustdrop:MustDrop",
    "polymorphic": "foveate.methods.polymorphic:Polymorphic",
    "pool": "foveate.methods.pool:Pool",
    "prumerge": "foveate.methods.prumerge:PruMerge",
    "prumerge+": "foveate.methods.prumerge_plus:PruMergePlus",
    "pyramiddrop": "foveate.methods.pyramiddrop:PyramidDrop",
    "random": "foveate.methods.random:Random",
    "relevance": "foveate.methods.relevance:Relevance",
    "resize": "foveate.methods.resize:Resize",
    "seek": "foveate.methods.seek:Seek",
    "sparsevlm": "foveate.methods.sparsevlm:SparseVLM",
    "tome": "foveate.methods.tome:ToMe",
    "trim": "foveate.methods.trim:Trim",
    "uniform": "foveate.methods.uniform:Uniform",
    "uniform-2d": "foveate.methods.uniform_2d:Uniform2D",
    "visionzip": "foveate.methods.visionzip:VisionZip",
    "vtw": "foveate.methods.vtw:VTW",
}


@functools.cache
def table() -> dict[str, str]:
    """Every known name and where its class is: built-in ones and installed entry points."""
    found = dict(BUILT_IN)
    for point in entry_points(group=GROUP):
        if found.setdefault(point.name, point.value) != point.value:
            raise FoveateError(
                f"Two packages offer a method named {point.name!r}: {found[point.name]} and "
                f"{point.value}.\nUninstall one of them, or ask its author to rename it."
            )
    return found


def names() -> list[str]:
    """Every known method name, sorted."""
    return sorted(table())


def is_saved(name: str) -> bool:
    """Whether this is no name, but where a compressor was saved: "./runs/x", "hub:owner/name"."""
    return name.startswith(SAVED)


def _loaded(place: str) -> Compressor:
    if place.startswith("hub:"):
        return _read(place.removeprefix("hub:"), None)
    folder = Path(place).expanduser()
    # A folder may be written anew while this process runs.
    stamps = [(each.name, each.stat().st_mtime_ns) for each in sorted(folder.glob("compressor.*"))]
    return _read(folder, tuple(stamps))


@functools.cache
def _read(path: str | Path, stamps: Any) -> Compressor:
    saving = importlib.import_module("foveate.saving")
    found: Compressor = saving.load(path)
    return found


def method_class(name: str) -> type[Compressor]:
    """The class behind a name; "first/second" is a chain of two.

    Raises:
        UnknownName: no such method; the message suggests the nearest name.
        SavedFileError: nothing was saved there.
    """
    if is_saved(name):
        return type(_loaded(name))
    if CHAINED in name:
        for part in name.split(CHAINED):
            method_class(part)
        return importlib.import_module("foveate.composition").Chain
    where = table().get(name)
    if where is None:
        hint = f"'foveate list' shows all {len(table())}."
        raise UnknownName("method", name, table(), hint=hint)
    module, _, attribute = where.partition(":")
    found: type[Compressor] = getattr(importlib.import_module(module), attribute)
    return found


def name_of(method: Compressor | type[Compressor]) -> str:
    """The catalogued name of a method, or its class name if it is not catalogued."""
    cls = method if isinstance(method, type) else type(method)
    if methods := getattr(method, "methods", None):
        return CHAINED.join(name_of(each) for each in methods)
    where = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, value in table().items() if value == where), cls.__name__)


def chain(
    *methods: str | Compressor | tuple[str | Compressor, int | float | None], ratio: float = 2.0
) -> Compressor:
    """Methods that act one after the other, as one method.

        foveate.attach(model, foveate.chain("visionzip", "fastv"), keep=64)
        foveate.attach(model, foveate.chain(("visionzip", 128), ("fastv", 64)))

    Args:
        methods: names or methods, or pairs of one and its own budget (all or none of them). Only
            the last may act between decoder layers (its budget is the average over all layers),
            only the first on the vision side.
        ratio: with one `keep` for all, every method leaves `ratio` times as much as the next one.

    Raises:
        UnknownName: no such method.
        BudgetError: fewer than two methods, or budgets for some of them only.
    """
    composed = importlib.import_module("foveate.composition").Chain
    pairs = [each for each in methods if isinstance(each, tuple)]
    if pairs and len(pairs) < len(methods):
        raise BudgetError(
            "Give every method of a chain its own budget, or none and keep= for all.\n"
            'chain(("visionzip", 128), ("fastv", 64)), or chain("visionzip", "fastv").'
        )
    plain = [each[0] if isinstance(each, tuple) else each for each in methods]
    made = tuple(make(each) if isinstance(each, str) else each for each in plain)
    keeps = tuple(keep for _, keep in pairs) if pairs else None
    found: Compressor = composed(methods=made, ratio=ratio, keeps=keeps)
    return found


def make(name: str, **fields: Any) -> Compressor:
    """A method by name, with its fields; "first/second" is a chain of two.

    A chain has fields of its own, and those of its methods by "name.field". What was saved (a
    folder that begins with ".", "/" or "~", or "hub:owner/name") has the fields it was saved with.

    Raises:
        UnknownName: no such method, or no such field.
        InputError: a field of another kind than it is: a word where a number is, a number where
            true or false is.
        SavedFileError: nothing was saved there.
    """
    known = field_names(name)
    for field in fields:
        if field not in known:
            raise UnknownName(f"field of {name}", field, known)
    if is_saved(name):
        return _loaded(name)
    made: Any = method_class(name)
    if CHAINED not in name:
        check_kinds(name, made, fields)
        return made(**fields)
    own = {key: value for key, value in fields.items() if "." not in key}
    methods = []
    for part in name.split(CHAINED):
        theirs = {k.partition(".")[2]: v for k, v in fields.items() if k.startswith(f"{part}.")}
        methods.append(make(part, **theirs))
    return made(methods=tuple(methods), **own)


def check_kinds(name: str, made: Any, given: Mapping[str, Any]) -> None:
    """Raise an InputError for a plain field that is given something of another kind.

    Args:
        name: how the error calls what is made.
        made: its class, a dataclass.
        given: some of its fields.
    """
    kinds = {field.name: str(field.type) for field in dataclasses.fields(made)}
    for field, value in given.items():
        kind = kinds[field].removesuffix(_OR_NONE)
        says, fits = _KINDS.get(kind, ("", lambda value: True))
        may_lack = kind != kinds[field]
        if not fits(value) and not (may_lack and value is None):
            raise InputError(f"{field} of {name} is {says}{' or null' * may_lack}; got {value!r}.")


def field_names(name: str) -> list[str]:
    """The fields that `make` takes for a name; none for what was saved.

    Raises:
        UnknownName: no such method.
        SavedFileError: nothing was saved there.
    """
    if is_saved(name):
        _loaded(name)
        return []
    fields = dataclasses.fields(method_class(name))
    own = [field.name for field in fields if field.metadata.get("setting", True)]
    if CHAINED not in name:
        return own
    parts = dict.fromkeys(name.split(CHAINED))
    theirs = [f"{part}.{field}" for part in parts for field in field_names(part)]
    return [field for field in own if field != "methods"] + theirs
