"""A picture's features as tensors: to be stored, read again, and put into batches with others.

`foveate.attach.encode` runs the vision side of one prompt. `pack` takes apart what came of it, and
`join` makes one `Encoded` of several prompts, as if they had been encoded in one call.

Where the projector makes more numbers than it reads (four times as many in LLaVA-1.5), what it
reads is stored, and projected again in `join`: one small matrix product before a whole language
model. Only where that gives the same up to rounding, which is tried while packing: the order in
which a sum is taken depends on how the rows lie in memory, as it does on what is in a batch.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from foveate.adapters.base import Layout
from foveate.attach import Encoded
from foveate.attach.capture import Capture
from foveate.compressor import Grid

# What belongs to the text, whose place the prompt to come takes; and masks of pixels that are gone.
_TEXT = frozenset({"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"})
_PIXELS = ("pixel", "image_patches")
_READ = ("cls", "attention", "keys", "wide_attention", "wide_keys")  # per tower token or tile
_LAYOUT = ("visual", "rows", "patches", "tile", "weights")
MODALITIES = ("image", "video")
_ROUNDING = 16  # units in the last place of the largest entry


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """The features of all pictures of one prompt.

    Attributes:
        tensors: by name.
        facts: what is no tensor, as plain values.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(each.nbytes for each in self.tensors.values())


Project = Callable[[Tensor], Tensor]  # (n, r, c) encoder rows of n slots -> (n, d) tokens


def pack(encoded: Encoded, *, rows: bool = False, project: Project | None = None) -> Packed:
    """What `foveate.attach.encode` gave for one prompt, as tensors on the host.

    Args:
        encoded: of a batch of one.
        rows: whether the projector's input is kept in any case, for methods that look at it.
        project: the adapter's `project`, to store the projector's input where that is smaller;
            None to store its output.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"features": {}, "captures": {}, "lists": {}}
    for name, value in encoded.inputs.items():
        if name in _TEXT or name.startswith(_PIXELS) or name == "mm_encoder_outputs":
            continue
        if isinstance(value, Tensor):
            tensors[f"input.{name}"] = value
        elif isinstance(value, list):
            facts["lists"][name] = value
    for modality, out in encoded.inputs["mm_encoder_outputs"].items():
        deep = getattr(out, "deepstack_features", None)
        facts["features"][modality] = {
            "pooled": _put(tensors, f"{modality}.pooled", out.pooler_output),
            "deep": None
            if deep is None
            else [_put(tensors, f"{modality}.deep.{i}", each) for i, each in enumerate(deep)],
        }
    for capture in encoded.captures:
        before = project is not None and _before(tensors, facts, capture, project)
        facts["captures"][capture.modality] = _pack_capture(tensors, capture, rows or before)
        facts["captures"][capture.modality]["read"] = rows
    # Copies: parts of one tensor would be stored as the whole of it.
    tensors = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    return Packed(tensors, json.loads(json.dumps(facts)))


def join(
    parts: Sequence[Packed],
    device: torch.device | str | None = None,
    project: Project | None = None,
) -> Encoded:
    """The features of several prompts in their order, as of one batch.

    Args:
        parts: of each prompt.
        device: where to put them.
        project: as `pack` was given it.
    """
    moved = [
        _projected(
            Packed(
                {k: v.to(device) for k, v in p.tensors.items()} if device else dict(p.tensors),
                p.facts,
            ),
            project,
        )
        for p in parts
    ]
    inputs: dict[str, Any] = {}
    names = dict.fromkeys(n for p in moved for n in p.tensors if n.startswith("input."))
    for name in names:
        inputs[name.removeprefix("input.")] = torch.cat(
            [p.tensors[name] for p in moved if name in p.tensors]
        )
    for name in dict.fromkeys(n for p in moved for n in p.facts["lists"]):
        inputs[name] = [x for p in moved for x in p.facts["lists"].get(name, [])]
    outputs, captures = {}, []
    for modality in MODALITIES:
        shown = [p for p in moved if modality in p.facts["features"]]
        if not shown:
            continue
        facts = [p.facts["features"][modality] for p in shown]
        out = SimpleNamespace(pooler_output=_join(shown, f"{modality}.pooled", facts, "pooled"))
        if facts[0]["deep"] is not None:
            out.deepstack_features = [
                _join(shown, f"{modality}.deep.{i}", [f["deep"] for f in facts], i)
                for i in range(len(facts[0]["deep"]))
            ]
        outputs[modality] = out
        captures.append(_join_captures(shown, modality))
    return Encoded({**inputs, "mm_encoder_outputs": outputs}, tuple(captures))


# ---------------------------------------------------------------- features


def _put(tensors: dict[str, Tensor], name: str, value: Any) -> int | None:
    """Store a tensor, or each of a sequence; returns how many those are, None for one tensor."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return None
    for i, each in enumerate(value):
        tensors[f"{name}.{i}"] = each
    return len(value)


def _join(shown: Sequence[Packed], name: str, facts: Sequence[Any], key: Any) -> Any:
    if facts[0][key] is None:
        return torch.cat([p.tensors[name] for p in shown])
    return [
        p.tensors[f"{name}.{i}"] for p, f in zip(shown, facts, strict=True) for i in range(f[key])
    ]


# ---------------------------------------------------------------- before the projector


