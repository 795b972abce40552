"""What the page shows, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from foveate.evaluation.settings import Setting
from foveate.facts import Facts
from foveate.web.session import Said, Session, Turn

CSS = """
.gradio-container > .main { max-width: 1560px; padding: 18px 26px !important; }
#title .html-container, #log .html-container, #caption .html-container,
#notice .html-container { padding: 0 !important; }
#notice:not(:has(.fv-notice)) { display: none; }
#picture img { width: 100%; height: 100%; object-fit: contain; }
#choices .grid-wrap { min-height: 0 !important; height: auto !important; padding: 34px 10px 10px; }
#choices .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important;
  grid-auto-rows: auto !important; gap: 6px; height: auto; padding: 0; margin: 0; }
#choices .thumbnail-item { width: 100% !important; height: auto !important; aspect-ratio: 1;
  border-radius: 5px; }
#asking button { height: 42px; }
.fv-head { display: flex; align-items: baseline; gap: 14px; }
.fv-head b { font-size: 22px; letter-spacing: -0.01em; }
.fv-head span { color: var(--body-text-color-subdued); }
#talk { height: calc(100vh - 100px); min-height: 600px; flex-wrap: nowrap; }
#talk > * { flex-shrink: 0; }
#log { flex: 1 1 0; min-height: 0; }
#log .html-container, #log .prose { height: 100%; }
.fv-log { height: 100%; box-sizing: border-box; overflow-y: auto; display: flex;
  flex-direction: column-reverse; border: 1px solid var(--border-color-primary);
  border-radius: 8px; padding: 16px; background: var(--background-fill-primary); }
.fv-log::before { content: ""; flex: 1 1 auto; }
.fv-log:has(.fv-empty) { justify-content: center; align-items: center; }
.fv-log:has(.fv-empty)::before { display: none; }
.fv-turns { display: flex; flex-direction: column; gap: 22px; }
.fv-empty { max-width: 26em; text-align: center; line-height: 1.5;
  color: var(--body-text-color-subdued); }
.fv-asked { font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; }
.fv-pair { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.fv-said { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 14px;
  min-width: 0; display: flex; flex-direction: column; gap: 8px;
  background: var(--background-fill-secondary); }
.fv-said.fv-short { border-color: var(--primary-500); }
.fv-who { font-size: 12px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.fv-short .fv-who { color: var(--primary-700); font-weight: 600; }
.dark .fv-short .fv-who { color: var(--primary-300); }
.fv-text { white-space: pre-wrap; overflow-wrap: anywhere; flex: 1; min-height: 1.5em;
  font-size: 15px; }
.fv-text.fv-coming::after { content: "\\2588"; opacity: 0.35; }
.fv-text.fv-none { color: var(--body-text-color-subdued); }
.fv-facts { font-size: 12px; line-height: 1.4; font-variant-numeric: tabular-nums; }
.fv-facts div { display: flex; justify-content: space-between; gap: 10px; padding: 3px 0;
  border-top: 1px solid var(--border-color-primary); }
.fv-facts span:first-child { color: var(--body-text-color-subdued); }
.fv-facts span:last-child { text-align: right; }
.fv-notice { border-radius: 8px; padding: 10px 14px; white-space: pre-line; overflow-wrap: anywhere;
  color: #8a1c1c; background: #fdecec; border: 1px solid #f3b9b9; }
.dark .fv-notice { color: #ffd7d7; background: #4a1d1d; border-color: #7d3434; }
.fv-caption { font-size: 13px; line-height: 1.5; color: var(--body-text-color-subdued);
  padding: 2px 4px; }
.fv-caption b { color: var(--body-text-color); }
@media (max-width: 700px) { .fv-pair { grid-template-columns: 1fr; } #talk { height: auto; }
  #log { flex: none; height: 420px; } }
"""


def head(model: str, layers: int) -> str:
    """The title."""
    what = " with ".join([*([escape(model)] if model else []), f"{layers} decoder layers"])
    return f'<div class="fv-head"><b>foveate</b><span>{what}</span></div>'


def log(session: Session) -> str:
    """The conversation."""
    if not session.log:
        text = (
            "Choose a picture, or upload one, and ask."
            if session.picture is None
            else "Ask about the picture. Both models answer: the compressed one, and the full one."
        )
        return f'<div class="fv-log"><div class="fv-empty">{text}</div></div>'
    turns = "".join(_turn(turn, session.setting) for turn in session.log)
    return f'<div class="fv-log"><div class="fv-turns">{turns}</div></div>'


def _turn(turn: Turn, setting: Setting) -> str:
    short = _said(turn.short, f"{setting.label}, keep {setting.budget}", "fv-said fv-short")
    full = _said(turn.full or Said(), "full model", "fv-said", waits=turn.full is None)
    return (
        f'<div class="fv-turn"><p class="fv-asked">{escape(turn.question)}</p>'
        f'<div class="fv-pair">{short}{full}</div></div>'
    )


def _said(said: Said, who: str, kind: str, waits: bool = False) -> str:
    text, kind_of_text = said.text, ""
    if said.error:
        text, kind_of_text = f"({said.error})", " fv-none"
    elif said.facts is None and not waits:
        kind_of_text = " fv-coming"
    elif said.facts is not None and not text:
        text, kind_of_text = "(nothing)", " fv-none"
    rows = _rows(said.facts) if said.facts is not None else []
    lines = "".join(
        f"<div><span>{escape(name)}</span><span>{escape(value)}</span></div>"
        for name, value in rows
    )
    return (
        f'<div class="{kind}"><div class="fv-who">{escape(who)}</div>'
        f'<div class="fv-text{kind_of_text}">{escape(text)}</div>'
        f'<div class="fv-facts">{lines}</div></div>'
    )


def _rows(found: Facts) -> Sequence[tuple[str, str]]:
    tokens = "all" if found.entering is None else f"{found.entering} of {found.visual}"
    rows = [("visual tokens", tokens)]
    if found.average != found.entering:
        rows.append(("average over layers", f"{found.average:.4g}"))
    rows += [
        ("first token after", found.first),
        ("cache afterwards", found.held),
        ("tokens reused", found.cached.removesuffix(" tokens")),
    ]
    return rows


def caption(session: Session, layer: int) -> str:
    """What stands below the overlay."""
    kept = session.kept(layer)
    if kept is None:
        return '<div class="fv-caption">What is kept is drawn after the first answer.</div>'
    n, m = kept
    return (
        f'<div class="fv-caption"><b>Layer {layer}: {m} of {n} tokens.</b> Kept ones are clear, '
        "dropped ones faded. Tokens merged into one share a tint; the dot is where it lives.</div>"
    )


def notice(message: str) -> str:
    """What went wrong."""
    return f'<div class="fv-notice">{escape(message)}</div>' if message else ""
