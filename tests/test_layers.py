"""Arrows only point up: a module imports what stands above it in this list, never below."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "foveate"

LAYERS = (
    "errors",
    "holding",
    "mapping",
    "attention",
    "compressor",
    "composition",
    "ops",
    "fingerprint",
    "catalog",  # names only: it imports a method when it is asked for
    "model_card",
    "saving",
    "learned",
    "predicting",
    "methods",
    "adapters",
    "card",
    "prompting",
    "attach",
    "fitting",
    "relevance",
    "reference",
    "pictures",
    "chat",
    "facts",
    "drawing",
    "evaluation",
    "training",
    "web",
    "cli",
    "__main__",
)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def dotted(path: Path) -> str:
    """foveate/methods/pool.py -> "methods.pool"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(source: str) -> Iterator[str]:
    """Every module of foveate that is imported, as "methods.pool"; `foveate` itself as ""."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            # `from foveate import x` may name a module, `from foveate.a import x` one inside it.
            inside = module == "foveate" or (PACKAGE / f"{module[8:].replace('.', '/')}").is_dir()
            found = [f"{module}.{alias.name}" if inside else module for alias in node.names]
        else:
            continue
        yield from (name[8:] for name in found if name == "foveate" or name.startswith("foveate."))


def wrong_arrows(importer: str, source: str) -> list[str]:
    """What `importer` must not import but does."""
    part = importer.split(".")[0]
    wrong = []
    for name in imports(source):
        target = name.split(".")[0]
        if target not in LAYERS:  # the package itself: __version__ and the public names
            wrong += [name] if part not in ("cli", "evaluation", "serving", "saving", "") else []
        elif LAYERS.index(target) > LAYERS.index(part):
            wrong.append(name)
        elif part == target == "methods" and name.split(".")[1:2] != importer.split(".")[1:2]:
            wrong.append(name)  # methods do not know each other
    return wrong


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_arrows_point_up(path: Path) -> None:
    assert wrong_arrows(dotted(path), path.read_text()) == []


def test_every_module_has_a_place_in_the_list() -> None:
    assert {dotted(path).split(".")[0] for path in modules()} <= set(LAYERS)


@pytest.mark.parametrize(
    ("importer", "source", "wrong"),
    [
        ("mapping", "from foveate.errors import MappingError", []),
        ("mapping", "from foveate.catalog import make", ["catalog"]),
        ("mapping", "def f():\n    import foveate.cli", ["cli"]),
        ("ops", "from foveate import attach", ["attach"]),
        ("compressor", "from foveate.methods.uniform import Uniform", ["methods.uniform"]),
        ("methods.tome", "from foveate.methods.uniform import Uniform", ["methods.uniform"]),
        ("methods.tome", "from foveate.adapters import llava", ["adapters.llava"]),
    ],
)
def test_a_wrong_arrow_is_seen(importer: str, source: str, wrong: list[str]) -> None:
    """Positive control: the tests above can fail."""
    assert wrong_arrows(importer, source) == wrong


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    declared = [*project["dependencies"], *(entry for extra in extras for entry in extra)]
    names = {entry.split(">")[0].split("[")[0].lower() for entry in declared}
    distribution = {"PIL": "pillow"}
    used = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    outside = used - set(sys.stdlib_module_names) - {"foveate"}
    assert {distribution.get(name, name) for name in outside} <= names
