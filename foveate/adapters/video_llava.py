"""Video-LLaVA: two towers; a video's frames keep their CLS tokens as placeholders."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from foveate.adapters.base import Layout, raster
from foveate.adapters.llava import Llava


class VideoLlava(Llava):
    """`VideoLlavaForConditionalGeneration`, images and videos.

    Frames reach the language model with their CLS token first. It is no patch: it always stays
    and is counted among the special tokens.
    """

    model_types = ("video_llava",)
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    tower_path = {"image": "image_tower", "video": "video_tower"}  # noqa: RUF012

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.has_cls = True

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        side = self.side
        if modality == "image":
            pixels = kwargs.get("pixel_values")
            if pixels is None:
                pixels = kwargs["pixel_values_images"]
            return super().layouts(modality, {**kwargs, "pixel_values": pixels})
        videos, frames = kwargs["pixel_values_videos"].shape[:2]
        return [
            raster(frames, side, side, tile=v * frames, start=v * frames * side**2, lead=1)
            for v in range(videos)
        ]
