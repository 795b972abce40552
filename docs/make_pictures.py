"""Draws the pictures of the documentation with the shipped model.

    python docs/make_pictures.py

The page of `foveate chat --web` is photographed by the test that visits it:

    FOVEATE_SCREENSHOT=docs/pictures/chat-web.png python -m pytest -m slow tests/web/test_browser.py
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

import foveate
from foveate import drawing, reference
from foveate.compressor import Stage
from foveate.prompting import conversation, model_inputs, new_words

PICTURES = Path(__file__).parent / "pictures"
KEEP = 32
KEEP_INSIDE = 128  # on average: methods between decoder layers cannot reach fewer here
README = ("visionzip", "divprune", "cover")
SCENE, SIDE = 0, 300
COMMAND = "foveate chat scene:0 -m visionzip -k 64"
TYPED = (
    "what colour is the topmost thing ?",
    "what size is the purple thing ?",
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

    settings = [
        Setting(name, KEEP_INSIDE if catalog.method_class(name).stage == Stage.DECODER else KEEP)
        for name in catalog.names()
        if name != "trim" and not catalog.method_class(name).trainable
    ]
    model, processor = reference.load()
    ((_, picture),) = report.kept_pictures(model, processor, from_reference(1), settings, 1)
    return picture


def scenes(world: str = "first", count: int = 10) -> Image.Image:
    """Scenes of the test split, each above its three questions and answers."""
    samples = reference.samples("test", count, world=world)
    return _with_questions([(each.image, each.turns) for each in samples], columns=5, side=256)


def tiles() -> Image.Image:
    """Larger scenes, of which a small model sees an overview and tiles."""
    samples = reference.tiled_samples("test", 4)
    return _with_questions([(each.image, each.turns) for each in samples], columns=4, side=320)


def clips(frames: int = 8) -> Image.Image:
    """Clips, one a row, with their questions."""
    rows = []
    for each in reference.clip_samples("test", 3, frames=frames):
        strip = Image.new("RGB", (frames * 136 - 8, 128), "white")
        for place, frame in enumerate(each.frames):
            strip.paste(frame.resize((128, 128), Image.Resampling.NEAREST), (place * 136, 0))
        rows.append((strip, each.turns))
    return _with_questions(rows, columns=1, side=frames * 136 - 8)


def _with_questions(
    pictures: Sequence[tuple[Image.Image, Sequence[tuple[str, str, str]]]], columns: int, side: int
) -> Image.Image:
    panels, labels = [], []
    for picture, turns in pictures:
        scale = side / max(picture.size)
        size = round(picture.width * scale), round(picture.height * scale)
        # Narrow pictures get a column as wide as the others: their text needs it.
        panel = Image.new("RGB", (side, size[1]), "white")
        panel.paste(picture.resize(size, Image.Resampling.BICUBIC))
        panels.append(panel)
        lines = [
            line
            for question, answer, _ in turns
            for line in textwrap.wrap(
                f"{question[:-2]}? {answer}", side // 8, subsequent_indent="   "
            )
        ]
        labels.append("\n".join(lines))
    return drawing.sheet(panels, labels, columns=columns)


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
    scenes().save(PICTURES / "scenes.png", optimize=True)
    scenes("second", 5).save(PICTURES / "second-world.png", optimize=True)
    tiles().save(PICTURES / "tiles.png", optimize=True)
    clips().save(PICTURES / "clips.png", optimize=True)
    readme().save(PICTURES / "readme.png", optimize=True)
    methods().save(PICTURES / "methods.png", optimize=True)
    (PICTURES / "chat-terminal.svg").write_text(terminal())
