"""Model families: one file each. `adapter_for(model)` finds the one that serves a model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from foveate.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import nn

    from foveate.adapters.base import Adapter

TABLE: dict[str, str] = {
    "gemma3": "foveate.adapters.gemma3:Gemma3",
    "idefics3": "foveate.adapters.idefics3:Idefics3",
    "internvl": "foveate.adapters.internvl:InternVL",
    "llava": "foveate.adapters.llava:Llava",
    "llava_next": "foveate.adapters.llava_next:LlavaNext",
    "llava_onevision": "foveate.adapters.llava_onevision:LlavaOnevision",
    "mistral3": "foveate.adapters.mistral3:Mistral3",
    "paligemma": "foveate.adapters.paligemma:PaliGemma",
    "qwen2_5_vl": "foveate.adapters.qwen_vl:Qwen25VL",
    "qwen2_vl": "foveate.adapters.qwen_vl:QwenVL",
    "qwen3_vl": "foveate.adapters.qwen_vl:Qwen3VL",
    "smolvlm": "foveate.adapters.idefics3:Idefics3",
    "video_llava": "foveate.adapters.video_llava:VideoLlava",
}


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter for a model.

    Raises:
        UnsupportedModel: no adapter serves its `config.model_type`.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    where = TABLE.get(model_type)
    if where is None:
        raise UnsupportedModel(type(model).__name__, model_type, TABLE)
    module, _, name = where.partition(":")
    adapter: type[Adapter] = getattr(importlib.import_module(module), name)
    return adapter(model)
