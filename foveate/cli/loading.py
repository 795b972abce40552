"""A model and its processor from whatever `--model` names, and the Python lines that load them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from foveate import reference
from foveate.cli.output import call
from foveate.errors import InputError, MissingDependency, UnknownName

_DTYPES = ("float32", "bfloat16", "float16", "auto")
_EXPECTED = (
    f"Expected {', '.join(reference.NAMES)}, a Hub id, or a folder with a checkpoint and its "
    "processor."
)


@dataclasses.dataclass(frozen=True)
class Source:
    """What the user asked for.

    Attributes:
        model: name of a shipped model, Hub id or folder.
        revision, dtype, device_map, attn: as transformers takes them; None leaves its default.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device_map: str | None = None
    attn: str | None = None

    @property
    def path(self) -> str:
        """Folder or Hub id."""
        return str(reference.path(self.model)) if self.model in reference.NAMES else self.model

    @property
    def _options(self) -> dict[str, Any]:
        # The shipped models are stored in half precision, which most CPUs compute slowly.
        shipped = self.model in reference.NAMES and self.dtype == "auto"
        return {
            "dtype": "float32" if shipped else self.dtype,
            "revision": self.revision,
            "device_map": self.device_map,
            "attn_implementation": self.attn,
        }

    def load(self) -> tuple[Any, Any]:
        """(model in evaluation mode, processor).

        Raises:
            InputError: transformers cannot load it; the message is its own first line.
            UnknownName: no such dtype.
        """
        if self.dtype not in _DTYPES:
            raise UnknownName("dtype", self.dtype, _DTYPES)
        if self.path.startswith(("/", ".", "~")) and not Path(self.path).is_dir():
            raise InputError(f"No folder {self.path}.\n{_EXPECTED}")
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        options = {key: value for key, value in self._options.items() if value is not None}
        try:
            model = AutoModelForImageTextToText.from_pretrained(self.path, **options)
            processor = AutoProcessor.from_pretrained(self.path, revision=self.revision)
        except ImportError as error:
            # Its processors and transformers' own message know no extra of ours.
            if "torchvision" not in str(error).lower():
                raise
            raise MissingDependency(
                "torchvision", f"The processor of {self.model!r}", "vision"
            ) from error
        except (OSError, ValueError, KeyError) as error:
            local = " (a folder)" if Path(self.path).is_dir() else ""
            raise InputError(
                f"Cannot load {self.model!r}{local}: {_first_line(error)}\n{_EXPECTED}"
            ) from error
        if not hasattr(processor, "tokenizer"):
            raise InputError(
                f"{self.model!r} comes without a processor for pictures and text.\n"
                "Save the processor of its base model into the same folder."
            )
        return model.eval(), processor

    @property
    def python(self) -> list[str]:
        """The lines that load it."""
        options = self._options
        where = f"{self.path!r}"
        lines = ["import foveate"]
        if self.model in reference.NAMES:
            lines.append("from foveate import reference")
            where = f"reference.path({self.model!r})"
        lines += [
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "model = " + call("AutoModelForImageTextToText.from_pretrained", where, **options),
            "processor = "
            + call("AutoProcessor.from_pretrained", where, revision=options["revision"]),
        ]
        return lines


# What the printed lines begin with where there are several models.
_LOAD = (
    "from transformers import AutoModelForImageTextToText, AutoProcessor",
    "def load(folder, revision=None, **options):",
    "    model = AutoModelForImageTextToText.from_pretrained(folder, revision=revision, **options)",
    "    return model.eval(), AutoProcessor.from_pretrained(folder, revision=revision)",
)


def load_lines(sources: Table[str, Source]) -> list[str]:
    """The lines that make a table of what loads each of several models."""
    calls = [
        f"    {name!r}: lambda: {call('load', repr(each.path), **each._options)},"
        for name, each in sources.items()
    ]
    return [*_LOAD, "models = {", *calls, "}"]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
