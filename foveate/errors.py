"""Every error that foveate raises on purpose.

    FoveateError
    ├── UnknownName          (KeyError)    a method, preset, model or split that does not exist
    ├── BudgetError          (ValueError)  a `keep` that cannot be served
    ├── MappingError         (ValueError)  a P whose parts do not fit together
    ├── UnsupportedModel     (TypeError)   no adapter knows this model class
    ├── StageNotAvailable    (ValueError)  this method cannot act on, or read from, this model
    ├── AttachError          (RuntimeError) attached twice, a prefill in chunks ...
    ├── SavedFileError       (ValueError)  a saved file of another format, method or model
    ├── InputError           (ValueError)  an image or data file that cannot be used
    └── MissingDependency    (ImportError) an optional package is needed and absent

A message says what was expected, what arrived and what to do, in at most four lines; the facts
are attributes of the exception as well.
"""

from __future__ import annotations

from collections.abc import Iterable


class FoveateError(Exception):
    """Base of all errors raised on purpose by foveate."""

    def __str__(self) -> str:
        # KeyError's own __str__ is repr(); a sentence for a person must not arrive quoted.
        return str(self.args[0]) if self.args else ""


class UnknownName(FoveateError, KeyError):
    """A name that is not in the table it was looked up in.

    Attributes:
        kind: what was looked up, for example ``"method"``.
        name: the name that was not found.
        possibilities: every name that exists, sorted.
    """

    def __init__(self, kind: str, name: str, possibilities: Iterable[str], hint: str = "") -> None:
        self.kind, self.name = kind, name
        self.possibilities = sorted(possibilities)
        import difflib  # only needed on the error path

        near = difflib.get_close_matches(name, self.possibilities, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        known = hint or f"Known: {', '.join(self.possibilities) or 'none'}."
        super().__init__(f"Unknown {kind} {name!r}.{guess} {known}")


class BudgetError(FoveateError, ValueError):
    """A budget that is out of range, or that a method cannot reach."""


class MappingError(FoveateError, ValueError):
    """A mapping whose indices, weights or anchors contradict each other."""


class UnsupportedModel(FoveateError, TypeError):
    """No adapter for this model class.

    Attributes:
        model_type: the ``config.model_type`` that arrived.
        supported: the model types that have an adapter.
    """

    def __init__(self, name: str, model_type: str, supported: Iterable[str]) -> None:
        self.model_type, self.supported = model_type, sorted(supported)
        super().__init__(
            f"No adapter for {name} (model_type {model_type!r}).\n"
            f"Supported: {', '.join(self.supported)}.\n"
            "Writing one is about 60 lines: docs/adding-a-model.md."
        )


class StageNotAvailable(FoveateError, ValueError):
    """The method needs a stage, or something to read, that this model does not offer."""


class AttachError(FoveateError, RuntimeError):
    """The compressor cannot be attached, or cannot act on this forward pass."""


class SavedFileError(FoveateError, ValueError):
    """A saved compressor or mapping that this version, method or model cannot use."""


class InputError(FoveateError, ValueError):
    """An image, question or data file that cannot be used."""


class MissingDependency(FoveateError, ImportError):
    """An optional package is needed for this and is not installed."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.\n"
            f"Install it with: pip install 'foveate[{extra}]'"
        )


def told(error: Exception) -> str:
    """What to say to somebody who goes on after an error, in at most four lines."""
    if isinstance(error, FoveateError):
        return str(error)
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        return "The device has no memory left for this.\nBegin again, or keep fewer tokens."
    lines = str(error).strip().splitlines()
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    return f"The model or the method failed{where}:\n{kind}: {lines[0] if lines else ''}"
