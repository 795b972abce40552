"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: native resolution, merged 2 x 2 patches, M-RoPE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from foveate.adapters.base import Adapter, Layout
from foveate.compressor import Grid


class QwenVL(Adapter):
    """`Qwen2VLForConditionalGeneration`, images and videos.

    The processor already orders patches so that the four of a slot follow each other.
    """

    model_types = ("qwen2_vl",)
    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    tower_path = {"image": "visual", "video": "visual"}  # noqa: RUF012
    blocks_path = "blocks"
    attention_path = "attn"
    projector_path = "visual.merger"
    resizable: ClassVar[bool] = True
    # The stock models cannot number a new picture's positions beside a cache.
    later_pictures: ClassVar[bool] = False

    def tower(self, modality: str) -> Any:
        return self.tower_module(modality)

    def selected_block(self, modality: str) -> int:
        return len(self.blocks(modality)) - 1

    def order(self, thw: Tensor) -> Tensor | None:
        """(n,) which group of four tower tokens makes each slot; None if slot i is group i."""
        del thw
        return None

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        thw = torch.as_tensor(kwargs[f"{modality}_grid_thw"])
        merge = int(self.config.vision_config.spatial_merge_size)
        order = self.order(thw)
        layouts, start = [], 0
        for index, (t, h, w) in enumerate(thw.tolist()):
            n = t * h * w // merge**2
            groups = torch.arange(start, start + n)
            if order is not None:
                groups = order[start : start + n]
            rows = groups[:, None] * merge**2 + torch.arange(merge**2)
            layouts.append(
                Layout(
                    grids=(Grid(t, h // merge, w // merge),),
                    visual=torch.ones(n, dtype=torch.bool),
                    rows=rows,
                    patches=rows,
                    tile=torch.full((n,), index),
                    side=None,
                )
            )
            start += n
        return layouts

    def turned_ones(
        self, rotations: tuple[Float[Tensor, "... b s d"], Float[Tensor, "... b s d"]]
    ) -> Float[Tensor, "b s d"]:
        if rotations[0].ndim == 4:  # older releases pick each section's row inside the layer
            sections = self.config.get_text_config().rope_parameters["mrope_section"] * 2
            cos, sin = (
                torch.cat([p[i % 3] for i, p in enumerate(part.split(sections, -1))], -1)
                for part in rotations
            )
            rotations = cos, sin
        return super().turned_ones(rotations)

    def project(self, rows: Float[Tensor, "m r c"]) -> Float[Tensor, "m d"]:
        out: Tensor = self.projector(rows.flatten(0, 1))
        return out

    def shrink_native(
        self, args: Any, kwargs: Any, sizes: list[tuple[int, int]]
    ) -> tuple[Any, Any]:
        vision = self.config.vision_config
        merge, side = int(vision.spatial_merge_size), int(vision.patch_size)
        depth = int(vision.temporal_patch_size)
        patches, thw = args[0] if args else kwargs["hidden_states"], kwargs["grid_thw"]
        small, grids, start = [], [], 0
        for (t, h, w), (high, wide) in zip(thw.tolist(), sizes, strict=True):
            one = patches[start : start + t * h * w]
            start += t * h * w
            frames = _frames_of(one, t, h // merge, w // merge, merge, depth, side)
            size = (high * merge * side, wide * merge * side)
            frames = F.interpolate(frames.float(), size=size, mode="bicubic", antialias=True)
            small.append(_patches_of(frames.to(one.dtype), t, high, wide, merge, depth, side))
            grids.append([t, high * merge, wide * merge])
        kwargs = {**kwargs, "grid_thw": torch.tensor(grids, device=thw.device, dtype=thw.dtype)}
        if args:
            return (torch.cat(small), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": torch.cat(small)}


class Qwen25VL(QwenVL):
    """`Qwen2_5_VLForConditionalGeneration`: tower tokens are sorted by attention window."""

    model_types = ("qwen2_5_vl",)

    def order(self, thw: Tensor) -> Tensor | None:
        visual = self.base.visual
        if hasattr(visual, "get_window_index"):  # up to transformers 5.1x
            index = visual.get_window_index(thw)[0]
        else:
            from transformers.vision_utils import get_vision_window_index

            index = get_vision_window_index(
                thw.cpu(), visual.spatial_merge_size, visual.window_size, visual.patch_size
            )[0]
        return torch.argsort(torch.as_tensor(index).cpu())


class Qwen3VL(QwenVL):
    """`Qwen3VLForConditionalGeneration`: DeepStack features enter the first decoder layers."""

    model_types = ("qwen3_vl",)


def _frames_of(
    patches: Float[Tensor, "p v"], t: int, h: int, w: int, merge: int, depth: int, side: int
) -> Float[Tensor, "f 3 y x"]:
    """Frames (t depth, 3, y, x) from patches in the processor's order; h, w in slots."""
    x = patches.reshape(t, h, w, merge, merge, -1, depth, side, side)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
    return x.reshape(t * depth, -1, h * merge * side, w * merge * side)


def _patches_of(
    frames: Float[Tensor, "f 3 y x"], t: int, h: int, w: int, merge: int, depth: int, side: int
) -> Float[Tensor, "p v"]:
    """The inverse of `_frames_of`."""
    x = frames.reshape(t, depth, -1, h, merge, side, w, merge, side)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w * merge**2, -1)
