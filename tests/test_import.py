"""`import foveate` is quick: it loads neither transformers nor torch nor a method."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("transformers", "torch", "foveate.methods", "foveate.adapters", "foveate.compressor")


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(run.stdout.split())


def test_importing_foveate_loads_nothing_heavy() -> None:
    assert loaded_by("import foveate").isdisjoint(HEAVY)


@pytest.mark.parametrize("statement", ["import foveate; foveate.names()", "import foveate.catalog"])
def test_names_are_listed_without_loading_torch(statement: str) -> None:
    assert loaded_by(statement).isdisjoint(HEAVY)


def test_the_probe_sees_what_is_loaded() -> None:
    """Positive control: the tests above can fail."""
    assert {"torch", "foveate.compressor"} <= loaded_by("import foveate; foveate.Compressor")
