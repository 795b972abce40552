"""The model and its processor: real transformers classes of the LLaVA family, in miniature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.reference import words
from foveate.reference.layout import SIDE

if TYPE_CHECKING:
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

PATCH = 8
GRID = SIDE // PATCH
# Plain centring: the scenes are not photographs, and CLIP's statistics would mean nothing.
MEAN = (0.5, 0.5, 0.5)
DEVIATION = (0.25, 0.25, 0.25)

# LLaVA's own form: the picture in front of the first question, every answer closed by </s>.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}user: {% else %}assistant: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for item in message['content'] if item['type'] in ('image', 'video') %}"
    "<{{ item['type'] }}>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s> {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build_tokenizer(clips: bool = False) -> PreTrainedTokenizerFast:
    """Whole words; lower case; digits one by one; an unknown word is <unk>.

    Args:
        clips: with the words about clips, and their placeholder.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = words.vocabulary(clips)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words.UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    # The two role words keep their colon, so that no other use of a colon looks like a turn.
    pieces = Regex(rf"{words.USER}|{words.ASSISTANT}|[0-9]|[?.,!;:]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pieces, "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{words.BOS} $A", special_tokens=[(words.BOS, vocabulary[words.BOS])]
    )
    placeholders = {"image_token": words.IMAGE} | ({"video_token": words.VIDEO} if clips else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=words.BOS,
        eos_token=words.EOS,
        unk_token=words.UNK,
        pad_token=words.PAD,
        extra_special_tokens=placeholders,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer and image processor; the PIL backend, which needs no torchvision."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=list(MEAN),
        image_std=list(DEVIATION),
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    vision_width: int = 128, vision_layers: int = 5, width: int = 128, layers: int = 4
) -> LlavaForConditionalGeneration:
    """A freshly initialised model; seed torch first.

    Args:
        vision_width, vision_layers: the CLIP tower; features are those before its last block.
        width, layers: the Llama decoder; half as many key-value heads as query heads.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vocabulary = words.vocabulary(clips=False)
    special = special_ids(vocabulary)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision_config(vision_width, vision_layers, SIDE),
            text_config=text_config(width, layers, vocabulary),
            image_token_id=vocabulary[words.IMAGE],
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=GRID * GRID,
            tie_word_embeddings=False,
            **special,
        )
    )
    start_tower(model.model.vision_tower)
    model.generation_config.update(max_new_tokens=8, do_sample=False, **special)
    return model


def special_ids(vocabulary: dict[str, int]) -> dict[str, int]:
    """The arguments by which configs name the special tokens."""
    return {
        "bos_token_id": vocabulary[words.BOS],
        "eos_token_id": vocabulary[words.EOS],
        "pad_token_id": vocabulary[words.PAD],
    }


def vision_config(width: int, layers: int, side: int) -> CLIPVisionConfig:
    """A CLIP tower for pictures of `side` pixels."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        image_size=side,
        patch_size=PATCH,
        projection_dim=width,
        hidden_act="gelu",
    )


def text_config(width: int, layers: int, vocabulary: dict[str, int]) -> LlamaConfig:
    """A Llama decoder with grouped-query heads."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
        # Slower waves than usual: more of each head can compare contents at any distance.
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=False,
        **special_ids(vocabulary),
    )


@torch.no_grad()
def start_tower(tower: CLIPVisionModel) -> None:
    """Positions as large as patches: the default start makes them tens of times smaller."""
    embeddings, width = tower.embeddings, tower.config.hidden_size
    grid = tower.config.image_size // PATCH
    embeddings.position_embedding.weight[1:] = position_table(grid, width)
    embeddings.position_embedding.weight[0].zero_()
    embeddings.patch_embedding.weight.normal_(0, (3 * PATCH * PATCH) ** -0.5)


def position_table(grid: int, width: int) -> Tensor:
    """2-D sine-cosine positions, row-major: float[grid * grid, width], entries of size about 0.7.

    Of the same size as the embedded patches, so that neighbours can be found from the first step.
    """
    line = torch.arange(grid, dtype=torch.float32)
    return position_code(torch.stack([line.repeat(grid), line.repeat_interleave(grid)], -1), width)


def position_code(places: Tensor, width: int) -> Tensor:
    """Sines and cosines of places (x, y) counted in patches: float[..., 2] -> float[..., width]."""
    quarter = width // 4
    waves = torch.exp(-math.log(60.0) * torch.arange(quarter) / (quarter - 1)) * math.pi / 2
    angles = places[..., None] * waves
    across, down = torch.cat([angles.sin(), angles.cos()], dim=-1).unbind(-2)
    return torch.cat([down, across], dim=-1)
