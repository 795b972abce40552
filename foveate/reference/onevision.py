"""The second reference model and its processor: LLaVA-OneVision in miniature, tiles and clips.

A picture becomes an overview of 64 x 64 pixels and tiles of the same size, every row of the tiles'
mosaic closed by a newline token; a clip becomes frames of 64 x 64 pixels, each pooled from 8 x 8 to
4 x 4 tokens, with one newline at the end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveate.reference import words
from foveate.reference.architecture import (
    CHAT_TEMPLATE,
    DEVIATION,
    MEAN,
    PATCH,
    build_tokenizer,
    special_ids,
    start_tower,
    text_config,
    vision_config,
)
from foveate.reference.tiled import CANVASES, TILE

if TYPE_CHECKING:
    from transformers import (
        LlavaForConditionalGeneration,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
    )
    from transformers.models.llama.modeling_llama import LlamaAttention

# Patches a side of one view, and tokens a side of a clip's frame.
VIEW_GRID = TILE // PATCH
FRAME_GRID = VIEW_GRID // 2
PINPOINTS = [[height, width] for width, height in CANVASES]
# Room for the largest picture as it is: nothing is interpolated.
_ASPECT_RATIO = "anyres_max_9"


_LOOKS = {
    "size": {"height": TILE, "width": TILE},
    "image_mean": list(MEAN),
    "image_std": list(DEVIATION),
}


_OPTIONS = {
    "image_token": words.IMAGE,
    "video_token": words.VIDEO,
    # With CLS, which "default" takes off again.
    "num_image_tokens": VIEW_GRID * VIEW_GRID + 1,
    "vision_feature_select_strategy": "default",
    "vision_aspect_ratio": _ASPECT_RATIO,
}


def build_tiles_processor() -> LlavaOnevisionProcessor:
    """Tokenizer, image processor (PIL) and, where torchvision is installed, video processor."""
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    images = LlavaOnevisionImageProcessorPil(image_grid_pinpoints=PINPOINTS, **_LOOKS)
    return _assembled(images, build_tokenizer(clips=True))


def load_tiles_processor(folder: Path) -> LlavaOnevisionProcessor:
    """The processor of a folder; where torchvision is missing, without its video part."""
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return AutoProcessor.from_pretrained(folder)
    images = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    return _assembled(images, AutoTokenizer.from_pretrained(folder))


def save_tiles_processor(folder: Path) -> None:
    """Write the processor; the same files whether or not torchvision is installed here."""
    processor = build_tiles_processor()
    processor.save_pretrained(folder)
    if processor.video_processor is None:
        target = folder / "processor_config.json"
        record = json.loads(target.read_text()) | _OPTIONS
        record["processor_class"] = "LlavaOnevisionProcessor"
        record["video_processor"] = _LOOKS | {
            "video_processor_type": "LlavaOnevisionVideoProcessor"
        }
        target.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _assembled(images: Any, tokenizer: Any) -> LlavaOnevisionProcessor:
    from transformers import LlavaOnevisionProcessor
    from transformers.utils import is_torchvision_available

    parts = {"image_processor": images, "tokenizer": tokenizer, "chat_template": CHAT_TEMPLATE}
    if is_torchvision_available():
        from transformers import LlavaOnevisionVideoProcessor

        videos = LlavaOnevisionVideoProcessor(**_LOOKS)
        return LlavaOnevisionProcessor(video_processor=videos, **parts, **_OPTIONS)

    class WithoutVideos(LlavaOnevisionProcessor):
        """A video processor cannot even be made without torchvision."""

        # A processor's parts are read off the names of these arguments.
        def __init__(self, image_processor: Any, tokenizer: Any, **options: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **options)
            self.video_processor = None

    return WithoutVideos(**parts, **_OPTIONS)


@torch.no_grad()
def start_from(
    model: LlavaOnevisionForConditionalGeneration, source: LlavaForConditionalGeneration
) -> None:
    """Begin with what `reference` learned: tower, projector and decoder.

    Places are interpolated to the smaller views as CLIP does it. The words about clips, which the
    source does not know, begin at random, as large as the others; newlines too.

    Args:
        model: of the same widths and depths; changed in place.
        source: a trained `reference`.
    """
    known = source.state_dict()
    places = source.model.vision_tower.embeddings
    width = places.embed_dim
    between = places.interpolate_pos_encoding(torch.zeros(1, 1 + VIEW_GRID**2, width), TILE, TILE)
    embedded, head = (model.get_input_embeddings().weight, model.lm_head.weight)
    size = source.get_input_embeddings().weight.std()
    embedded.normal_(0, size)
    # As large as the head's other rows, and alike, as in the source's own start.
    head.copy_(embedded * source.lm_head.weight.std() / size)
    model.model.image_newline.normal_(0, size)
    for name, value in model.state_dict().items():
        if name.endswith("position_embedding.weight"):
            value.copy_(between[0])
        elif name in known:
            value[: len(known[name])] = known[name]
    for block in model.model.language_model.layers:
        _tell_apart(block.self_attn)


def _tell_apart(attention: LlamaAttention) -> None:
    """Give heads that are copies of each other outputs of their own; their sum stays what it was.

    The source's decoder starts with the query heads of a group alike, and alike they stay: their
    gradients are. What differs in the outputs differs in the gradients.
    """
    shape = (-1, attention.num_key_value_groups, attention.head_dim)
    queries = attention.q_proj.weight.unflatten(0, shape)
    alike = (queries == queries[:, :1]).flatten(1).all(1)  # (groups,)
    outputs = attention.o_proj.weight.unflatten(1, shape)  # a view: (width, groups, heads, d)
    noise = torch.randn_like(outputs) * outputs.std()
    outputs.add_((noise - noise.mean(2, keepdim=True)) * alike[:, None, None])


def build_tiles_model(
    vision_width: int = 128, vision_layers: int = 5, width: int = 128, layers: int = 5
) -> LlavaOnevisionForConditionalGeneration:
    """A freshly initialised model; seed torch first. Arguments as in `build_model`."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    vocabulary = words.vocabulary()
    special = special_ids(vocabulary)
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision_config(vision_width, vision_layers, TILE),
            text_config=text_config(width, layers, vocabulary),
            image_token_index=vocabulary[words.IMAGE],
            video_token_index=vocabulary[words.VIDEO],
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio=_ASPECT_RATIO,
            tie_word_embeddings=False,
            **special,
        )
    )
    start_tower(model.model.vision_tower)
    with torch.no_grad():
        model.model.image_newline.normal_(0, width**-0.5)
    model.generation_config.update(max_new_tokens=8, do_sample=False, **special)
    return model
