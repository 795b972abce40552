"""Tiny random models of the real transformers classes, with the inputs their processors would give.

family = FAMILIES["llava_next"]
model = family.build(attn="eager", dtype=torch.float64)
batch = family.batch(seed=1, padding="right", images_per_row=[2, 0])
model(**batch.inputs)
"""

from __future__ import annotations

from tests.families.family import Family
from tests.families.llava import (
    collate_onevision,
    collate_pixels,
    collate_tiles,
    collate_video_llava,
    llava_image,
    llava_next_image,
    llava_onevision_image,
    llava_onevision_video,
    make_llava,
    make_llava_gqa,
    make_llava_next,
    make_llava_onevision,
    make_video_llava,
    video_llava_video,
)
from tests.families.others import (
    collate_idefics,
    collate_joined_pixels,
    collate_sized,
    gemma3_image,
    idefics_image,
    internvl_image,
    make_gemma3,
    make_idefics3,
    make_internvl,
    make_mistral3,
    make_paligemma,
    make_paligemma2,
    make_smolvlm,
    mistral3_image,
)
from tests.families.qwen import (
    collate_qwen,
    make_qwen2_5_vl,
    make_qwen2_vl,
    make_qwen3_vl,
    qwen2_5_video,
    qwen2_video,
    qwen3_video,
    qwen_image,
)


def _families() -> dict[str, Family]:
    mm = ("mm_token_type_ids", "mm")
    families = [
        Family("llava", make_llava, llava_image, collate_pixels),
        Family("llava_gqa", make_llava_gqa, llava_image, collate_pixels),
        Family("llava_next", make_llava_next, llava_next_image, collate_tiles),
        Family(
            "llava_onevision",
            make_llava_onevision,
            llava_onevision_image,
            collate_onevision,
            video=llava_onevision_video,
        ),
        Family("qwen2_vl", make_qwen2_vl, qwen_image, collate_qwen, qwen2_video, mm),
        Family("qwen2_5_vl", make_qwen2_5_vl, qwen_image, collate_qwen, qwen2_5_video, mm),
        Family("qwen3_vl", make_qwen3_vl, qwen_image, collate_qwen, qwen3_video, mm),
        Family("internvl", make_internvl, internvl_image, collate_joined_pixels),
        Family("idefics3", make_idefics3, idefics_image, collate_idefics),
        Family("smolvlm", make_smolvlm, idefics_image, collate_idefics),
        Family(
            "gemma3",
            make_gemma3,
            gemma3_image,
            collate_pixels,
            token_types=("token_type_ids", "image"),
        ),
        Family(
            "paligemma",
            make_paligemma,
            llava_image,
            collate_pixels,
            token_types=("token_type_ids", "prefix"),
            image_first=True,
        ),
        Family(
            "paligemma2",
            make_paligemma2,
            llava_image,
            collate_pixels,
            token_types=("token_type_ids", "prefix"),
            image_first=True,
        ),
        Family("mistral3", make_mistral3, mistral3_image, collate_sized),
        Family(
            "video_llava", make_video_llava, llava_image, collate_video_llava, video_llava_video
        ),
    ]
    return {family.name: family for family in families}


FAMILIES = _families()
VIDEO_FAMILIES = {name: family for name, family in FAMILIES.items() if family.video is not None}
