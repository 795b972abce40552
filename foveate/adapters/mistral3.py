"""Mistral 3: a Pixtral tower that packs pictures of any size, patches merged by a linear layer."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.adapters.base import Adapter, Layout, raster


class Mistral3(Adapter):
    """`Mistral3ForConditionalGeneration`. Row-break tokens are text and stay."""

    model_types = ("mistral3",)
    blocks_path = "transformer.layers"
    attention_path = "attention"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.patch = self.config.vision_config.patch_size
        self.merge = self.config.spatial_merge_size

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        layouts, start = [], 0
        for index, (height, width) in enumerate(torch.as_tensor(kwargs["image_sizes"]).tolist()):
            h, w = height // self.patch, width // self.patch
            layouts.append(raster(1, h, w, tile=index, start=start, group=self.merge))
            start += h * w
        return layouts

    def project(self, rows: Float[Tensor, "m r c"]) -> Float[Tensor, "m d"]:
        projector: Any = self.projector
        # The model unfolds channel by channel: (c, r) and not (r, c).
        merged = projector.norm(rows).transpose(1, 2).flatten(1)
        merged = projector.patch_merger.merging_layer(merged)
        out: Tensor = projector.linear_2(projector.act(projector.linear_1(merged)))
        return out
