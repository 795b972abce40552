"""Conversations as a page, the full model's answers beside the compressed one's."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from foveate.errors import InputError, MissingDependency
from foveate.evaluation.settings import Setting

HERE = "127.0.0.1"
LARGEST_UPLOAD = "20mb"
_VISITORS = 8  # conversations whose caches are held at a time; the oldest is forgotten
_SCENES = 6
_LOOPBACK = (HERE, "localhost", "::1")
_EXPOSED = "Warning: whoever reaches {host}:{port} can use this model; there is no password."


def serve(
    model: Any,
    processor: Any,
    setting: Setting,
    pictures: Iterable[tuple[str, Image.Image]] = (),
    *,
    name: str = "",
    host: str | None = None,
    port: int = 7860,
    **options: Any,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model, processor: as loaded.
        setting: what the page begins with.
        pictures: (name, picture) of those to choose from, beside some drawn scenes.
        name: of the model, as the page shows it.
        host: address to listen on; this machine alone if None.
        port: to listen on.
        options: of `foveate.Chat`: turns, positions, max_new_tokens.

    Raises:
        MissingDependency: gradio is not installed.
        InputError: the port is taken, or the address is none of this machine's.
    """
    with running(
        model, processor, setting, pictures, name=name, host=host, port=port, **options
    ) as url:
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt), _ended_like_interrupted():
            threading.Event().wait()


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Let a request to end, as services get it, do what Ctrl-C does: uploads are deleted then."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def running(
    model: Any,
    processor: Any,
    setting: Setting,
    pictures: Iterable[tuple[str, Image.Image]] = (),
    *,
    name: str = "",
    host: str | None = None,
    port: int = 7860,
    **options: Any,
) -> Iterator[str]:
    """The same while a context lasts; its address."""
    require_gradio()
    from foveate.web import page
    from foveate.web.session import Engine, choices

    engine = Engine(model, processor, name=name, options=options)
    engine.warm_up(setting)
    if host is not None and host not in _LOOPBACK:
        print(_EXPOSED.format(host=host, port=port), file=sys.stderr)
    # What visitors upload is gone when the page is.
    with tempfile.TemporaryDirectory(prefix="foveate-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        made = page.build(engine, setting, choices(pictures, _SCENES))
        try:
            _, url, _ = made.launch(
                server_name=host or HERE,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=False,
                ssr_mode=False,
                max_file_size=LARGEST_UPLOAD,
                state_session_capacity=_VISITORS,
                footer_links=[],
                **page.LOOKS,
            )
        except OSError as error:
            raise InputError(
                f"Cannot listen on {host or HERE}:{port}: it is taken, or no address of this "
                "machine.\nGive another one with --port (and --host)."
            ) from error
        try:
            yield url
        finally:
            made.close(verbose=False)


def require_gradio() -> None:
    """Import gradio, its reports to its makers switched off."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingDependency("gradio", "The page", "web") from error
