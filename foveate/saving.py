"""Saving a compressor, loading it again, and sharing it: a folder with JSON and safetensors.

`compressor.json` holds the method's name and fields, and which model it is for if one was given;
`compressor.safetensors` the weights of a learned one; `README.md` is its model card. Nothing in
them is ever executed: names are looked up in the catalogue.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

import torch

from foveate import catalog
from foveate.compressor import Compressor
from foveate.errors import SavedFileError
from foveate.fingerprint import of_weights
from foveate.model_card import model_card

FORMAT = 1
FILE = "compressor.json"
WEIGHTS = "compressor.safetensors"
CARD = "README.md"

_IDENTITY = ("weights", "name", "revision")  # beside what `shape_of` says of a model

Plain = None | bool | int | float | str | tuple["Plain", ...]


def save(
    method: Compressor,
    path: str | Path,
    *,
    model: Any = None,
    training: Table[str, Any] | None = None,
) -> Path:
    """Write a compressor to the folder `path`; an older one there is replaced as a whole.

    Args:
        method: a catalogued method (built in, or of an installed package).
        path: the folder; made if absent.
        model: the model that it is for, if it shall be refused by any other. Needed for one that
            was trained.
        training: what is known of its training (settings, data, accuracy, cost), as plain values
            for the record and the model card. "accuracy" becomes its table: what
            `foveate.training.accuracy.Accuracy` holds, as a dict.

    Returns:
        The record that was written, `compressor.json`.

    Raises:
        SavedFileError: the method is not catalogued, a field is no plain value, or a weight is no
            finite number.
    """
    name = catalog.name_of(method)
    if name not in catalog.table():
        raise SavedFileError(
            f"{name} is not catalogued, so nothing could load it again.\n"
            f"Register it in the entry-point group {catalog.GROUP!r} (docs/adding-a-method.md)."
        )
    about = None if model is None else shape_of(model)
    record: dict[str, Any] = {
        "format": FORMAT,
        "method": name,
        "fields": {f.name: _plain(f.name, getattr(method, f.name)) for f in _fields(method)},
        "model": about,
    }
    folder = Path(path)
    tensors = None
    net = getattr(method, "net", None)
    if net is not None:
        if about is None:
            raise SavedFileError(
                f"{name} has weights, which fit one model only.\nSay which: save(..., model=model)."
            )
        about |= {"weights": of_weights(model), "name": _public(getattr(model, "name_or_path", ""))}
        # The commit that transformers downloaded; nothing of a folder.
        if (revision := getattr(model.config, "_commit_hash", None)) is not None:
            about["revision"] = str(revision)
        record["training"] = dict(training or {})
        tensors = {
            key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()
        }
        if broken := [key for key, value in tensors.items() if not value.isfinite().all()]:
            raise SavedFileError(
                f"{len(broken)} of the {len(tensors)} weights of {name} are no finite numbers "
                f"({broken[0]}).\nIts training has failed: take a smaller rate."
            )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILE
    files = {FILE: (json.dumps(record, indent=2) + "\n").encode()}
    if tensors is not None:
        from safetensors.torch import save

        files |= {CARD: model_card(record).encode(), WEIGHTS: save(tensors)}
    for name, content in files.items():
        (folder / f"{name}.partial").write_bytes(content)
    # Without its record the folder holds nothing: never new weights under an old record.
    target.unlink(missing_ok=True)
    for name in (CARD, WEIGHTS, FILE):
        if name in files:
            os.replace(folder / f"{name}.partial", folder / name)
        elif (folder / WEIGHTS).is_file():  # an older one's, and so is its card
            (folder / name).unlink(missing_ok=True)
    return target


def load(
    path: str | Path,
    *,
    model: Any = None,
    revision: str | None = None,
    token: str | None = None,
) -> Compressor:
    """Read a compressor that `save` wrote.

    Args:
        path: the folder, or a Hub id such as "someone/metacompress-llava" if there is no such
            folder.
        model: the model that it shall be attached to; checked against what it was saved for.
        revision: branch, tag or commit on the Hub.
        token: a Hub token; the logged-in one if None.

    Raises:
        SavedFileError: no such folder, another format, or saved for another model.
        UnknownName: its method, or one of its fields, is not known here.
    """
    path = _folder(path, revision, token)
    file = path / FILE
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
        known = {} if wanted is None else wanted
        if not isinstance(name, str) or type(fields) is not dict or type(known) is not dict:
            raise TypeError("its parts are of other types")
        if known.get("weights") is not None and type(known["hidden_size"]) is not int:
            raise TypeError("its weights are of no width")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SavedFileError(
            f"{file} is no saved compressor ({error}).\nSave it again with foveate.save."
        ) from error
    if version != FORMAT:
        raise SavedFileError(
            f"{file} has format {version!r}; this version of foveate reads format {FORMAT}.\n"
            "Save it again, or install the foveate that wrote it."
        )
    identity = {} if wanted is None else {key: wanted.pop(key, None) for key in _IDENTITY}
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
    trained = identity.get("weights") is not None
    try:
        method = catalog.make(name, **{key: _tuples(value) for key, value in fields.items()})
        if not method.trainable or not trained:
            return method
        learned: Any = method
        net = learned.build(wanted["hidden_size"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise SavedFileError(
            f"{file} has fields that make no {name} ({str(error).splitlines()[0]}).\n"
            "Save it again with foveate.save."
        ) from error
    _read_weights(net, path / WEIGHTS)
    learned = dataclasses.replace(learned, net=net, trained_on=str(identity["weights"]))
    return learned if model is None else learned.fitted(model)


def push_to_hub(
    path: str | Path, repo: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload a saved compressor, its card included, to the Hugging Face Hub.

    Args:
        path: the folder that `save` wrote.
        repo: "owner/name"; made if absent.
        private: whether a new repository is private.
        token: a Hub token; the logged-in one if None.

    Returns:
        Where it lies.

    Raises:
        SavedFileError: the folder holds no saved compressor.
    """
    load(path)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    return str(
        api.upload_folder(repo_id=repo, folder_path=str(path), allow_patterns=[FILE, WEIGHTS, CARD])
    )


def _folder(path: str | Path, revision: str | None, token: str | None) -> Path:
    """The folder itself, or that of the downloaded files where `path` is a Hub id."""
    local, text = Path(path), str(path)
    if local.exists() or isinstance(path, Path) or text.count("/") != 1 or text[0] in "./~":
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            text, revision=revision, token=token, allow_patterns=[FILE, WEIGHTS, CARD]
        )
        return Path(found)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SavedFileError(
            f"There is no folder {text!r} here, and the Hub gave nothing under that name\n"
            f"({type(error).__name__}). Give a folder that foveate.save wrote, or owner/name."
        ) from error


def _public(name: str) -> str:
    """A model's name on the Hub; of a folder its last part, since the rest is nobody's business."""
    return Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name


def _read_weights(net: torch.nn.Module, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise SavedFileError(f"{file.parent} holds no {WEIGHTS}.\nSave the compressor again.")
    try:
        tensors = load_file(str(file))
        net.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise SavedFileError(
            f"{file} does not fit the fields beside it ({str(error).splitlines()[0]}).\n"
            "Save the compressor again."
        ) from error


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
    return tuple(f for f in dataclasses.fields(method) if f.metadata.get("setting", True))


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
