"""Draws the pictures of the documentation with the shipped model.

    python docs/make_pictures.py

The page of `foveate chat --web` is photographed by the test that visits it:

    FOVEATE_SCREENSHOT=docs/pictures/chat-web.png python -m pytest -m slow tests/web/test_browser.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

import foveate
from foveate import drawing, reference
from foveate.prompting import conversation, model_inputs, new_words

PICTURES = Path(__file__).parent / "pictures"
KEEP = 32
README = ("visionzip", "tome", "divprune")
SCENE, SIDE = 0, 300
COMMAND = "foveate chat scene:0 -m visionzip -k 64"
TYPED = (
    "what colour is the topmost thing ?",
    "what size is the orange thing ?",
    "/method pyramiddrop 50%",
    "what colour is the topmost thing ?",
    "/method fastv 10%",
    "what colour is the topmost thing ?",
)


def readme() -> Image.Image:
    """A scene, what three methods keep of it, and what the model answers from that."""
    model, processor = reference.load()
    sample = next(reference.samples("test", 1, start=SCENE))
    question = sample.turns[0][0]
    inputs = model_inputs(processor, model, [conversation(processor, [question])], [[sample.image]])
    length = inputs["input_ids"].shape[1]

    def answer() -> str:
        return new_words(processor, model.generate(**inputs), length)[0]

    panels = [sample.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)]
    labels = [f'all 256 tokens: "{answer()}"']
    for name in README:
        with foveate.attach(model, name, keep=KEEP) as run:
            said = answer()
        drawn = drawing.draw(sample.image, run.items[0], title="", side=SIDE)
        panels.append(drawing.bare(drawn))
        labels.append(f'{name}, {run.report().entering} tokens: "{said}"')
    return drawing.sheet([drawing.sheet(panels, labels)], [question], columns=1)


def methods() -> Image.Image:
    """What every method keeps of one scene, those that the shipped model can serve."""
    from foveate import catalog
    from foveate.evaluation import from_reference, report
    from foveate.evaluation.settings import Setting

    settings = [Setting(name, KEEP) for name in catalog.names() if name != "trim"]
    model, processor = reference.load()
    ((_, picture),) = report.kept_pictures(model, processor, from_reference(1), settings, 1)
    return picture


def terminal() -> str:
    """A conversation in the terminal, as SVG; the first answer warms the model up."""
    from foveate.cli.loading import Source
    from foveate.cli.terminal import PROMPT, Terminal
    from foveate.evaluation.settings import Setting
    from foveate.pictures import load_image

    model, processor = Source("reference").load()
    setting, pictures = Setting("visionzip", 64), [("scene:0", load_image("scene:0"))]
    for _ in range(2):
        out = Console(record=True, file=io.StringIO(), width=114, highlight=False)
        out.print(f"[dim]$[/] {COMMAND}")
        talk = Terminal(model, processor, setting, pictures, out=out, turns="first")
        for line in TYPED:
            out.print(f"[bold]{PROMPT}{line}[/]")
            talk.run([line])
        out.print()  # the frame cuts the last line close
    # Rich's own frame fetches a font from another site; a fixed id keeps the file the same.
    frame = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    frame = frame.replace("Fira Code", "DejaVu Sans Mono")
    return out.export_svg(
        title="foveate chat", theme=SVG_EXPORT_THEME, code_format=frame, unique_id="chat"
    )


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    readme().save(PICTURES / "readme.png", optimize=True)
    methods().save(PICTURES / "methods.png", optimize=True)
    (PICTURES / "chat-terminal.svg").write_text(terminal())
