"""The offline reference models: a small trained LLaVA and the drawn scenes it answers about.

    model, processor = foveate.reference.load()  # or "reference-tiles", of tiles and clips
    for sample in foveate.reference.samples("test", 3):
        print(sample.turns)

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.errors import UnknownName

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin

    from foveate.reference.questions import Question

__all__ = [
    "NAMES",
    "ClipSample",
    "Sample",
    "clip_samples",
    "load",
    "path",
    "samples",
    "tiled_samples",
]

_WEIGHTS = Path(__file__).parent / "weights"
# A plain tuple: a model is shipped with the package or it does not exist.
NAMES = ("reference", "reference-tiles")


@dataclass(frozen=True)
class Sample:
    """One scene and its dialogue.

    Attributes:
        image: RGB; 128 x 128 pixels, or a larger canvas of `tiled_samples`.
        turns: (question, answer, kind) in the order of the conversation.
        seed: of the scene within its split; `foveate.reference.scenes.scene(seed, split)`.
    """

    image: Image
    turns: list[tuple[str, str, str]]
    seed: int


@dataclass(frozen=True)
class ClipSample:
    """One clip and its dialogue.

    Attributes:
        frames: 8 to 32 pictures of 64 x 64 pixels, RGB.
        turns: (question, answer, kind) in the order of the conversation.
        seed: of the clip within its split; `foveate.reference.clips.clip(seed, split)`.
    """

    frames: list[Image]
    turns: list[tuple[str, str, str]]
    seed: int


def path(name: str = "reference") -> Path:
    """The folder of a shipped model, for any `from_pretrained`."""
    if name not in NAMES:
        raise UnknownName("reference model", name, NAMES)
    return _WEIGHTS / name


def load(name: str = "reference") -> tuple[PreTrainedModel, ProcessorMixin]:
    """A shipped model in float32 and evaluation mode, and its processor."""
    folder = path(name)
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    if model.config.model_type == "llava_onevision":
        from foveate.reference.onevision import load_tiles_processor

        return model, load_tiles_processor(folder)
    return model, AutoProcessor.from_pretrained(folder)


def samples(split: str, count: int, start: int = 0, world: str = "first") -> Iterator[Sample]:
    """Scenes with their dialogues.

    Args:
        split: "train", "validation" or "test".
        count: how many scenes.
        start: the seed of the first.
        world: "first", which the models were trained in, or "second", whose pictures look
            different while words and questions are the same.
    """
    from foveate.reference.scenes import dialogue, scene

    for seed in range(start, start + count):
        drawn = scene(seed, split, world)
        yield Sample(drawn.image, _plain(dialogue(drawn, seed)), seed)


def tiled_samples(
    split: str,
    count: int,
    start: int = 0,
    world: str = "first",
    canvas: tuple[int, int] | None = None,
) -> Iterator[Sample]:
    """Scenes of 128 to 192 pixels a side with their dialogues.

    Args:
        split, count, start, world: as for `samples`.
        canvas: width and height of all of them, one of `tiled.CANVASES`; by their seeds if None.
    """
    from foveate.reference.tiled import tiled_dialogue, tiled_scene

    for seed in range(start, start + count):
        drawn = tiled_scene(seed, split, world, canvas)
        yield Sample(drawn.image, _plain(tiled_dialogue(drawn, seed)), seed)


def clip_samples(
    split: str, count: int, start: int = 0, world: str = "first", frames: int | None = None
) -> Iterator[ClipSample]:
    """Clips with their dialogues.

    Args:
        split, count, start, world: as for `samples`.
        frames: how many pictures are taken of each clip; 8, 12, 16, 24 or 32 by its seed if None.
    """
    from foveate.reference.clip_questions import clip_dialogue
    from foveate.reference.clips import clip

    for seed in range(start, start + count):
        drawn = clip(seed, split, world, frames)
        yield ClipSample(drawn.frames, _plain(clip_dialogue(drawn, seed)), seed)


def _plain(turns: Sequence[Question]) -> list[tuple[str, str, str]]:
    return [(turn.text, turn.answer, turn.kind) for turn in turns]
