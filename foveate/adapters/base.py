"""Where things are in a model family, and what can be read there. The only place for such facts.

An adapter answers four questions: which modules are the decoder, the vision tower and the
projector; which placeholder ids are visual; how the slots of an image are laid out (`Layout`);
and how rows of encoder output are projected. It knows no method and changes nothing.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping as Table
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveate.compressor import Grid, TowerPlan
from foveate.errors import StageNotAvailable, UnsupportedModel


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The placeholders of one image or video, in prompt order.

    L placeholders, n of them visual slots, the others newline or CLS tokens that always stay.

    Attributes:
        grids: the rasters that the n slots form, in slot order.
        visual: (L,) True where the placeholder is a visual slot.
        rows: (n, r) the rows of the projector's input that make each slot, flattened over the
            whole call; None where a slot is interpolated between projected rows, so that no
            mapping can act before the projector.
        patches: (n, g) the tower tokens behind each slot, flattened over the whole call without
            CLS; scores and keys are read through them.
        weights: (n, g) their weights, summing to one; None for equal ones.
        tile: (n,) which tile (or frame) of the call each slot lies in.
        side: placeholder raster of one tile, (height, width) in slots; None if tiles differ.
    """

    grids: tuple[Grid, ...]
    visual: torch.Tensor
    rows: Int[Tensor, "n r"] | None
    patches: Int[Tensor, "n g"]
    tile: Int[Tensor, " n"]
    weights: Float[Tensor, "n g"] | None = None
    side: tuple[int, int] | None = None

    @property
    def length(self) -> int:
        """L, the number of placeholders."""
        return len(self.visual)

    @property
    def n(self) -> int:
        """The number of visual slots."""
        return len(self.patches)

    def pool(self, values: Float[Tensor, "p *d"]) -> Float[Tensor, "n *d"]:
        """Per-patch values of the whole call, read at this image's slots (weighted mean)."""
        picked = values[self.patches.to(values.device)]
        if self.patches.shape[1] == 1:
            return picked[:, 0]
        if self.weights is None:
            return picked.float().mean(1).to(values.dtype)
        w = self.weights.to(values.device).float()
        w = w.reshape(*w.shape, *[1] * (picked.ndim - 2))
        return (picked.float() * w).sum(1).to(values.dtype)

    def project_rows(self, projected: Float[Tensor, "L d"]) -> Float[Tensor, "n d"]:
        """Of the image's placeholder embeddings (L, d), those of its slots."""
        return projected[self.visual.to(projected.device)]


def join(layouts: Sequence[Layout]) -> Layout:
    """Several tiles of one image as one layout."""
    if len(layouts) == 1:
        return layouts[0]
    rows = [part.rows for part in layouts if part.rows is not None]
    return Layout(
        grids=tuple(g for part in layouts for g in part.grids),
        visual=torch.cat([part.visual for part in layouts]),
        rows=torch.cat(rows) if len(rows) == len(layouts) else None,
        patches=torch.cat([part.patches for part in layouts]),
        tile=torch.cat([part.tile for part in layouts]),
        side=layouts[0].side,
    )


def raster(
    count: int,
    height: int,
    width: int,
    *,
    tile: int,
    start: int,
    group: int = 1,
    lead: int = 0,
    grid: Grid | None = None,
) -> Layout:
    """`count` tiles of height x width patches, `group` x `group` of them a slot, raster order.

    Args:
        count: tiles (frames) that belong to this image.
        height, width: patches of one tile.
        tile: number of the first tile within the call.
        start: row number of the first patch within the call.
        group: patches merged along each side.
        lead: tokens in front of each tile's patches that the projector sees too (CLS).
        grid: the raster to report; one grid with `count` frames if None.
    """
    h, w = height // group, width // group
    ids = torch.arange(count * height * width).reshape(count, h, group, w, group)
    ids = ids.permute(0, 1, 3, 2, 4).reshape(count * h * w, group * group)
    per_tile = height * width
    tiles = ids[:, 0] // per_tile
    rows = ids + (tiles[:, None] + 1) * lead + start + tile * lead
    visual = torch.ones(count, lead + h * w, dtype=torch.bool)
    visual[:, :lead] = False
    return Layout(
        grids=(grid or Grid(count, h, w),),
        visual=visual.flatten(),
        rows=rows,
        patches=ids + start,
        tile=tiles + tile,
        side=(h, w),
    )


