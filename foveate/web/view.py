"""What the page shows, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from foveate.evaluation.settings import Setting
from foveate.facts import Facts
from foveate.web.session import Said, Session, Turn

CSS = """
.gradio-container { max-width: 1480px !important; padding: 14px 22px !important; }
.fv-head { display: flex; align-items: baseline; gap: 14px; margin: 0; }
.fv-head b { font-size: 21px; letter-spacing: -0.01em; }
.fv-head span { color: var(--body-text-color-subdued); }
.fv-log { height: 560px; overflow-y: auto; display: flex; flex-direction: column-reverse;
  border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 14px;
  background: var(--background-fill-primary); }
.fv-log > div { display: flex; flex-direction: column; gap: 20px; }
.fv-log .fv-empty { margin: auto; max-width: 30em; text-align: center; line-height: 1.5;
  color: var(--body-text-color-subdued); }
.fv-asked { font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; }
.fv-pair { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
.fv-said { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 12px;
  min-width: 0; display: flex; flex-direction: column; gap: 6px;
  background: var(--background-fill-secondary); }
.fv-said.fv-short { border-color: var(--primary-500); }
.fv-who { font-size: 12px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.fv-short .fv-who { color: var(--primary-700); font-weight: 600; }
.dark .fv-short .fv-who { color: var(--primary-300); }
.fv-text { white-space: pre-wrap; overflow-wrap: anywhere; flex: 1; min-height: 1.5em; }
.fv-text.fv-coming::after { content: "\\2588"; opacity: 0.35; }
.fv-said table { width: 100%; font-size: 12px; border-collapse: collapse; margin: 2px 0 0;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.fv-said td { padding: 2px 0; border: 0; border-top: 1px solid var(--border-color-primary); }
.fv-said td + td { text-align: right; color: var(--body-text-color); }
.fv-notice { border-radius: 8px; padding: 9px 12px; white-space: pre-line; overflow-wrap: anywhere;
  color: #8a1c1c; background: #fdecec; border: 1px solid #f3b9b9; }
.dark .fv-notice { color: #ffd7d7; background: #4a1d1d; border-color: #7d3434; }
.fv-caption { font-size: 13px; line-height: 1.45; color: var(--body-text-color-subdued); }
.fv-caption b { color: var(--body-text-color); }
@media (max-width: 700px) { .fv-pair { grid-template-columns: 1fr; } }
"""


def head(model: str, layers: int) -> str:
    """The title."""
    of = f"{escape(model)}, {layers} decoder layers" if model else f"{layers} decoder layers"
    return f'<div class="fv-head"><b>foveate</b><span>{of}</span></div>'


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
    return f'<div class="fv-log"><div>{turns}</div></div>'


def _turn(turn: Turn, setting: Setting) -> str:
    short = _said(turn.short, f"{setting.label}, keep {setting.budget}", "fv-said fv-short")
    full = _said(turn.full or Said(), "full model", "fv-said", waits=turn.full is None)
    return (
        f'<div class="fv-turn"><p class="fv-asked">{escape(turn.question)}</p>'
        f'<div class="fv-pair">{short}{full}</div></div>'
    )


def _said(said: Said, who: str, kind: str, waits: bool = False) -> str:
    coming = "" if said.facts or said.error or waits else " fv-coming"
    text = f"({said.error})" if said.error else said.text
    if said.facts is not None and not text:
        text = "(nothing)"
    rows = _rows(said.facts) if said.facts is not None else []
    table = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
    return (
        f'<div class="{kind}"><div class="fv-who">{escape(who)}</div>'
        f'<div class="fv-text{coming}">{escape(text)}</div>'
        f"{f'<table>{table}</table>' if table else ''}</div>"
    )


def _rows(found: Facts) -> Sequence[tuple[str, str]]:
    tokens = "all" if found.entering is None else f"{found.entering} of {found.visual}"
    rows = [("visual tokens", tokens)]
    if found.average != found.entering:
        rows.append(("average over layers", f"{found.average:.4g}"))
    rows += [
        ("cache", found.held),
        ("first token", found.first),
        ("from the cache", found.cached),
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
