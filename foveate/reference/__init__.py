"""The offline reference model: a small trained LLaVA and the drawn scenes it answers about.

    model, processor = foveate.reference.load()
    for sample in foveate.reference.samples("test", 3):
        print(sample.turns)

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import UnknownName

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["NAMES", "Sample", "load", "path", "samples"]

_WEIGHTS = Path(__file__).parent / "weights"
# A plain tuple: a model is shipped with the package or it does not exist.
NAMES = ("reference",)


@dataclass(frozen=True)
class Sample:
    """One scene and its dialogue.

    Attributes:
        image: 128 x 128 pixels, RGB.
        turns: (question, answer, kind) in the order of the conversation.
        seed: of the scene within its split; `foveate.reference.scenes.scene(seed, split)`.
    """

    image: Image
    turns: list[tuple[str, str, str]]
    seed: int


def path(name: str = "reference") -> Path:
    """The folder of a shipped model, for any `from_pretrained`."""
    if name not in NAMES:
        raise UnknownName("reference model", name, NAMES)
    return _WEIGHTS / name


def load(name: str = "reference") -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A shipped model in float32 and evaluation mode, and its processor."""
    folder = path(name)
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def samples(split: str, count: int, start: int = 0) -> Iterator[Sample]:
    """`count` scenes of a split ("train", "validation", "test") with their dialogues."""
    from foveate.reference.scenes import dialogue, scene

    for seed in range(start, start + count):
        drawn = scene(seed, split)
        turns = [(turn.text, turn.answer, turn.kind) for turn in dialogue(drawn, seed)]
        yield Sample(drawn.image, turns, seed)
