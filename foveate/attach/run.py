"""`attach`: a compressor on a model, and what the run measured."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, cast

import torch
from torch import nn

from foveate import catalog
from foveate.adapters import adapter_for
from foveate.attach.capture import Capture
from foveate.attach.decision import Decision
from foveate.attach.decoder import Decoder
from foveate.attach.encoder import Encoder
from foveate.attach.forward import Item, Pass
from foveate.attach.prompt import Template
from foveate.compressor import (
    Compressor,
    Reads,
    Stage,
    TowerMethod,
    check_keep,
    with_preset,
)
from foveate.errors import AttachError, BudgetError, UnknownName
from foveate.mapping import Mapping

POSITIONS = ("original", "reindex")
_MARK = "_foveate_run"
# What transformers' models call the pictures themselves.
_PIXELS = frozenset({"pixel_values", "pixel_values_images", "pixel_values_videos"})


@dataclasses.dataclass(frozen=True)
class Report:
    """What an attached run has measured, over all prefills with pictures so far.

    Attributes:
        images: pictures and videos seen.
        visual: their visual slots before any compression.
        entering: visual tokens that entered decoder layer 0.
        average: visual tokens averaged over the decoder layers that ran.
        specials: newline, separator and CLS placeholders, which stay and are not counted above.
        layers: decoder layers.
        decision_seconds: host time spent finding and applying P, summed over prefills.
        prefill_seconds: host time of the language model's prefills, decisions included.
        kv_bytes: bytes of keys and values after the last prefill; 0 without a cache.
        kv_bytes_full: bytes that the same prompt takes uncompressed.
    """

    images: int
    visual: int
    entering: int
    average: float
    specials: int
    layers: int
    decision_seconds: float
    prefill_seconds: float
    kv_bytes: int
    kv_bytes_full: int

    def __str__(self) -> str:
        if not self.images:
            return "no pictures seen yet"
        per = self.images
        lines = [
            f"{self.visual / per:g} -> {self.entering / per:g} visual tokens "
            f"({100 * self.entering / self.visual:.1f} %) entering the LLM, "
            f"{self.average / per:g} averaged over {self.layers} layers; "
            f"{per} picture{'s' if per > 1 else ''}"
        ]
        if self.specials:
            lines[0] += f", {self.specials / per:g} newline or separator tokens each"
        if self.kv_bytes:
            lines.append(
                f"KV cache after prefill {readable_bytes(self.kv_bytes)} instead of "
                f"{readable_bytes(self.kv_bytes_full)}"
            )
        lines.append(
            f"deciding took {1e3 * self.decision_seconds:.1f} ms of "
            f"{1e3 * self.prefill_seconds:.1f} ms prefill"
        )
        return "\n".join(lines)


def readable_bytes(count: int) -> str:
    """With a unit: 84 KiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}"


