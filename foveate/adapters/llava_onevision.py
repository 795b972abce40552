"""LLaVA-OneVision: SigLIP tiles packed as in LLaVA-NeXT, shrunk above a maximum; pooled videos."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.adapters.base import Layout
from foveate.adapters.llava_next import LlavaNext, _rows_columns
from foveate.compressor import Grid


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`, images and videos.

    Above its maximum (`anyres_max_9`) the model interpolates projected tokens, and videos are
    pooled the same way: there a mapping acts after the projector, on the tokens as they are.
    """

    model_types = ("llava_onevision",)
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")

    def tiles(self, kwargs: dict[str, Any]) -> list[int]:
        counts = super().tiles(kwargs)
        per_sample = kwargs.get("batch_num_images")
        if per_sample is None:
            return counts
        # Several images in a prompt are not cut into tiles.
        single = [int(n) == 1 for n in per_sample for _ in range(int(n))]
        return [count if alone else 1 for count, alone in zip(counts, single, strict=True)]

    def pack(self, coordinates: list[Tensor], kwargs: dict[str, Any]) -> list[Tensor]:
        ratio = kwargs.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        packed, _ = self.base.pack_image_features(
            coordinates,
            kwargs["image_sizes"],
            image_newline=torch.full((3,), -1.0, dtype=torch.float64),
            vision_aspect_ratio=ratio,
        )
        return list(packed)

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        if modality == "image":
            return super().layouts(modality, kwargs)
        videos, frames = kwargs["pixel_values_videos"].shape[:2]
        s = self.side
        flat = torch.cat([torch.zeros(s, s, 1), _rows_columns(s)], -1).reshape(1, s * s, 3)
        pooled = self.base.apply_pooling(flat.double())[0]
        half = -(-s // 2)
        one = self._layout(pooled, 0, 1)
        shift = torch.arange(frames)[:, None, None]
        layouts = []
        for video in range(videos):
            offset = shift + video * frames
            layouts.append(
                Layout(
                    grids=(Grid(frames, half, half),),
                    visual=torch.tensor([True] * (frames * half * half) + [False]),
                    rows=None,
                    patches=(one.patches[None] + offset * s * s).flatten(0, 1),
                    tile=offset.expand(-1, half * half, 1).flatten(),
                    weights=None if one.weights is None else one.weights.repeat(frames, 1),
                    side=None,
                )
            )
        return layouts
