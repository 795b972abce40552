"""Idefics3 and SmolVLM: tiles separated by text tokens, a global view last, pixel shuffle."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.adapters.base import Adapter, Layout, raster


class Idefics3(Adapter):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`.

    The tokens between tiles (row and column marks) are text and stay. A picture's last tile is
    its global view, announced by a token of its own; that is how tiles are told apart.
    """

    model_types = ("idefics3", "smolvlm")
    tower_path = {"image": "vision_model"}  # noqa: RUF012
    projector_path = "connector"
    language_path = "text_model"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        vision = self.config.vision_config
        self.patch = vision.patch_size
        self.scale = self.config.scale_factor

    def tower(self, modality: str) -> nn.Module:
        return self.tower_module(modality)

    def selected_block(self, modality: str) -> int:
        return len(self.blocks(modality)) - 1

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        pixels = kwargs["pixel_values"]
        real = int((pixels.flatten(0, 1) != 0).flatten(1).any(1).sum())
        s, k = pixels.shape[-1] // self.patch, self.scale
        ids = torch.arange(s * s).reshape(1, s * s, 1)
        patches = self.projector.pixel_shuffle(ids, k).reshape(-1, k * k)  # type: ignore[operator]
        layouts = []
        for tile in range(real):
            plain = raster(1, s // k, s // k, tile=tile, start=0)
            rows = patches + tile * s * s
            layouts.append(
                Layout(
                    grids=plain.grids,
                    visual=plain.visual,
                    rows=rows,
                    patches=rows,
                    tile=plain.tile,
                    side=plain.side,
                )
            )
        return layouts

    def group(self, ids: list[int], starts: list[int], sizes: list[int]) -> list[int]:
        if not starts:
            return []
        # The last tile of a prompt is always a global view, so the token before it is its mark.
        mark = ids[starts[-1] - 1]
        image, images = 0, []
        for start in starts:
            images.append(image)
            image += ids[start - 1] == mark
        return images

    def project(self, rows: Float[Tensor, "m r c"]) -> Float[Tensor, "m d"]:
        projector: Any = self.projector
        out: Tensor = projector.modality_projection(rows.flatten(1))
        return out