class Adapter(abc.ABC):
    """Facts about one model instance. Subclasses serve one family each.

    Class attributes:
        model_types: the `config.model_type` values served.
        modalities: which of ``"image"`` and ``"video"`` the family takes.
        tower_path: where the vision tower is, relative to the multimodal base model.
        blocks_path: where its blocks are, relative to the tower.
        attention_path: where a block's self-attention is.
        projector_path: the module whose input is the encoder output and whose output is what
            the language model receives.
        language_path: where the inner language model is.
        decoder_attention_path, decoder_norm_path: where a decoder layer's self-attention is, and
            the norm in front of it.
        decoder_output_path: the output projection of a decoder layer's self-attention, in it.
        has_cls: whether the tower puts a CLS token first.
        resizable: whether the tower takes smaller pictures, by `interpolate_pos_encoding` or
            through `shrink_native`.
        later_turns: whether the model may go on from a cache with more text.
        later_pictures: whether it may do so with a new picture.
        mergeable: whether tokens can be merged between its blocks: one patch a slot, and one
            rectangular sequence a tile.
        answer_type: `token_type_ids` of an answer's tokens, where the model takes them.
    """

    model_types: ClassVar[tuple[str, ...]]
    modalities: ClassVar[tuple[str, ...]] = ("image",)
    tower_path: ClassVar[Table[str, str]] = {"image": "vision_tower", "video": "vision_tower"}
    blocks_path: ClassVar[str] = "encoder.layers"
    attention_path: ClassVar[str] = "self_attn"
    projector_path: ClassVar[str] = "multi_modal_projector"
    language_path: ClassVar[str] = "language_model"
    decoder_attention_path: ClassVar[str] = "self_attn"
    decoder_norm_path: ClassVar[str] = "input_layernorm"
    decoder_output_path: ClassVar[str] = "o_proj"
    has_cls: bool = False
    resizable: ClassVar[bool] = False
    later_turns: ClassVar[bool] = True
    later_pictures: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    answer_type: ClassVar[int] = 0

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config: Any = model.config
        base = getattr(model, "model", model)
        self.base: Any = base
        self.language: Any = base.get_submodule(self.language_path)

    # ------------------------------------------------------------------ modules

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        layers: nn.ModuleList = self.language.layers
        return layers

    def decoder_attention(self, layer: int) -> nn.Module:
        """The self-attention module of a decoder layer."""
        found: nn.Module = self.decoder_layers[layer].get_submodule(self.decoder_attention_path)
        return found

    def decoder_norm(self, layer: int) -> nn.Module:
        """The norm in front of a decoder layer's self-attention."""
        found: nn.Module = self.decoder_layers[layer].get_submodule(self.decoder_norm_path)
        return found

    def decoder_output(self, layer: int) -> nn.Module:
        """The output projection of a decoder layer's self-attention."""
        return self.decoder_attention(layer).get_submodule(self.decoder_output_path)

    def rotations(self, layer: int, hidden: Tensor, ids: Tensor) -> Any:
        """Cos and sin that a decoder layer applies to tokens at these position ids.

        Args:
            layer: the layer.
            hidden: any states on the right device and of the right dtype.
            ids: (b, s), or (3, b, s) with M-RoPE.
        """
        return self.language.rotary_emb(hidden, ids)

    def turned_ones(
        self, rotations: tuple[Float[Tensor, "... b s d"], Float[Tensor, "... b s d"]]
    ) -> Float[Tensor, "b s d"]:
        """What a decoder layer makes of a query or key of ones: dimension i turns with i + d / 2.

        Args:
            rotations: the layer's cos and sin, (b, s, d).
        """
        cos, sin = rotations
        upper = torch.arange(cos.shape[-1], device=cos.device) >= cos.shape[-1] // 2
        return torch.where(upper, cos + sin, cos - sin)

    def tower(self, modality: str) -> nn.Module:
        """The vision tower that encodes this modality."""
        tower: nn.Module = self.base.get_submodule(self.tower_path[modality])
        # CLIP and SigLIP wrap their transformer once more in some releases.
        return getattr(tower, "vision_model", tower)

    def tower_module(self, modality: str) -> nn.Module:
        """The tower as the base model calls it."""
        tower: nn.Module = self.base.get_submodule(self.tower_path[modality])
        return tower

    def blocks(self, modality: str) -> Sequence[nn.Module]:
        """The tower's transformer blocks."""
        blocks: Any = self.tower(modality).get_submodule(self.blocks_path)
        return list(blocks)

    def attention(self, block: nn.Module) -> nn.Module:
        """A tower block's attention module."""
        return block.get_submodule(self.attention_path)

    @property
    def projector(self) -> nn.Module:
        """The module whose input rows are the encoder output."""
        projector: nn.Module = self.base.get_submodule(self.projector_path)
        return projector

    def selected_block(self, modality: str) -> int:
        """Index of the block whose output the projector reads."""
        count = len(self.blocks(modality))
        layer = getattr(self.config, "vision_feature_layer", -1)
        if isinstance(layer, list | tuple):
            layer = layer[-1]
        return count + layer if layer < 0 else layer - 1

    # ------------------------------------------------------------------ prompt

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """Modality -> id of its placeholder token."""
        found = {}
        for modality in self.modalities:
            for name in (f"{modality}_token_id", f"{modality}_token_index"):
                value = getattr(self.config, name, None)
                if value is not None:
                    found[modality] = int(value)
                    break
        return found

    def group(self, ids: list[int], starts: list[int], sizes: list[int]) -> list[int]:
        """Which image each of the consecutive tiles of one row belongs to.

        Args:
            ids: the row's token ids.
            starts: index in `ids` of each tile's first placeholder.
            sizes: each tile's number of placeholders.

        Returns:
            One image number a tile, ascending. By default every layout is an image of its own.
        """
        del ids, sizes
        return list(range(len(starts)))

    # ------------------------------------------------------------------ geometry and maths

    @abc.abstractmethod
    def layouts(self, modality: str, kwargs: dict[str, Any]) -> list[Layout]:
        """One layout for each image (or tile, see `group`) of a `get_*_features` call.

        Args:
            modality: ``"image"`` or ``"video"``.
            kwargs: the call's arguments by name.
        """

    def project(self, rows: Float[Tensor, "m r c"]) -> Float[Tensor, "m d"]:
        """Projected tokens made from m slots' encoder rows; r rows a slot.

        Equal to what the model's own projector gives for those slots.
        """
        out: Tensor = self.projector(rows.flatten(0, 1)[None])
        return out.reshape(-1, out.shape[-1])

    def tower_tokens(self, output: Any) -> Tensor:
        """The (t, tokens, c) sequence in a tower block's output."""
        tensor: Tensor = output[0] if isinstance(output, tuple) else output
        return tensor if tensor.ndim == 3 else tensor[None]

    def shrink_native(
        self, args: Any, kwargs: Any, sizes: list[tuple[int, int]]
    ) -> tuple[Any, Any]:
        """Arguments of a native-resolution tower with each picture at `sizes` (in slots)."""
        raise NotImplementedError("towers of fixed tiles are shrunk through their pixel values")

    def check_tower_plan(self, plan: TowerPlan) -> None:
        """Raise StageNotAvailable unless this family's tower can be changed as planned."""
        if plan.size is not None and not self.resizable:
            raise StageNotAvailable(
                f"The vision tower of {self.config.model_type!r} takes no smaller pictures here, "
                "so stage 'image' is not available.\nResize the image before the processor."
            )
        if (plan.merges or plan.windows is not None) and not self.mergeable:
            raise StageNotAvailable(
                f"The vision tower of {self.config.model_type!r} cannot merge tokens between its "
                "blocks, so stage 'encoder' is not available.\nUse a method that acts at "
                "'vision' or 'input'; 'foveate list' shows stages."
            )


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor among a module call's arguments: the hidden states, however passed."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UnsupportedModel("a module without a tensor argument", "?", ())
