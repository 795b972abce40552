"""The page itself: what is where, and which session method a click calls."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from foveate.errors import told
from foveate.evaluation.settings import Setting
from foveate.pictures import load_image
from foveate.web import view
from foveate.web.session import LONGEST_QUESTION, Choice, Engine, Session

_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_SUGGESTED = 3
_KEPT = 3600  # seconds for which files that a browser was sent stay on disk
_EVERY = 0.04  # seconds between two updates of a growing answer
LOOKS: dict[str, Any] = {
    "css": view.CSS,
    "theme": gr.themes.Default(primary_hue="teal", font=_FONT, font_mono=["monospace"]).set(
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400"
    ),
}


def known(session: Session | None) -> Session:
    """A visitor's session, while it is remembered."""
    if session is None:  # many others came since
        raise gr.Error("This conversation was forgotten. Reload the page.", print_exception=False)
    return session


def build(engine: Engine, setting: Setting, choices: Sequence[Choice]) -> gr.Blocks:
    """The page; `launch` it with `LOOKS`."""
    with gr.Blocks(
        title="foveate", analytics_enabled=False, fill_width=True, delete_cache=(_KEPT, _KEPT)
    ) as page:
        state = gr.State(None)
        gr.HTML(view.head(engine.name, engine.layers), elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=290):
                picture = gr.Image(
                    label="Picture", type="filepath", image_mode=None, height=250,
                    sources=["upload", "clipboard"], buttons=[], elem_id="picture",
                )  # fmt: skip
                gallery = gr.Gallery(
                    [choice.picture for choice in choices], label="Or one of these",
                    columns=6, object_fit="cover", buttons=[], allow_preview=False,
                    interactive=False, format="png", elem_id="choices",
                )  # fmt: skip
                with gr.Row():
                    method = gr.Dropdown(
                        engine.methods, value=setting.label, label="Method",
                        allow_custom_value=True, elem_id="method", min_width=140, scale=3,
                    )  # fmt: skip
                    keep = gr.Textbox(
                        "" if setting.keep is None else setting.budget, label="Keep",
                        placeholder="64 or 25%", elem_id="keep", min_width=90, scale=2,
                    )  # fmt: skip
                turns = gr.Radio(
                    [("the first", "first"), ("each anew", "each")], value=engine.turns,
                    label="Which question chooses the tokens", elem_id="turns",
                )  # fmt: skip
            with gr.Column(scale=11, min_width=420, elem_id="talk"):
                notice = gr.HTML("", elem_id="notice")
                log = gr.HTML("", elem_id="log")
                with gr.Row(elem_id="asking"):
                    question = gr.Textbox(
                        placeholder="Ask about the picture", show_label=False, container=False,
                        max_length=LONGEST_QUESTION, scale=8, elem_id="question", autofocus=True,
                    )  # fmt: skip
                    ask = gr.Button("Ask", variant="primary", size="md", min_width=64)
                    stop = gr.Button("Stop", size="md", min_width=64)
                    again = gr.Button("New", size="md", min_width=64)
                with gr.Row():
                    suggested = [
                        gr.Button(visible=False, size="sm", elem_classes="fv-suggested")
                        for _ in range(_SUGGESTED)
                    ]
            with gr.Column(scale=7, min_width=300):
                kept = gr.Image(
                    label="What is kept", type="pil", format="png", interactive=False,
                    buttons=["fullscreen"], height=390, elem_id="kept",
                )  # fmt: skip
                layer = gr.Slider(
                    0, engine.layers - 1, value=engine.layers - 1, step=1, label="Decoder layer",
                    buttons=[], elem_id="layer",
                )  # fmt: skip
                caption = gr.HTML("", elem_id="caption")

        visitors: weakref.WeakValueDictionary[str | None, Session] = weakref.WeakValueDictionary()
        drawn = [kept, caption]
        shown = [notice, log, *drawn]

        def draw(session: Session, at: int) -> dict[Any, Any]:
            return {kept: known(session).overlay(int(at)), caption: view.caption(session, int(at))}

        def everything(session: Session, at: int, message: str = "") -> dict[Any, Any]:
            return {notice: view.notice(message), log: view.log(session), **draw(session, at)}

        def suggestions(questions: Sequence[str]) -> dict[Any, Any]:
            texts = [*questions, *[""] * _SUGGESTED]
            return {
                button: gr.update(value=text, visible=bool(text))
                for button, text in zip(suggested, texts, strict=False)
            }

        def explained(act: Callable[[], Any]) -> str:
            """What went wrong in what a visitor wanted; empty if nothing did."""
            try:
                act()
            except Exception as error:
                return told(error)
            return ""

        def arrive(at: int, request: gr.Request) -> dict[Any, Any]:
            session = visitors[request.session_hash] = Session(engine, setting)
            begin = choices[0]
            session.show(begin.picture)
            return {
                state: session,
                picture: begin.picture,
                **suggestions(begin.questions),
                **everything(session, at),
            }

        def leave(request: gr.Request) -> None:
            if (session := visitors.pop(request.session_hash, None)) is not None:
                session.leave()

        def upload(session: Session, file: dict[str, Any] | None, at: int) -> dict[Any, Any]:
            known(session)
            message = explained(lambda: session.show(load_image(file["path"]) if file else None))
            if message:
                session.show(None)
            field = {picture: None} if message else {}
            return {**field, **suggestions(()), **everything(session, at, message)}

        def pick(session: Session, at: int, event: gr.SelectData) -> dict[Any, Any]:
            choice = choices[int(event.index)]
            known(session).show(choice.picture)
            return {
                picture: choice.picture,
                **suggestions(choice.questions),
                **everything(session, at),
            }

        def choose(session: Session, name: str, budget: str, way: str, at: int) -> dict[Any, Any]:
            known(session)
            message = explained(lambda: session.choose(name or "", budget or "", way))
            return everything(session, at, message)

        def answer(
            session: Session, text: str, name: str, budget: str, way: str, at: int
        ) -> Iterator[dict[Any, Any]]:
            known(session)
            yield {question: "", notice: ""}
            last, message = 0.0, ""
            try:
                session.choose(name or "", budget or "", way)
                with contextlib.closing(session.ask(text or "")) as answers:
                    for _ in answers:
                        if time.monotonic() - last > _EVERY:
                            last = time.monotonic()
                            yield {log: view.log(session)}
            except Exception as error:
                message = told(error)
            field = {question: text} if message else {}
            yield {**field, **everything(session, at, message)}

        def halt(session: Session) -> None:
            known(session).stop()

        def restart(session: Session, at: int) -> dict[Any, Any]:
            known(session).reset()
            return everything(session, at)

        # One call of the model at a time; what changes a session waits in the same line.
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        turn = {**quiet, "concurrency_id": "model", "concurrency_limit": 1}
        beside = {**quiet, "concurrency_id": "beside", "concurrency_limit": 4}
        page.load(arrive, [layer], [state, picture, *suggested, *shown], **turn)
        page.unload(leave)
        for event in (picture.upload, picture.clear):
            # Reading the file, and saying what is wrong with it, is ours.
            event(
                upload, [state, picture, layer], [picture, *suggested, *shown], preprocess=False,
                **turn,
            )  # fmt: skip
        gallery.select(pick, [state, layer], [picture, *suggested, *shown], **turn)
        for field in (method.change, keep.submit, keep.blur, turns.change):
            field(choose, [state, method, keep, turns, layer], shown, **turn)
        asking = [(ask.click, question), (question.submit, question)]
        for event, text in [*asking, *((button.click, button) for button in suggested)]:
            event(answer, [state, text, method, keep, turns, layer], [question, *shown], **turn)
        stop.click(halt, [state], None, **beside)
        again.click(restart, [state, layer], shown, **turn)
        layer.change(draw, [state, layer], drawn, trigger_mode="always_last", **beside)
    page.queue(max_size=64, api_open=False)
    return page