def _before(
    tensors: dict[str, Tensor], facts: dict[str, Any], capture: Capture, project: Project
) -> bool:
    """Replace tokens by what the projector made them of, if that is smaller and gives the same."""
    modality, rows, layouts = capture.modality, capture.rows, capture.layouts
    known = facts["features"].get(modality)
    assert rows is not None
    if known is None or known["deep"] is not None or any(x.rows is None for x in layouts):
        return False
    names = _names(modality, known["pooled"])
    flat = torch.cat([tensors[name].flatten(0, -2) for name in names])
    visual = torch.cat([layout.visual for layout in layouts]).to(flat.device)
    if len(visual) != len(flat) or rows.nbytes >= int(visual.sum()) * flat[0].nbytes:
        return False
    off = (_project(rows, layouts, project) - flat[visual]).abs().max()
    if not off <= _ROUNDING * torch.finfo(flat.dtype).eps * flat.abs().max():
        return False
    known["shapes"] = [list(tensors.pop(name).shape) for name in names]
    tensors[f"{modality}.specials"] = flat[~visual]
    return True


def _project(rows: Tensor, layouts: Sequence[Layout], project: Project) -> Tensor:
    # All pictures in one call, as the model does it: another grouping may round in another way.
    index = torch.cat([layout.rows for layout in layouts if layout.rows is not None])
    return project(rows[index.to(rows.device)])


@torch.no_grad()
def _projected(packed: Packed, project: Project | None) -> Packed:
    """The same with its tokens, where they are stored as what the projector reads."""
    for modality, facts in packed.facts["features"].items():
        if "shapes" not in facts:
            continue
        assert project is not None, "these features lie before the projector"
        tensors, start = packed.tensors, f"{modality}.capture"
        none = {"rows": 0, "patches": 0, "tile": 0}
        layouts = [
            _layout(tensors, f"{start}.{i}", each, none)
            for i, each in enumerate(packed.facts["captures"][modality]["layouts"])
        ]
        tokens = _project(tensors[f"{start}.rows"], layouts, project)
        visual = torch.cat([layout.visual for layout in layouts]).to(tokens.device)
        flat = tokens.new_empty(len(visual), tokens.shape[-1])
        flat[visual], flat[~visual] = tokens, tensors[f"{modality}.specials"]
        shapes = facts["shapes"]
        sizes = [math.prod(shape[:-1]) for shape in shapes]
        names = _names(modality, facts["pooled"])
        for name, part, shape in zip(names, flat.split(sizes), shapes, strict=True):
            tensors[name] = part.reshape(shape)
        if not packed.facts["captures"][modality]["read"]:
            del tensors[f"{start}.rows"]
    return packed


def _names(modality: str, count: int | None) -> list[str]:
    start = f"{modality}.pooled"
    return [start] if count is None else [f"{start}.{i}" for i in range(count)]


# ---------------------------------------------------------------- captures


def _pack_capture(tensors: dict[str, Tensor], capture: Capture, rows: bool) -> dict[str, Any]:
    start = f"{capture.modality}.capture"
    assert capture.rows is not None
    # Numbers of rows, tower tokens and tiles: what the next prompt's indices begin at.
    counts = {"rows": len(capture.rows), "patches": 0, "tile": 0}
    for layout in capture.layouts:
        for name in ("patches", "tile"):
            values = getattr(layout, name)
            counts[name] = max(counts[name], int(values.max()) + 1 if len(values) else 0)
    for name in _READ:
        value = getattr(capture, name)
        if value is not None:
            tensors[f"{start}.{name}"] = value
            counts["tile" if name == "cls" else "patches"] = len(value)
    if rows:
        tensors[f"{start}.rows"] = capture.rows
    for i, layout in enumerate(capture.layouts):
        for name in _LAYOUT:
            value = getattr(layout, name)
            if value is not None:
                tensors[f"{start}.{i}.{name}"] = value
    return {
        "counts": counts,
        "layouts": [
            {"grids": [dataclasses.asdict(g) for g in layout.grids], "side": layout.side}
            for layout in capture.layouts
        ],
    }


def _join_captures(shown: Sequence[Packed], modality: str) -> Capture:
    start = f"{modality}.capture"
    first = {"rows": 0, "patches": 0, "tile": 0}
    layouts = []
    for p in shown:
        facts = p.facts["captures"][modality]
        layouts += [
            _layout(p.tensors, f"{start}.{i}", each, first)
            for i, each in enumerate(facts["layouts"])
        ]
        first = {name: first[name] + facts["counts"][name] for name in first}
    read: dict[str, Any] = {
        name: torch.cat([p.tensors[f"{start}.{name}"] for p in shown])
        for name in ("rows", *_READ)
        if f"{start}.{name}" in shown[0].tensors
    }
    # Where nothing looks at the projector's input, something empty stands for it.
    read.setdefault("rows", torch.zeros(0, 1))
    return Capture(modality, layouts, **read)


def _layout(
    tensors: Table[str, Tensor], start: str, facts: dict[str, Any], first: dict[str, int]
) -> Layout:
    found = {name: tensors.get(f"{start}.{name}") for name in _LAYOUT}
    shifted = {
        name: None if (value := found[name]) is None else value.cpu() + first[name]
        for name in first
    }
    side = facts["side"]
    return Layout(
        grids=tuple(Grid(**{k: _tuple(v) for k, v in g.items()}) for g in facts["grids"]),
        side=None if side is None else tuple(side),
        visual=_host(found["visual"]),
        weights=None if found["weights"] is None else found["weights"].cpu(),
        **shifted,  # type: ignore[arg-type]
    )


def _host(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.cpu()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
