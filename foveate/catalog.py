"""Every method by name: a table of strings, resolved on use.

Others' packages add theirs through the entry-point group ``foveate.methods``; a name that is
taken already is an error, never a silent replacement.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError, UnknownName

if TYPE_CHECKING:
    from foveate.compressor import Compressor

GROUP = "foveate.methods"

BUILT_IN: dict[str, str] = {
    "dart": "foveate.methods.dart:DART",
    "divprune": "foveate.methods.divprune:DivPrune",
    "fastv": "foveate.methods.fastv:FastV",
    "fitprune": "foveate.methods.fitprune:FitPrune",
    "mmtok": "foveate.methods.mmtok:MMTok",
    "mustdrop": "foveate.methods.mustdrop:MustDrop",
    "polymorphic": "foveate.methods.polymorphic:Polymorphic",
    "pool": "foveate.methods.pool:Pool",
    "prumerge": "foveate.methods.prumerge:PruMerge",
    "prumerge+": "foveate.methods.prumerge_plus:PruMergePlus",
    "pyramiddrop": "foveate.methods.pyramiddrop:PyramidDrop",
    "random": "foveate.methods.random:Random",
    "resize": "foveate.methods.resize:Resize",
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


def method_class(name: str) -> type[Compressor]:
    """The class behind a name.

    Raises:
        UnknownName: no such method; the message suggests the nearest name.
    """
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
    where = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, value in table().items() if value == where), cls.__name__)


def make(name: str, **fields: Any) -> Compressor:
    """A method by name, with its fields.

    Raises:
        UnknownName: no such method, or no such field.
    """
    cls = method_class(name)
    known = [f.name for f in dataclasses.fields(cls)]
    for field in fields:
        if field not in known:
            raise UnknownName(f"field of {name}", field, known)
    return cls(**fields)
