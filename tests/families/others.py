"""Families with an arrangement of their own: tiles by name, pooled rasters, rows with breaks."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.families.family import (
    CLOSE,
    GLOBAL,
    HEADS,
    HIDDEN,
    IMAGE,
    LAYERS,
    NEWLINE,
    OPEN,
    ROW_BREAK,
    ROW_END,
    TEXT,
    TILE_NAMES,
    TOWER,
    VOCABULARY,
    Picture,
    between,
    from_config,
    joined,
    pixels,
    placeholders,
)

# ---------------------------------------------------------------------- InternVL


def make_internvl(attn: str) -> PreTrainedModel:
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**TOWER, image_size=24, use_qk_norm=True),
        text_config=transformers.Qwen2Config(**(TEXT | {"num_key_value_heads": 2})),
        image_token_id=IMAGE,
        image_seq_length=9,
    )
    return from_config(transformers.InternVLForConditionalGeneration, config, attn)


def internvl_image(g: torch.Generator, which: int, count: int) -> Picture:
    tiles = 3 if which % 3 else 2  # tiles and, where there are several, a thumbnail
    ids, visual = between(*placeholders(9 * tiles), [OPEN], [CLOSE])
    return Picture(ids, visual, {"pixel_values": pixels(g, tiles, 3, 24, 24)})


def collate_joined_pixels(rows: list[list[Picture]]) -> dict[str, Any]:
    return joined(rows, "pixel_values")


# ---------------------------------------------------------------------- Idefics3, SmolVLM


def idefics_configs() -> dict[str, Any]:
    return {
        "text_config": transformers.LlamaConfig(**(TEXT | {"num_key_value_heads": 2})),
        "image_token_id": IMAGE,
        "scale_factor": 2,
    }


def make_idefics3(attn: str) -> PreTrainedModel:
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    config = transformers.Idefics3Config(
        vision_config=Idefics3VisionConfig(**TOWER, image_size=24), **idefics_configs()
    )
    return from_config(transformers.Idefics3ForConditionalGeneration, config, attn)


def make_smolvlm(attn: str) -> PreTrainedModel:
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    config = transformers.SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**TOWER, image_size=24), **idefics_configs()
    )
    return from_config(transformers.SmolVLMForConditionalGeneration, config, attn)


def idefics_image(g: torch.Generator, which: int, count: int) -> Picture:
    """Tiles, each announced by its row and column, then the whole image."""
    down, across = [(1, 2), (2, 1), (1, 1)][which % 3]
    ids: list[int] = []
    visual: list[bool] = []
    tiles = 1
    if (down, across) != (1, 1):
        tiles += down * across
        for r in range(down):
            for c in range(across):
                name = TILE_NAMES + 3 * r + c
                a, b = between(*placeholders(9), [OPEN, name], [])
                ids, visual = ids + a, visual + b
            ids, visual = [*ids, NEWLINE], [*visual, False]
        ids, visual = [*ids, NEWLINE], [*visual, False]
    a, b = between(*placeholders(9), [OPEN, GLOBAL], [OPEN])
    return Picture(ids + a, visual + b, {"pixel_values": pixels(g, tiles, 3, 24, 24)})


def collate_idefics(rows: list[list[Picture]]) -> dict[str, Any]:
    tiles = [torch.cat([p.data["pixel_values"] for p in row]) if row else None for row in rows]
    most = max(len(t) for t in tiles if t is not None)
    padded = torch.zeros(len(rows), most, 3, 24, 24)
    mask = torch.zeros(len(rows), most, 24, 24, dtype=torch.long)
    for b, t in enumerate(tiles):
        if t is not None:
            padded[b, : len(t)] = t
            mask[b, : len(t)] = 1
    return {"pixel_values": padded, "pixel_attention_mask": mask}


# ---------------------------------------------------------------------- Gemma 3, PaliGemma


def make_gemma3(attn: str) -> PreTrainedModel:
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, image_size=32, vision_use_head=False
        ),
        text_config=transformers.Gemma3TextConfig(
            **(TEXT | {"num_key_value_heads": 2}),
            head_dim=HIDDEN // HEADS,
            query_pre_attn_scalar=HIDDEN // HEADS,
            sliding_window=16,  # smaller than a prompt, so that the sliding layers differ
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        ),
        mm_tokens_per_image=16,
        boi_token_index=OPEN,
        eoi_token_index=CLOSE,
        image_token_index=IMAGE,
    )
    return from_config(transformers.Gemma3ForConditionalGeneration, config, attn)


def gemma3_image(g: torch.Generator, which: int, count: int) -> Picture:
    ids, visual = between(*placeholders(16), [NEWLINE, OPEN], [CLOSE, NEWLINE])
    return Picture(ids, visual, {"pixel_values": pixels(g, 3, 32, 32)})


def make_paligemma(attn: str) -> PreTrainedModel:
    text = transformers.GemmaConfig(**(TEXT | {"num_key_value_heads": 1}), head_dim=HIDDEN // HEADS)
    return paligemma(text, attn)


def make_paligemma2(attn: str) -> PreTrainedModel:
    text = transformers.Gemma2Config(
        **(TEXT | {"num_key_value_heads": 2}),
        head_dim=HIDDEN // HEADS,
        query_pre_attn_scalar=HIDDEN // HEADS,
        attn_logit_softcapping=1.0,  # low enough to bend the logits of random weights
        final_logit_softcapping=3.0,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
    )
    # transformers runs Gemma 2 with no sdpa kernel: none bends logits.
    return paligemma(text, {"vision_config": attn, "text_config": "eager"})


def paligemma(text: transformers.PreTrainedConfig, attn: Any) -> PreTrainedModel:
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(
            **TOWER, image_size=20, vision_use_head=False
        ),
        text_config=text,
        image_token_index=IMAGE,
        vocab_size=VOCABULARY,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    return from_config(transformers.PaliGemmaForConditionalGeneration, config, attn)


# ---------------------------------------------------------------------- Mistral 3, Video-LLaVA


def make_mistral3(attn: str) -> PreTrainedModel:
    config = transformers.Mistral3Config(
        vision_config=transformers.PixtralVisionConfig(**TOWER, image_size=48, head_dim=16),
        text_config=transformers.MistralConfig(
            **(TEXT | {"num_key_value_heads": 2}), head_dim=HIDDEN // HEADS, sliding_window=None
        ),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    return from_config(transformers.Mistral3ForConditionalGeneration, config, attn)


def mistral3_image(g: torch.Generator, which: int, count: int) -> Picture:
    """Rows of slots, each ended by a break token, the last by an end token."""
    height, width = [(4, 5), (6, 3), (4, 4)][which % 3]  # slots of 8 x 8 pixels
    ids: list[int] = []
    visual: list[bool] = []
    for r in range(height):
        a, b = between(*placeholders(width), [], [ROW_END if r == height - 1 else ROW_BREAK])
        ids, visual = ids + a, visual + b
    data = {
        "pixel_values": pixels(g, 3, 8 * height, 8 * width),
        "image_sizes": [8 * height, 8 * width],
    }
    return Picture(ids, visual, data)


def collate_sized(rows: list[list[Picture]]) -> dict[str, Any]:
    pictures = [p for row in rows for p in row]
    sizes = torch.tensor([p.data["image_sizes"] for p in pictures])
    height, width = sizes.amax(0).tolist()
    padded = torch.zeros(len(pictures), 3, height, width)
    for i, p in enumerate(pictures):
        h, w = p.data["image_sizes"]
        padded[i, :, :h, :w] = p.data["pixel_values"]
    return {"pixel_values": padded, "image_sizes": sizes}