class Run:
    """A compressor attached to a model; a context manager, or until `detach()`.

    Attributes:
        model: the model.
        method: the compressor.
        keep, positions: as attached.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Compressor,
        *,
        keep: int | float | None,
        positions: str,
        processor: Any = None,
        encoded: Encoded | None = None,
        recorded: Sequence[Sequence[Mapping]] | None = None,
        force: bool = False,
    ) -> None:
        self.model, self.method, self.keep, self.positions = model, method, keep, positions
        self._acts = keep != 1.0 or isinstance(keep, int) or force
        if self._acts:
            self.method = method = method.fitted(model)
        self._adapter = adapter_for(model)
        template = None if processor is None else Template(processor)
        learned = [p for p in method.parts if p.trainable and p.prompt_aware]
        if template is None and learned and self._acts:
            warnings.warn(
                f"{type(learned[0]).__name__} learned from questions alone, and without the "
                "processor it is told the chat\ntemplate's tokens and earlier turns as well. Pass "
                "it: foveate.attach(..., processor=processor).",
                stacklevel=3,
            )
        decision = Decision(
            self._adapter,
            method,
            keep=keep,
            positions=positions,
            template=template,
            recorded=recorded,
        )
        first = method.parts[0]
        tower = cast(TowerMethod, first) if first.stage in (Stage.IMAGE, Stage.ENCODER) else None
        self._encoder = Encoder(self._adapter, decision.reads, tower, decision.first_count)
        self._decoder = Decoder(
            self._adapter, decision, self._encoder, on_prefill=self._count, force=force
        )
        if encoded is not None:
            self._encoder.captures = list(encoded.captures)
        self._stack: contextlib.ExitStack | None = None
        self._seen = {"images": 0, "visual": 0, "entering": 0, "specials": 0}
        self._average = self._decision = self._prefill = 0.0
        self._kv = (0, 0)

    # ------------------------------------------------------------------ life

    def attach(self) -> Run:
        """Put everything on the model (done by `foveate.attach`)."""
        if _MARK in self.model.__dict__:
            raise AttachError(
                "A compressor is attached to this model already.\n"
                "Detach it first, or chain methods instead of attaching twice."
            )
        self._stack = contextlib.ExitStack()
        self.model.__dict__[_MARK] = self
        self._stack.callback(self.model.__dict__.pop, _MARK, None)
        if self._acts:
            self._stack.enter_context(self._encoder.installed())
            self._stack.enter_context(self._decoder.installed())
        return self

    def detach(self) -> None:
        """Take everything off again; the model is as it was. Harmless if done twice."""
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    # ------------------------------------------------------------------ reading

    @property
    def items(self) -> list[Item]:
        """The pictures of the last prefill and their mappings."""
        return self._decoder.items

    def _count(self, now: Pass) -> None:
        layers = len(self._adapter.decoder_layers)
        for item in self.items:
            self._seen["images"] += 1
            self._seen["visual"] += item.n
            self._seen["entering"] += item.entering
            self._seen["specials"] += item.specials
            self._average += item.average(layers)
        self._decision += now.decision_seconds
        self._prefill += now.prefill_seconds
        self._kv = _kv_bytes(now)

    def report(self) -> Report:
        """What was measured so far."""
        return Report(
            **self._seen,
            average=self._average,
            layers=len(self._adapter.decoder_layers),
            decision_seconds=self._decision,
            prefill_seconds=self._prefill,
            kv_bytes=self._kv[0],
            kv_bytes_full=self._kv[1],
        )

    def __str__(self) -> str:
        name = catalog.name_of(self.method)
        if not self._acts:
            return f"{name}: keep=1.0, the untouched model"
        return f"{name}: {self.report()}"

    def __repr__(self) -> str:
        state = "attached" if self._stack is not None else "detached"
        return f"Run({self.method!r}, keep={self.keep}, positions={self.positions!r}, {state})"


def _kv_bytes(now: Pass) -> tuple[int, int]:
    """(bytes held, bytes of the same prompt uncompressed) of a pass's cache."""
    if now.cache is None or now.tables is None:
        return 0, 0
    held = full = 0
    for index, layer in enumerate(now.cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or not keys.numel():
            continue
        size = keys.nbytes + values.nbytes
        held += size
        segment = now.tables.segment(index)
        if segment is None or getattr(layer, "is_sliding", False):
            full += size
        else:
            full += size * now.tables.seen // segment.length(now.tables.seen)
    return held, full


def attach(
    model: nn.Module,
    method: str | Compressor,
    *,
    keep: int | float | None = None,
    preset: str | None = None,
    positions: str | None = None,
    processor: Any = None,
    encoded: Encoded | None = None,
    _recorded: Sequence[Sequence[Mapping]] | None = None,
    _force: bool = False,
    **fields: Any,
) -> Run:
    """Compress the visual tokens of every picture that `model` sees from now on.

        with foveate.attach(model, "visionzip", keep=64) as run:
            out = model.generate(**inputs)
        print(run)

    Args:
        model: a Hugging Face vision-language model of a supported family.
        method: a catalogued name or a compressor.
        keep: tokens kept of each image or video (int), or the fraction kept (float in (0, 1]);
            for methods that drop between decoder layers, the average over executed layers.
            1.0 leaves the model untouched.
        preset: a published setting of the method instead of `keep`: the authors' count, order
            and positions. `foveate show METHOD` lists them.
        positions: ``"original"`` (kept tokens keep their position ids; the default) or
            ``"reindex"`` (contiguous ids, as several authors' code does).
        processor: the model's processor; lets methods that read the question leave out the chat
            template's tokens and earlier turns, and read it as a string. Those that learned from
            questions warn without it.
        encoded: features computed once by `encode`, to be shared between settings.
        fields: fields of the method when it is given by name.

    Returns:
        A context manager that is attached already; `detach()` ends it as well.

    Raises:
        UnknownName: no such method, preset or field.
        UnsupportedModel: no adapter for this model.
        StageNotAvailable: the method needs what this model cannot give.
        SavedFileError: a learned method without weights for this model.
        BudgetError: `keep` is out of range, or neither `keep` nor `preset` was given.
        AttachError: a compressor is attached already.
    """
    if keep is not None:
        check_keep(keep)
    order = "original"
    if preset is not None:
        cls = catalog.method_class(method) if isinstance(method, str) else type(method)
        method, preset_keep, order = with_preset(cls, preset, **fields)
        if keep is not None:
            raise BudgetError(
                f"preset={preset!r} states its own budget; keep={keep} was given as well.\n"
                "Give one of them."
            )
        keep = preset_keep
    elif isinstance(method, str):
        method = catalog.make(method, **fields)
    stated = preset is None and isinstance(method, Compressor) and method.states_budget
    if stated and keep is not None:
        raise BudgetError(
            f"{method} states its own budget; keep={keep} was given as well.\nGive one of them."
        )
    if keep is None and preset is None and not stated and not _force:
        raise BudgetError(
            "A budget is needed: keep=64 (tokens of each image), keep=0.25 (a quarter of them),\n"
            "or preset=... for a published setting."
        )
    positions = order if positions is None else positions
    if positions not in POSITIONS:
        raise UnknownName("positions", positions, POSITIONS)
    run = Run(
        model,
        method,
        keep=keep,
        positions=positions,
        processor=processor,
        encoded=encoded,
        recorded=_recorded,
        force=_force,
    )
    return run.attach()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Visual features computed once, for several settings.

    Attributes:
        inputs: what to pass to the model instead of the original inputs.
        captures: what was read while encoding.
        replaced: names of the original inputs that the features stand for.
    """

    inputs: dict[str, Any]
    captures: tuple[Capture, ...]
    replaced: frozenset[str] = frozenset()

    def with_text(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Another prompt about the same pictures, as what to pass to the model."""
        added = {k: v for k, v in self.inputs.items() if k not in inputs}
        return {k: v for k, v in inputs.items() if k not in self.replaced} | added


@torch.no_grad()
def encode(
    model: nn.Module, inputs: dict[str, Any], reads: frozenset[Reads] = frozenset()
) -> Encoded:
    """Run the vision side once, so that several settings can share it.

        shared = encode(model, inputs, reads)
        with foveate.attach(model, "visionzip", keep=64, encoded=shared):
            model.generate(**shared.inputs)

    Methods that change the tower (stages `image` and `encoder`) cannot share: give them the
    original inputs. With a transformers release that takes no encoded features, `inputs` comes
    back as it is and nothing is shared.
    """
    supports = getattr(model, "_supports_mm_encoder_outputs", None)
    if supports is None or not supports():
        return Encoded(dict(inputs), ())
    adapter = adapter_for(model)
    encoder = Encoder(adapter, reads)
    with encoder.installed():
        found = model._prepare_multimodal_encoder_kwargs_for_generation(dict(inputs))  # type: ignore[operator]
    # Sizes and grids stay: position ids are made of them before anything else.
    replaced = frozenset(inputs) & _PIXELS
    rest = {k: v for k, v in inputs.items() if k not in replaced}
    rest["mm_encoder_outputs"] = found["mm_encoder_outputs"]
    return Encoded(rest, tuple(encoder.captures), replaced)
