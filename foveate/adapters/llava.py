"""LLaVA-1.5 and its relatives: one fixed raster an image, CLIP with CLS, a two-layer MLP."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from foveate.adapters.base import Adapter, Layout, raster
from foveate.errors import UnsupportedModel


class Llava(Adapter):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    model_types = ("llava",)
    resizable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        vision = self.config.vision_config
        if vision.model_type == "pixtral":
            raise UnsupportedModel(f"{type(model).__name__} with a Pixtral tower", "llava", ())
        self.has_cls = vision.model_type.startswith("clip")
        self.side = vision.image_size // vision.patch_size

    def lead(self, kwargs: dict[str, Any]) -> int:
        """CLS tokens that reach the projector and have a placeholder of their own."""
        strategy = kwargs.get("vision_feature_select_strategy")
        if strategy is None:
            strategy = getattr(self.config, "vision_feature_select_strategy", "default")
        return int(self.has_cls and strategy == "full")

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        side, lead = self.side, self.lead(kwargs)
        return [
            raster(1, side, side, tile=i, start=i * side * side, lead=lead)
            for i in range(len(kwargs["pixel_values"]))
        ]
