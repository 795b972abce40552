"""The page, served by a process of its own: what gradio leaves open is not pytest's to find."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

_START = 240.0  # seconds

Serve = Callable[..., tuple[str, subprocess.Popen[str]]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Starts `foveate chat --web`; (address, process)."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: the extra 'web'")
    started = []

    def start(*arguments: str) -> tuple[str, subprocess.Popen[str]]:
        command = [sys.executable, "-m", "foveate", "chat", "--web", *arguments]
        command += ["--port", str(free_port())]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        until = time.monotonic() + _START
        while time.monotonic() < until and process.poll() is None:
            if select.select([process.stdout], [], [], 1.0)[0]:
                line = process.stdout.readline()
                if line.startswith("http"):
                    return line.split()[0], process
        process.kill()
        raise AssertionError(f"no page: {process.communicate()}")

    yield start
    ended = []
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        ended.append((*process.communicate(timeout=60), process.returncode))
    for out, err, status in ended:
        assert status == 0, err
        assert "Traceback" not in out + err, err
