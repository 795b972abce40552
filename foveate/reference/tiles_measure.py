"""Accuracy of the tiled model on scenes and on clips, beside what needs no detail or no picture.

`python -m foveate.reference.tiles_measure --weights DIR` writes the "evaluation" part of
DIR/training.json; `--world second` the part "second_world". What counts as right is what counts in
`foveate.reference.measure`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.reference import words
from foveate.reference.architecture import PATCH
from foveate.reference.clip_questions import clip_dialogue
from foveate.reference.clips import FRAMES, Clip, clip
from foveate.reference.data import pixel_values
from foveate.reference.forms import LOW_VIEW_GRIDS, Form, Frames, Overview, Tiled
from foveate.reference.labels import patch_owners
from foveate.reference.measure import (
    accuracies,
    answers_right,
    attention_on_objects,
    cls_weights,
    keep,
    messages,
)
from foveate.reference.onevision import VIEW_GRID, load_tiles_processor
from foveate.reference.questions import Question
from foveate.reference.scenes import Scene
from foveate.reference.tiled import tiled_dialogue, tiled_scene
from foveate.reference.views import Views, clip_views, scene_views
from foveate.reference.vision_stage import encode
from foveate.reference.worlds import FIRST, WORLDS

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

Turns = list[tuple[str, str, str]]
_BATCH = 10
_ATTENTION_PICTURES = 100


@torch.no_grad()
def tiled_hits(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    turns: Sequence[Turns],
    images: Sequence[Image.Image],
) -> list[list[bool]]:
    """Which answers about whole pictures are right, per conversation and turn."""
    texts = [processor.apply_chat_template(messages(each)) for each in turns]
    inputs = processor(text=texts, images=list(images), padding=True, return_tensors="pt")
    return answers_right(inputs.input_ids, model(**inputs).logits.argmax(-1), turns)


@torch.no_grad()
def resized_hits(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    turns: Sequence[Turns],
    pictures: Sequence[tuple[Form, Views]],
) -> list[list[bool]]:
    """Which answers are right about pictures in a form that the processor does not make.

    Args:
        model, processor: as loaded.
        turns: the conversations.
        pictures: the form and the views of each.
    """
    right: dict[int, list[bool]] = {}
    base = model.model
    for form in {form for form, _ in pictures}:
        chosen = [index for index, each in enumerate(pictures) if each[0] == form]
        asked = [turns[index] for index in chosen]
        is_video = isinstance(form, Frames)
        ids, mask = _prompts(processor, asked, form.tokens, is_video)
        views = Views.joined([pictures[index][1] for index in chosen])
        pixels = pixel_values(views.pixels, form.grid)
        features, _ = encode(base.vision_tower, pixels, last=False)
        projected = base.multi_modal_projector(features[:, 1:]).unflatten(0, (len(chosen), -1))
        visual = form.visual(projected, base.image_newline)
        placeholder = model.config.video_token_id if is_video else model.config.image_token_id
        embedded = base.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter((ids == placeholder)[..., None], visual)
        logits = model(inputs_embeds=embedded, attention_mask=mask).logits
        right |= zip(chosen, answers_right(ids, logits.argmax(-1), asked), strict=True)
    return [right[index] for index in range(len(pictures))]


@torch.no_grad()
def clip_hits(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    turns: Sequence[Turns],
    frames: Sequence[np.ndarray],
) -> list[list[bool]]:
    """Which answers about clips are right; needs no torchvision.

    Args:
        model, processor: as loaded.
        turns: the conversations.
        frames: uint8[f, 64, 64, 3] each, of any lengths.
    """
    right: dict[int, list[bool]] = {}
    for length in {len(each) for each in frames}:
        chosen = [index for index, each in enumerate(frames) if len(each) == length]
        pixels = torch.from_numpy(np.concatenate([frames[index] for index in chosen]))
        asked = [turns[index] for index in chosen]
        ids, mask = _prompts(processor, asked, Frames(length).tokens, is_video=True)
        values = pixel_values(pixels, VIEW_GRID).unflatten(0, (len(chosen), length))
        logits = model(input_ids=ids, attention_mask=mask, pixel_values_videos=values).logits
        right |= zip(chosen, answers_right(ids, logits.argmax(-1), asked), strict=True)
    return [right[index] for index in range(len(frames))]


def _prompts(
    processor: LlavaOnevisionProcessor, turns: Sequence[Turns], tokens: int, is_video: bool
) -> tuple[Tensor, Tensor]:
    """Ids and mask of finished conversations about pictures of this many visual tokens."""
    placeholder = words.VIDEO if is_video else words.IMAGE
    texts = [processor.apply_chat_template(messages(each, is_video)) for each in turns]
    texts = [text.replace(placeholder, placeholder * tokens) for text in texts]
    inputs = processor.tokenizer(texts, padding=True, return_tensors="pt")
    return inputs.input_ids, inputs.attention_mask


def measure_tiles(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    count: int = 600,
    split: str = "test",
    world: str = FIRST,
) -> dict[str, Any]:
    """All tables of one model as plain numbers.

    Args:
        model, processor: as loaded.
        count: scenes, and clips.
        split: "train", "validation" or "test".
        world: the distribution of pictures.
    """
    scenes = [tiled_scene(seed, split, world) for seed in range(count)]
    clips = [clip(seed, split, world) for seed in range(count)]
    return {
        "split": split,
        "world": world,
        "scenes": {"count": count, **_measure_scenes(model, processor, scenes)},
        "clips": {"count": count, **_measure_clips(model, processor, clips)},
        "cls_attention": _measure_attention(model, scenes, clips),
    }


def _measure_scenes(model: Any, processor: Any, scenes: Sequence[Scene]) -> dict[str, Any]:
    turns = [_plain(tiled_dialogue(each, each.seed)) for each in scenes]
    images = [each.image for each in scenes]
    grey = [Image.fromarray(each) for each in _means([each.pixels for each in scenes])]
    views = [scene_views(each) for each in scenes]
    canvases = [each.image.size for each in scenes]
    overviews = [each[:1] for each in views]
    conditions: dict[str, tuple[Any, Sequence[Any]]] = {
        "accuracy": (tiled_hits, images),
        "blind": (tiled_hits, grey),
        "wrong_image": (tiled_hits, [*images[1:], images[0]]),
        # Print and patterns are lost in it: what only the tiles show.
        "overview_only": (resized_hits, _in_form(map(Overview, canvases), overviews)),
        **{
            f"views_of_{grid * PATCH}_pixels": (
                resized_hits,
                _in_form((Tiled(canvas, grid) for canvas in canvases), views),
            )
            for grid in LOW_VIEW_GRIDS
        },
    }
    return accuracies(turns, _results(model, processor, turns, conditions))


def _measure_clips(model: Any, processor: Any, clips: Sequence[Clip]) -> dict[str, Any]:
    turns = [_plain(clip_dialogue(each, each.seed)) for each in clips]
    frames = [each.pixels for each in clips]
    fewest, most = (
        [clip(each.seed, each.split, each.world, number).pixels for each in clips]
        for number in (min(FRAMES), max(FRAMES))
    )
    conditions: dict[str, tuple[Any, Sequence[Any]]] = {
        "accuracy": (clip_hits, frames),
        "blind": (clip_hits, _means(frames)),
        "wrong_image": (clip_hits, [*frames[1:], frames[0]]),
        # One picture, shown as long as the clip: what needs no time.
        "middle_frame": (clip_hits, [_still(each) for each in frames]),
        f"at_{min(FRAMES)}_frames": (clip_hits, fewest),
        f"at_{max(FRAMES)}_frames": (clip_hits, most),
        **{
            f"views_of_{grid * PATCH}_pixels": (
                resized_hits,
                _in_form((Frames(len(each), grid) for each in frames), map(clip_views, clips)),
            )
            for grid in LOW_VIEW_GRIDS
        },
    }
    return accuracies(turns, _results(model, processor, turns, conditions))


def _in_form(forms: Iterable[Form], views: Iterable[Views]) -> list[tuple[Form, Views]]:
    return list(zip(forms, views, strict=True))


def _plain(turns: Sequence[Question]) -> Turns:
    return [(turn.text, turn.answer, turn.kind) for turn in turns]


def _results(
    model: Any, processor: Any, turns: Sequence[Turns], conditions: dict[str, tuple[Any, Any]]
) -> dict[str, list[list[bool]]]:
    """Which answers are right under each condition."""
    parts = [slice(start, start + _BATCH) for start in range(0, len(turns), _BATCH)]
    return {
        name: [
            found for part in parts for found in hits(model, processor, turns[part], pictures[part])
        ]
        for name, (hits, pictures) in conditions.items()
    }


def _still(frames: np.ndarray) -> np.ndarray:
    """The middle frame in the place of every frame."""
    middle = len(frames) // 2
    return np.repeat(frames[middle : middle + 1], len(frames), axis=0)


def _means(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each picture (or clip) the mean of all of its size."""
    found: dict[tuple[int, ...], list[np.ndarray]] = {}
    for picture in pictures:
        found.setdefault(picture.shape, []).append(picture)
    means: dict[tuple[int, ...], np.ndarray] = {}
    for shape, each in found.items():
        means[shape] = np.stack(each).mean(0).round().astype(np.uint8)
    return [means[picture.shape] for picture in pictures]


