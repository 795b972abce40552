"""Local checkpoints of three families, made once for all tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import checkpoints


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a family's checkpoint."""
    made: dict[str, Path] = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = checkpoints.save(family, tmp_path_factory.mktemp(family))
        return str(made[family])

    return folder
