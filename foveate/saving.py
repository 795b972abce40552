"""Saving a compressor and loading it again: a folder with one JSON file.

The file holds the method's name and fields, and which model it is for if one was given. Nothing
in it is ever executed: names are looked up in the catalogue.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from foveate import catalog
from foveate.compressor import Compressor
from foveate.errors import SavedFileError

FORMAT = 1
FILE = "compressor.json"

Plain = None | bool | int | float | str | tuple["Plain", ...]


def save(method: Compressor, path: str | Path, *, model: Any = None) -> Path:
    """Write a compressor to the folder `path`; an older one there is replaced as a whole.

    Args:
        method: a catalogued method (built in, or of an installed package).
        path: the folder; made if absent.
        model: the model that it is for, if it shall be refused by any other.

    Returns:
        The file that was written.

    Raises:
        SavedFileError: the method is not catalogued, or a field is no plain value.
    """
    name = catalog.name_of(method)
    if name not in catalog.table():
        raise SavedFileError(
            f"{name} is not catalogued, so nothing could load it again.\n"
            f"Register it in the entry-point group {catalog.GROUP!r} (docs/adding-a-method.md)."
        )
    record = {
        "format": FORMAT,
        "method": name,
        "fields": {f.name: _plain(f.name, getattr(method, f.name)) for f in _fields(method)},
        "model": None if model is None else shape_of(model),
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / FILE, folder / f"{FILE}.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, target)
    return target


def load(path: str | Path, *, model: Any = None) -> Compressor:
    """Read a compressor that `save` wrote.

    Args:
        path: the folder.
        model: the model that it shall be attached to; checked against what it was saved for.

    Raises:
        SavedFileError: no such folder, another format, or saved for another model.
        UnknownName: its method, or one of its fields, is not known here.
    """
    file = Path(path) / FILE
    if not file.is_file():
        raise SavedFileError(
            f"{path} holds no saved compressor: there is no {FILE} in it.\n"
            "foveate.save(method, folder) writes one."
        )
    try:
        record = json.loads(file.read_text())
        version, name, fields = record["format"], record["method"], record["fields"]
        wanted = record.get("model")
        # What has another shape is no such file, whatever it says.
        if not isinstance(name, str) or type(fields) is not dict or type(wanted or {}) is not dict:
            raise TypeError("its parts are of other types")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SavedFileError(
            f"{file} is no saved compressor ({error}).\nSave it again with foveate.save."
        ) from error
    if version != FORMAT:
        raise SavedFileError(
            f"{file} has format {version!r}; this version of foveate reads format {FORMAT}.\n"
            "Save it again, or install the foveate that wrote it."
        )
    if model is not None and wanted is not None and wanted != (found := shape_of(model)):
        differing = ", ".join(
            f"{key} {wanted.get(key)!r} (here {found.get(key)!r})"
            for key in {**wanted, **found}
            if wanted.get(key) != found.get(key)
        )
        raise SavedFileError(
            f"{file} was saved for another model: {differing}.\n"
            "Attach it to that model, or make a new one for this."
        )
    return catalog.make(name, **{key: _tuples(value) for key, value in fields.items()})


def shape_of(model: Any) -> dict[str, Any]:
    """What a model must share with the one that a compressor was saved for.

    Name and folder are left out: the same weights lie in different places.
    """
    text, vision = model.config.get_text_config(), getattr(model.config, "vision_config", None)
    return {
        "model_type": model.config.model_type,
        "hidden_size": text.hidden_size,
        "num_hidden_layers": text.num_hidden_layers,
        "vision_hidden_size": getattr(vision, "hidden_size", None),
    }


def _fields(method: Compressor) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(method)


def _plain(name: str, value: Any) -> Plain:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is tuple:
        return tuple(_plain(name, each) for each in value)
    raise SavedFileError(
        f"The field {name!r} holds a {type(value).__name__}, which cannot be saved as text.\n"
        "Expected None, a number, a string, or a tuple of them; give a name or path instead."
    )


def _tuples(value: Any) -> Any:
    """JSON knows no tuples; methods hold no lists."""
    return tuple(_tuples(each) for each in value) if type(value) is list else value