@torch.no_grad()
def _measure_attention(
    model: Any, scenes: Sequence[Scene], clips: Sequence[Clip]
) -> dict[str, dict[str, float]]:
    """CLS's attention in overviews, tiles and frames that show anything at all."""
    drawn = [scene_views(each) for each in scenes[:_ATTENTION_PICTURES]]
    kinds = {
        "overviews": Views.joined([each[:1] for each in drawn]),
        "tiles": Views.joined([each[1:] for each in drawn]),
        "frames": Views.joined([clip_views(each)[::4] for each in clips[:_ATTENTION_PICTURES]]),
    }
    found = {}
    for kind, views in kinds.items():
        pixels = pixel_values(views.pixels, VIEW_GRID)
        weights = cls_weights(model.model.vision_tower, model.config.vision_feature_layer, pixels)
        shown = patch_owners(views.owners, VIEW_GRID) > 0
        pairs = [(one, what) for one, what in zip(weights, shown, strict=True) if what.any()]
        found[kind] = attention_on_objects(pairs, tops=(4, 16))
    return found


def record_tiles(
    weights: Path, count: int = 600, split: str = "test", world: str = FIRST
) -> dict[str, Any]:
    """Measure the model in a folder, and keep what was found in its training.json.

    Args:
        weights: the folder.
        count: scenes, and clips, of the split.
        split: which.
        world: whose.
    """
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(weights, dtype=torch.float32).eval()
    processor = load_tiles_processor(weights)
    found = measure_tiles(model, processor, count, split, world)
    keep(weights, "evaluation" if world == FIRST else "second_world", found)
    return found


def main() -> None:
    """`python -m foveate.reference.tiles_measure --weights DIR`: fill in DIR/training.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--split", default="test")
    parser.add_argument("--world", default=FIRST, choices=WORLDS)
    options = parser.parse_args()
    found = record_tiles(Path(options.weights), options.count, options.split, options.world)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
