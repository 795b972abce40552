"""Qwen-VL: patches of any raster, merged two by two; videos with timestamps."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tests.families.family import (
    CLOSE,
    HEADS,
    HIDDEN,
    IMAGE,
    OPEN,
    TEXT,
    VIDEO,
    Picture,
    between,
    from_config,
    joined,
    pixels,
    placeholders,
    stacked,
    words,
)

# ---------------------------------------------------------------------- Qwen-VL

QWEN_GRIDS = [(8, 10), (8, 8), (12, 8)]  # patches; merged 2 x 2 into slots
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def qwen_text() -> dict[str, Any]:
    return TEXT | {"num_key_value_heads": 2, "rope_parameters": dict(MROPE)}


def qwen_ids() -> dict[str, int]:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": OPEN,
        "vision_end_token_id": CLOSE,
    }


def make_qwen2_vl(attn: str) -> PreTrainedModel:
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 3, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config=qwen_text(),
        **qwen_ids(),
    )  # fmt: skip
    return from_config(transformers.Qwen2VLForConditionalGeneration, config, attn)


def make_qwen2_5_vl(attn: str) -> PreTrainedModel:
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2,
            "intermediate_size": 48, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 24, "fullatt_block_indexes": [1],
            "tokens_per_second": 4,
        },
        text_config=qwen_text(),
        **qwen_ids(),
    )  # fmt: skip
    return from_config(transformers.Qwen2_5_VLForConditionalGeneration, config, attn)


def make_qwen3_vl(attn: str) -> PreTrainedModel:
    text = qwen_text() | {"head_dim": HIDDEN // HEADS}
    text["rope_parameters"]["mrope_interleaved"] = True
    del text["bos_token_id"], text["eos_token_id"]
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2,
            "intermediate_size": 48, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        text_config=text,
        **qwen_ids(),
    )  # fmt: skip
    return from_config(transformers.Qwen3VLForConditionalGeneration, config, attn)


def qwen_patches(g: torch.Generator, frames: int, height: int, width: int) -> Tensor:
    return pixels(g, frames * height * width, 3 * 2 * 4 * 4)


def qwen_image(g: torch.Generator, which: int, count: int) -> Picture:
    height, width = QWEN_GRIDS[which % len(QWEN_GRIDS)]
    ids, visual = between(*placeholders(height * width // 4), [OPEN], [CLOSE])
    data = {
        "pixel_values": qwen_patches(g, 1, height, width),
        "image_grid_thw": [1, height, width],
    }
    return Picture(ids, visual, data)


def qwen2_video(g: torch.Generator, which: int) -> Picture:
    frames, height, width = 3, 6, 6
    ids, visual = between(*placeholders(frames * height * width // 4, VIDEO), [OPEN], [CLOSE])
    data = {
        "pixel_values_videos": qwen_patches(g, frames, height, width),
        "video_grid_thw": [frames, height, width],
    }
    return Picture(ids, visual, data, is_video=True)


def qwen2_5_video(g: torch.Generator, which: int) -> Picture:
    picture = qwen2_video(g, which)
    picture.data["second_per_grid_ts"] = 0.5
    return picture


def qwen3_video(g: torch.Generator, which: int) -> Picture:
    frames, height, width = 3, 6, 6
    ids: list[int] = []
    visual: list[bool] = []
    for _ in range(frames):  # a timestamp before each frame
        a, b = between(*placeholders(height * width // 4, VIDEO), [*words(g, 2), OPEN], [CLOSE])
        ids, visual = ids + a, visual + b
    data = {
        "pixel_values_videos": qwen_patches(g, frames, height, width),
        "video_grid_thw": [frames, height, width],
    }
    return Picture(ids, visual, data, is_video=True)


def collate_qwen(rows: list[list[Picture]]) -> dict[str, Any]:
    return joined(rows, "pixel_values", "pixel_values_videos") | stacked(
        rows, "image_grid_thw", "video_grid_thw", "second_per_grid_ts"
    )
