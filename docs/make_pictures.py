"""Draws the pictures of the documentation with the shipped model.

python docs/make_pictures.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import foveate
from foveate import drawing, reference
from foveate.prompting import conversation, model_inputs, new_words

PICTURES = Path(__file__).parent / "pictures"
KEEP = 32
README = ("visionzip", "tome", "divprune")
SCENE, SIDE = 0, 300


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
        panels.append(_bare(drawing.draw(sample.image, run.items[0], title="", side=SIDE)))
        labels.append(f'{name}, {run.report().entering} tokens: "{said}"')
    return drawing.sheet([drawing.sheet(panels, labels)], [question], columns=1)


def _bare(picture: Image.Image) -> Image.Image:
    """A drawn panel without its margin."""
    margin = (picture.width - SIDE) // 2
    return picture.crop((margin, margin, margin + SIDE, margin + SIDE))


def methods() -> Image.Image:
    """What every method keeps of one scene, those that the shipped model can serve."""
    from foveate import catalog
    from foveate.evaluation import from_reference, report
    from foveate.evaluation.settings import Setting

    settings = [Setting(name, KEEP) for name in catalog.names() if name != "trim"]
    model, processor = reference.load()
    ((_, picture),) = report.kept_pictures(model, processor, from_reference(1), settings, 1)
    return picture


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    readme().save(PICTURES / "readme.png", optimize=True)
    methods().save(PICTURES / "methods.png", optimize=True)
