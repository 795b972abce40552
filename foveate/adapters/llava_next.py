"""LLaVA-NeXT: a base view, then the unpadded tile mosaic whose rows end in a newline token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.adapters.base import Layout
from foveate.adapters.llava import Llava
from foveate.compressor import Grid


class LlavaNext(Llava):
    """`LlavaNextForConditionalGeneration`. Newline tokens are no visual slots and always stay."""

    model_types = ("llava_next",)

    def tiles(self, kwargs: dict[str, Any]) -> list[int]:
        """Tiles of each image, the base view included."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        vision = self.config.vision_config
        return [
            image_size_to_num_patches(size, self.config.image_grid_pinpoints, vision.image_size)
            for size in kwargs["image_sizes"]
        ]

    def pack(self, coordinates: list[Tensor], kwargs: dict[str, Any]) -> list[Tensor]:
        """The model's own packing, applied to coordinates instead of features."""
        packed, _ = self.base.pack_image_features(
            coordinates,
            kwargs["image_sizes"],
            vision_feature_select_strategy="default",
            image_newline=torch.full((coordinates[0].shape[-1],), -1.0, dtype=torch.float64),
        )
        return list(packed)

    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        counts = self.tiles(kwargs)
        per_tile = self.side * self.side
        coordinates: list[Tensor] = []
        for count in counts:
            # Channel 0: base view (0) or mosaic (1); channels 1, 2: row and column within it.
            # Where the model interpolates, linear coordinates come out as the sampled place.
            base = torch.cat([torch.zeros(self.side, self.side, 1), _rows_columns(self.side)], -1)
            tiles = [base.reshape(1, per_tile, 3)]
            if count > 1:
                tiles.append(self._mosaic(kwargs, len(coordinates), count - 1))
            coordinates.append(torch.cat(tiles).double())
        layouts, tile = [], 0
        for index, packed in enumerate(self.pack(coordinates, kwargs)):
            wide = self._mosaic_shape(kwargs, index)[1] if counts[index] > 1 else 1
            layouts.append(self._layout(packed, tile, wide))
            tile += counts[index]
        return layouts

    def _mosaic_shape(self, kwargs: dict[str, Any], index: int) -> tuple[int, int]:
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        size = self.config.vision_config.image_size
        high, wide = get_anyres_image_grid_shape(
            kwargs["image_sizes"][index], self.config.image_grid_pinpoints, size
        )
        return int(high), int(wide)

    def _mosaic(self, kwargs: dict[str, Any], index: int, count: int) -> Tensor:
        """(tiles, patches, 3) coordinates within the whole mosaic."""
        high, wide = self._mosaic_shape(kwargs, index)
        s = self.side
        grid = torch.stack(
            torch.meshgrid(torch.arange(high * s), torch.arange(wide * s), indexing="ij"), -1
        )
        grid = grid.reshape(high, s, wide, s, 2).permute(0, 2, 1, 3, 4)
        grid = grid.reshape(high * wide, s * s, 2)[:count]
        return torch.cat([torch.ones(*grid.shape[:2], 1), grid], -1)

    def _layout(self, packed: Tensor, tile: int, wide: int) -> Layout:
        """The layout of one image from its packed coordinates (L, 3); -1 marks newlines."""
        s, per_tile = self.side, self.side**2
        visual = packed[:, 0] >= 0
        place = packed[visual]
        y, x = place[:, 1], place[:, 2]
        exact = bool((y == y.round()).all() and (x == x.round()).all())
        patches, weights, tiles = [], [], []
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            row, column = y.floor() + dy, x.floor() + dx
            weight = (1 - (y - row).abs()).clamp(min=0) * (1 - (x - column).abs()).clamp(min=0)
            row = torch.where(weight > 0, row, y.floor()).long()
            column = torch.where(weight > 0, column, x.floor()).long()
            here = torch.where(place[:, 0] > 0, 1 + (row // s) * wide + column // s, 0)
            patches.append((tile + here) * per_tile + (row % s) * s + column % s)
            weights.append(weight.float())
            tiles.append(tile + here)
            if exact:
                break
        ids = torch.stack(patches, 1)
        in_base = int((place[:, 0] == 0).sum())
        grids = [Grid(1, s, s)]
        newlines = int((~visual).sum())
        if in_base < len(place):
            grids.append(Grid(1, newlines, (len(place) - in_base) // newlines))
        return Layout(
            grids=tuple(grids),
            visual=visual,
            rows=ids if exact else None,
            patches=ids,
            tile=tiles[0],
            weights=None if exact else torch.stack(weights, 1),
            side=(s, s),
        )


def _rows_columns(side: int) -> Tensor:
    axis = torch.arange(side)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
