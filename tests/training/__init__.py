"""Tests of the training."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

# Without this argument nothing can be kept between epochs, and `Teacher` says so.
TAKES_FEATURES = (
    "mm_encoder_outputs"
    in inspect.signature(transformers.LlavaForConditionalGeneration.forward).parameters
)
needs_features = pytest.mark.skipif(
    not TAKES_FEATURES, reason="this transformers release takes no encoded pictures"
)


def launched(command: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """`foveate ...` in processes of its own, as `torchrun` starts several."""
    several = f"-m torch.distributed.run --standalone --nproc-per-node={processes}"
    launch = several if processes > 1 else ""
    found = subprocess.run(
        [sys.executable, *launch.split(), "-m", "foveate", *command.split()],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found
