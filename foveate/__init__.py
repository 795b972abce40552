"""foveate: fewer visual tokens, the same answers, on any Hugging Face vision-language model.

    with foveate.attach(model, "visionzip", keep=64) as run:
        out = model.generate(**inputs)
    print(run)

Importing foveate loads neither transformers nor a method.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.attach import Run, attach
    from foveate.attention import LayerAttention
    from foveate.catalog import chain, make, names
    from foveate.chat import Chat, Reply
    from foveate.compressor import (
        Compressor,
        DecoderMethod,
        Grid,
        Preset,
        Reads,
        Stage,
        VisualTokens,
    )
    from foveate.errors import FoveateError
    from foveate.learned import LearnedCompressor
    from foveate.mapping import Mapping
    from foveate.saving import load, push_to_hub, save

__version__ = "0.1.0"

_PUBLIC = {
    "Chat": "foveate.chat",
    "Compressor": "foveate.compressor",
    "DecoderMethod": "foveate.compressor",
    "FoveateError": "foveate.errors",
    "Grid": "foveate.compressor",
    "LayerAttention": "foveate.attention",
    "LearnedCompressor": "foveate.learned",
    "Mapping": "foveate.mapping",
    "Preset": "foveate.compressor",
    "Reads": "foveate.compressor",
    "Reply": "foveate.chat",
    "Run": "foveate.attach",
    "Stage": "foveate.compressor",
    "VisualTokens": "foveate.compressor",
    "attach": "foveate.attach",
    "chain": "foveate.catalog",
    "load": "foveate.saving",
    "make": "foveate.catalog",
    "names": "foveate.catalog",
    "push_to_hub": "foveate.saving",
    "save": "foveate.saving",
}

__all__ = [
    "Chat",
    "Compressor",
    "DecoderMethod",
    "FoveateError",
    "Grid",
    "LayerAttention",
    "LearnedCompressor",
    "Mapping",
    "Preset",
    "Reads",
    "Reply",
    "Run",
    "Stage",
    "VisualTokens",
    "attach",
    "chain",
    "load",
    "make",
    "names",
    "push_to_hub",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    # Method classes by their own names: foveate.VisionZip, foveate.DivPrune ...
    # `from foveate import catalog` would ask this very function for the name first, for ever.
    catalog = importlib.import_module("foveate.catalog")
    for where in catalog.table().values():
        module, _, attribute = where.partition(":")
        if attribute == name:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'foveate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the subpackage foveate.attach sets it here as an attribute, where it would
        # hide the function of the same name: foveate.Run would break foveate.attach().
        if name == "attach" and isinstance(value, ModuleType):
            value = value.attach
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
