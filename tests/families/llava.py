"""LLaVA, with one picture, with tiles and newlines, and with frames of videos."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.families.family import (
    IMAGE,
    TEXT,
    TOWER,
    VIDEO,
    Picture,
    from_config,
    pixels,
    placeholders,
    stacked,
)

# ---------------------------------------------------------------------- llava, llava_gqa


def make_llava(attn: str, **text: Any) -> PreTrainedModel:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=20),
        text_config=transformers.LlamaConfig(**(TEXT | text)),
        image_token_index=IMAGE,
        image_seq_length=25,
        vision_feature_layer=-2,
    )
    return from_config(transformers.LlavaForConditionalGeneration, config, attn)


def make_llava_gqa(attn: str) -> PreTrainedModel:
    return make_llava(
        attn,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )


def llava_image(g: torch.Generator, which: int, count: int) -> Picture:
    return Picture(*placeholders(25), {"pixel_values": pixels(g, 3, 20, 20)})


def collate_pixels(rows: list[list[Picture]]) -> dict[str, Any]:
    return stacked(rows, "pixel_values")


# ---------------------------------------------------------------------- tiles with newlines

TILE = 3  # patches along one side of a tile
PINPOINTS = [[12, 24], [24, 12], [24, 24]]
# (height, width), tiles (down, across), rows and columns of patches left after unpadding
ANYRES = [((14, 24), (2, 2), (4, 6)), ((26, 6), (2, 1), (6, 1)), ((12, 24), (1, 2), (3, 6))]


def anyres_image(g: torch.Generator, which: int) -> Picture:
    """A base view, then the tiles' patches row by row, each row ended by a newline token."""
    size, (down, across), (height, width) = ANYRES[which % len(ANYRES)]
    visual = [True] * TILE**2 + ([True] * width + [False]) * height
    data = {
        "pixel_values": pixels(g, 1 + down * across, 3, 12, 12),
        "image_sizes": list(size),
    }
    return Picture([IMAGE] * len(visual), visual, data)


def collate_tiles(rows: list[list[Picture]]) -> dict[str, Any]:
    pictures = [p for row in rows for p in row if not p.is_video]
    if not pictures:
        return {}
    most = max(len(p.data["pixel_values"]) for p in pictures)
    padded = torch.zeros(len(pictures), most, 3, 12, 12)
    for i, p in enumerate(pictures):
        padded[i, : len(p.data["pixel_values"])] = p.data["pixel_values"]
    sizes = torch.tensor([p.data["image_sizes"] for p in pictures])
    return {"pixel_values": padded, "image_sizes": sizes}


def make_llava_next(attn: str) -> PreTrainedModel:
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=12),
        text_config=transformers.MistralConfig(
            **(TEXT | {"num_key_value_heads": 2}), sliding_window=None
        ),
        image_token_index=IMAGE,
        image_seq_length=TILE**2,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
    )
    return from_config(transformers.LlavaNextForConditionalGeneration, config, attn)


def llava_next_image(g: torch.Generator, which: int, count: int) -> Picture:
    return anyres_image(g, which)


def make_llava_onevision(attn: str) -> PreTrainedModel:
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, image_size=12, vision_use_head=False
        ),
        text_config=transformers.Qwen2Config(**(TEXT | {"num_key_value_heads": 2})),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return from_config(transformers.LlavaOnevisionForConditionalGeneration, config, attn)


def llava_onevision_image(g: torch.Generator, which: int, count: int) -> Picture:
    if count == 1:
        return anyres_image(g, which)
    # Among several images each is one tile and one newline.
    size = list(ANYRES[which % len(ANYRES)][0])
    visual = [True] * TILE**2 + [False]
    data = {"pixel_values": pixels(g, 1, 3, 12, 12), "image_sizes": size}
    return Picture([IMAGE] * len(visual), visual, data)


def llava_onevision_video(g: torch.Generator, which: int) -> Picture:
    visual = [True] * (4 * 4) + [False]  # 4 frames of 2 x 2, one newline at the end
    data = {"pixel_values_videos": pixels(g, 4, 3, 12, 12)}
    return Picture([VIDEO] * len(visual), visual, data, is_video=True)


def collate_onevision(rows: list[list[Picture]]) -> dict[str, Any]:
    images = collate_tiles(rows)
    if images:
        # How many images were passed together; one passed alone is cut into tiles. (The tiles
        # say it for a row that holds the pictures of several turns.)
        counts = []
        for row in rows:
            tiles = [len(p.data["pixel_values"]) for p in row if not p.is_video]
            counts += [len(tiles)] if set(tiles) == {1} else [1] * len(tiles)
        images["batch_num_images"] = torch.tensor(counts)
    return images | stacked(rows, "pixel_values_videos")


# ---------------------------------------------------------------------- Video-LLaVA


def make_video_llava(attn: str) -> PreTrainedModel:
    config = transformers.VideoLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**TOWER, image_size=20),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=25,
        video_seq_length=3 * 26,
    )
    return from_config(transformers.VideoLlavaForConditionalGeneration, config, attn)


def video_llava_video(g: torch.Generator, which: int) -> Picture:
    # Frames keep their CLS token, whose placeholder is no patch of the picture.
    visual = ([False] + [True] * 25) * 3
    data = {"pixel_values_videos": pixels(g, 3, 3, 20, 20)}
    return Picture([VIDEO] * len(visual), visual, data, is_video=True)


def collate_video_llava(rows: list[list[Picture]]) -> dict[str, Any]:
    inputs = stacked(rows, "pixel_values", "pixel_values_videos")
    forward = inspect.signature(transformers.VideoLlavaForConditionalGeneration.forward)
    if "pixel_values" in inputs and "pixel_values" not in forward.parameters:
        inputs["pixel_values_images"] = inputs.pop("pixel_values")  # its name up to some 5.x
    return inputs
