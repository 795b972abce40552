"""What every test stands on: checked shapes, fixed seeds, no network, loud deprecations."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before transformers and huggingface_hub read them; also for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent / "torchvision_shim"))
import jaxtyping
import torch
import torchvision_shim  # noqa: F401  (what a CUDA build of torchvision lacks on a CPU)
from hypothesis import settings
from jaxtyping import install_import_hook

# Every annotated signature and dataclass of foveate is checked, shapes included, in tests only.
assert "foveate" not in sys.modules, "foveate was imported before its signatures could be checked"
install_import_hook("foveate", "beartype.beartype")

torch.set_num_threads(1)

# Hypothesis counts every example's time, and the first one imports and checks signatures. A change
# is judged by the same examples wherever it is tested; `--hypothesis-profile search` tries others.
settings.register_profile("search", deadline=None, max_examples=1000)
settings.register_profile("foveate", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("foveate")


class DeprecationLogged(AssertionError):
    """transformers announces most of its deprecations as log lines, not as warnings."""


class _Deprecations(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if any(word in text.lower() for word in ("deprecat", "will be removed")):
            raise DeprecationLogged(f"transformers says: {text}")


@pytest.fixture(autouse=True, scope="session")
def _deprecations_raise() -> Iterator[None]:
    handler = _Deprecations(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Signatures unchecked, as they are for users: the library's own checks must answer."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
