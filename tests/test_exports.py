"""The public names: sorted, complete, real, and the same for people and for type checkers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foveate


def imported_for_type_checkers() -> dict[str, str]:
    """Name -> module of the imports under `if TYPE_CHECKING:` in foveate/__init__.py."""
    tree = ast.parse(Path(foveate.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
        if statement.module.startswith("foveate")
    }


def test_all_is_sorted_and_has_no_doubles() -> None:
    assert foveate.__all__ == sorted(set(foveate.__all__))


def test_all_lists_what_is_public() -> None:
    assert set(foveate.__all__) == set(foveate._PUBLIC)
    assert dir(foveate) == foveate.__all__


def test_type_checkers_see_the_same_names() -> None:
    assert imported_for_type_checkers() == foveate._PUBLIC


@pytest.mark.parametrize("name", foveate.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert (getattr(foveate, name).__doc__ or "").strip()


def test_a_method_is_found_by_its_class_name() -> None:
    from foveate.catalog import method_class

    assert foveate.Uniform is method_class("uniform")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'VisionZap'"):
        _ = foveate.VisionZap


def test_a_submodule_can_be_imported_from_the_package() -> None:
    from foveate import catalog

    assert catalog.__name__ == "foveate.catalog"


@pytest.mark.parametrize("first", ["foveate.Run", "importlib.import_module('foveate.attach.run')"])
def test_the_subpackage_does_not_hide_the_function(first: str) -> None:
    code = f"import foveate, importlib; {first}; assert foveate.attach.__name__ == 'attach'"
    subprocess.run([sys.executable, "-c", code + "; foveate.attach.__call__"], check=True)
