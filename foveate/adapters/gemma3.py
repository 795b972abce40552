"""Gemma 3: SigLIP, average pooling inside the projector, sliding-window layers."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from foveate.adapters.base import Adapter, Layout, raster


class Gemma3(Adapter):
    """`Gemma3ForConditionalGeneration`; a slot is the mean of `kernel` x `kernel` patches."""

    model_types = ("gemma3",)
    resizable: ClassVar[bool] = True
    # Before transformers 5.23 the stock model masks a picture beside a cache wrongly.
    later_pictures: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        vision = self.config.vision_config
        self.side = vision.image_size // vision.patch_size
        self.kernel = int(self.side // self.config.mm_tokens_per_image**0.5)

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        side = self.side
        return [
            raster(1, side, side, tile=i, start=i * side * side, group=self.kernel)
            for i in range(len(kwargs["pixel_values"]))
        ]

    def project(self, rows: Float[Tensor, "m r c"]) -> Float[Tensor, "m d"]:
        projector: Any = self.projector
        normed = projector.mm_soft_emb_norm(rows.mean(1))
        out: Tensor = (normed @ projector.mm_input_projection_weight).type_as(rows)
        return out

    def rotations(self, layer: int, hidden: Tensor, ids: Tensor) -> Any:
        kind = self.language.config.layer_types[layer]
        return self.language.rotary_emb(hidden, ids, kind)
