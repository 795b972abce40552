"""The page as it is served: to this machine only, nothing fetched, one model call at a time."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from foveate.cli import main

# What the page is made of, told by a process of its own.
_TELL = """
import json, os
from foveate import reference, web
web.require_gradio()
from gradio import analytics
from foveate.evaluation.settings import Setting
from foveate.web import page
from foveate.web.session import Engine, scenes
made = page.build(Engine(*reference.load()), Setting("visionzip", 64), scenes(range(2)))
print(json.dumps({
    "functions": [
        [each.name, each.concurrency_id, each.concurrency_limit, each.api_visibility]
        for each in made.fns.values()
    ],
    "analytics": [made.analytics_enabled, analytics.analytics_enabled()],
    "fonts": page.LOOKS["theme"]._stylesheets,
    "css": page.LOOKS["css"],
}))
"""


def test_without_gradio_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["chat", "scene:0", "--web"]) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "The page needs the package 'gradio'" in err
    assert "pip install 'foveate[web]'" in err


@pytest.mark.slow
def test_what_the_page_is_made_of(serve: Any) -> None:
    done = subprocess.run([sys.executable, "-c", _TELL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["functions"]) > 10
    for name, line, limit, visibility in told["functions"]:
        if name == "leave":  # it waits for the model by itself
            continue
        aside = name in ("draw", "halt")  # these run no model
        assert (line, limit) == (("beside", 4) if aside else ("model", 1))
        assert visibility == "private"
    assert told["analytics"] == [False, False]
    assert told["fonts"] == [] and "url(" not in told["css"] and "http" not in told["css"]


@pytest.mark.slow
def test_what_is_served(serve: Any, tmp_path: Path) -> None:
    url, process = serve("scene:1", "-k", "64")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
    text = urllib.request.urlopen(url).read().decode()
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', text)
    assert not [each for each in loaded if not each.startswith(url)]
    assert uploaded(url, 1000) and not uploaded(url, 21_000_000)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{url}gradio_api/file={secret}")
    # The same port again.
    port = url.split(":")[-1].strip("/")
    command = [sys.executable, "-m", "foveate", "chat", "--web", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"Cannot listen on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr
    assert process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_uploads_are_gone_with_the_page(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    url, process = serve("scene:1", "-k", "64")
    assert uploaded(url, 1000)
    assert list(tmp_path.glob("foveate-*/*"))
    process.send_signal(how)
    process.wait(60)
    assert not list(tmp_path.glob("foveate-*"))


def uploaded(url: str, size: int) -> bool:
    """Whether a file of so many bytes is taken."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + bytes(size) + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{url}gradio_api/upload", body, headers)
    try:
        status = urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        status = error.code
    return {200: True, 413: False}[status]


@pytest.mark.slow
def test_other_machines_are_let_in_only_if_asked_for(serve: Any) -> None:
    _, process = serve("-k", "64", "--host", "0.0.0.0")
    process.terminate()
    assert "there is no password" in process.communicate()[1]
    process.returncode = 0  # what was asked of it
