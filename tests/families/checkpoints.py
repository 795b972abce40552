"""The tiny random models as folders on disk, with real processors and chat templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from tests.families.family import BOS, CLOSE, IMAGE, OPEN, PAD, VIDEO, VOCABULARY
from tests.families.llava import PINPOINTS
from tests.families.models import FAMILIES

UNK, EOS = 1, 3
SPECIAL = {
    "<pad>": PAD,
    "<unk>": UNK,
    "<s>": BOS,
    "</s>": EOS,
    "<image>": IMAGE,
    "<video>": VIDEO,
    "<open>": OPEN,
    "<close>": CLOSE,
}
WORDS = "user : assistant what colour is the topmost thing in picture ? red blue yes no".split()
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : "
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }} "
    "{% else %}PICTURE {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer(**special: str) -> transformers.PreTrainedTokenizerFast:
    """Whole words; every id of the models' vocabulary has a word."""
    table = dict(SPECIAL)
    names = iter([*WORDS, *(f"word{i}" for i in range(VOCABULARY))])
    for number in range(VOCABULARY):
        if number not in SPECIAL.values():
            table[next(names)] = number
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL),
        extra_special_tokens=special,
    )


def template(picture: str) -> str:
    """The chat template with the family's way of writing a picture."""
    return TEMPLATE.replace("PICTURE", picture)


def llava() -> Any:
    return transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
        ),
        tokenizer=tokenizer(image_token="<image>"),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )


def llava_next() -> Any:
    return transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 12},
            crop_size={"height": 12, "width": 12},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tokenizer(image_token="<image>"),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )


def qwen2_vl() -> Any:
    sizes = {
        "patch_size": 4,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 8 * 8 * 6, "longest_edge": 8 * 8 * 64},
    }
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        video_processor=transformers.Qwen2VLVideoProcessor(**sizes),
        tokenizer=tokenizer(
            image_token="<image>",
            video_token="<video>",
            vision_bos_token="<open>",
            vision_eos_token="<close>",
        ),
        chat_template=template("<open> <image> <close>"),
    )


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": qwen2_vl,
}


def save(family: str, folder: Path) -> Path:
    """The family's tiny model and its processor in `folder`."""
    model = FAMILIES[family].build()
    model.generation_config.update(eos_token_id=EOS)
    model.save_pretrained(folder)
    PROCESSORS[family]().save_pretrained(folder)
    return folder
