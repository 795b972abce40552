"""What stored answers depend on, as short hashes: model, processor, and foveate's own code."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import foveate

# What decides an answer; the shell, the timing and the report do not.
_DECIDING = (
    *("*.py", "adapters/*.py", "attach/*.py", "methods/*.py"),
    *("evaluation/answering.py", "evaluation/told.py"),
    *("evaluation/oracle.py", "evaluation/relevance_map.py", "evaluation/optimum.py"),
)
# Of generation: always given, of sampling, or of what is handed back.
_NO_MATTER = {
    *("max_new_tokens", "max_length", "do_sample", "num_beams"),
    *("temperature", "top_p", "top_k", "min_p", "typical_p"),
    *("use_cache", "output_attentions", "output_hidden_states", "output_scores"),
    *("_from_model_config", "transformers_version"),
}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def model(loaded: torch.nn.Module) -> str:
    """Of the configuration, the attention backend and every parameter's bits; not of its place."""
    config: Any = loaded.config
    found = hashlib.sha256(_placeless(config.to_json_string(use_diff=False)).encode())
    found.update(str(config._attn_implementation).encode())
    for name, parameter in loaded.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:  # weights that accelerate keeps elsewhere are not read
            bits = parameter.detach().view(_BITS[parameter.element_size()])
            few = bits.flatten()[:16].tolist()
            # A sum of integers, unlike one of floats, is the same in any order.
            found.update(f"{few} {bits.sum(dtype=torch.int64).item()}".encode())
    return found.hexdigest()[:16]


def config(loaded: torch.nn.Module) -> str:
    """Of the configuration alone: which layer's features are taken, among others; not its place."""
    settings: Any = loaded.config
    return hashlib.sha256(_placeless(settings.to_json_string(use_diff=False)).encode()).hexdigest()[
        :16
    ]


def generation(loaded: torch.nn.Module) -> dict[str, Any]:
    """What of its generation settings decides a greedy answer, to be put beside `config`."""
    given: Any = getattr(loaded, "generation_config", None)
    known = {} if given is None else given.to_diff_dict()
    return {"generation": {key: known[key] for key in sorted(known.keys() - _NO_MATTER)}}


def _placeless(text: str) -> str:
    """A configuration without the folder that it was loaded from."""

    def kept(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in fields.items() if key != "_name_or_path"}

    return json.dumps(json.loads(text, object_hook=kept), sort_keys=True)


def processor(loaded: Any) -> str:
    """Of its settings, chat template and vocabulary."""
    found = hashlib.sha256(_placeless(loaded.to_json_string()).encode())
    found.update(str(getattr(loaded, "chat_template", None)).encode())
    for name in ("image_processor", "video_processor"):
        part = getattr(loaded, name, None)
        if part is not None:
            found.update(_placeless(part.to_json_string()).encode())
    found.update(json.dumps(loaded.tokenizer.get_vocab(), sort_keys=True).encode())
    return found.hexdigest()[:16]


def code() -> str:
    """The version, and a hash of the files that decide an answer: an edit makes old ones stale.

    Comments and docstrings decide nothing.
    """
    root = Path(foveate.__file__).parent
    found = hashlib.sha256()
    for pattern in _DECIDING:
        for path in sorted(root.glob(pattern)):
            found.update(_statements(path) if path.suffix == ".py" else path.read_bytes())
    return f"{foveate.__version__} ({found.hexdigest()[:8]})"


def shipped(name: str) -> str | None:
    """Of the weights that ship with a method, for all models; None if there are none."""
    files = sorted((Path(foveate.__file__).parent / "weights" / name).glob("*/compressor.*"))
    if not files:
        return None
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:8]


def _statements(path: Path) -> bytes:
    """A module without what only its readers see."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = node.body[0] if node.body else None
            if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant):
                del node.body[0]
    return ast.unparse(tree).encode()
