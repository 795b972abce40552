"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

PyPI's torchvision for Linux is a CUDA build. Beside a CPU-only torch its operators stay unloaded,
and `import torchvision` fails on the first one that it decorates ("operator torchvision::nms does
not exist"). Declaring the two schemas before the import is enough: image processing uses neither.

This belongs to the development environment, not to the package: `make env` puts a .pth file into
the virtual environment that imports this module when Python starts. It acts on
`import torchvision` only.
"""

from __future__ import annotations

import sys
from typing import Any

_kept: list[object] = []  # a Library takes its schemas back when it is collected


class _Declare:
    """Finds nothing; declares the schemas on the first `import torchvision`, then steps aside."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()


def _declare() -> None:
    from importlib.util import find_spec
    from pathlib import Path

    import torch

    spec = find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return
    if "+cu" in Path(spec.origin).with_name("version.py").read_text():
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


if not any(type(finder).__name__ == "_Declare" for finder in sys.meta_path):
    sys.meta_path.insert(0, _Declare())
