"""InternVL: tiles of one picture in one run of placeholders, pixel shuffle before the projector."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.adapters.base import Adapter, Layout, raster
from foveate.compressor import Grid


class InternVL(Adapter):
    """`InternVLForConditionalGeneration`.

    The model is not told how the tiles of a picture were cut, so each tile is a raster of its
    own that shows an unknown part of the image; the last of several is the thumbnail.
    """

    model_types = ("internvl",)
    blocks_path = "encoder.layer"
    attention_path = "attention"
    has_cls = True
    resizable: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        vision = self.config.vision_config
        self.height, self.width = (
            size // patch for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        self.shuffle = round(1 / self.config.downsample_ratio)

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        h, w, s = self.height, self.width, self.shuffle
        ids = torch.arange(h * w).reshape(1, h, w, 1)
        # Push patch numbers through the model's own pixel shuffle: its order is its business.
        ids = self.base.pixel_shuffle(ids, scale_factor=self.config.downsample_ratio)
        patches = ids.reshape(-1, s * s)
        n = len(patches)
        layouts = []
        for tile in range(len(kwargs["pixel_values"])):
            plain = raster(1, h // s, w // s, tile=tile, start=0, grid=Grid(1, h // s, w // s))
            layouts.append(
                Layout(
                    grids=plain.grids,
                    visual=plain.visual,
                    rows=torch.arange(n)[:, None] + tile * n,
                    patches=patches + tile * h * w,
                    tile=plain.tile,
                    side=plain.side,
                )
            )
        return layouts

    def group(self, ids: list[int], starts: list[int], sizes: list[int]) -> list[int]:
        image, end, images = -1, -1, []
        for start, size in zip(starts, sizes, strict=True):
            image += start != end  # tiles of one picture follow each other without a gap
            images.append(image)
            end = start + size
        return images

    def tower_tokens(self, output: Any) -> Tensor:
        return super().tower_tokens(output)
