"""Fewer tokens inside the vision tower, for the methods that change the tower itself."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import ops
from foveate.adapters.base import Adapter, first_tensor
from foveate.attach.capture import Capture
from foveate.attach.probe import chain
from foveate.compressor import TowerPlan
from foveate.errors import StageNotAvailable

# What is read of every token of the tower, in a `Capture`.
_READ = ("attention", "keys", "wide_attention", "wide_keys")


class TowerEdit:
    """Fewer tokens inside the tower: smaller pictures, or merging between blocks.

    Tiles run as one tensor. Where windows merge, each tile has a number of tokens of its own: the
    shorter ones are filled up by tokens that nobody sees.

    Afterwards the tower's outputs are spread back to the length that the base model expects, so
    that every slot shows the token that stands for it; `Capture.cells` says which one that is.
    """

    def __init__(self, adapter: Adapter, capture: Capture, plans: list[TowerPlan]) -> None:
        self.adapter, self.capture, self.plans = adapter, capture, plans
        self.plan = plans[0]  # the only one where tiles share it
        self.lead = int(adapter.has_cls)
        self.owners: list[Tensor] = []  # after each merge: (t, tokens) index of the new token
        self.lengths: list[int] = []  # how many tokens a tile has then, fillers included
        self.size: Tensor | None = None  # (t, tokens) patches behind each token
        self.metric: Tensor | None = None  # (t, tokens, d) keys of the block that ran last
        self.filler: Tensor | None = None  # (t, tokens) which tokens nobody may see

    def install(self, stack: contextlib.ExitStack, readers: dict[nn.Module, Any]) -> None:
        """Put the hooks on; `stack` takes them off."""
        tower = self.adapter.tower_module(self.capture.modality)
        if self.plan.size is not None and self.capture.layouts[0].side is None:
            pre = tower.register_forward_pre_hook(self._shrink_native, with_kwargs=True)
            post = tower.register_forward_hook(self._spread_native)
            stack.callback(pre.remove)
            stack.callback(post.remove)
        elif self.plan.size is not None:
            pre = tower.register_forward_pre_hook(self._shrink, with_kwargs=True)
            post = tower.register_forward_hook(self._spread_resized)
            stack.callback(pre.remove)
            stack.callback(post.remove)
        if self.plan.merges:
            blocks = self.adapter.blocks(self.capture.modality)
            for index in range(len(blocks)):
                chain(readers, self.adapter.attention(blocks[index]), self._read_keys)
                if 1 <= index <= len(self.plan.merges):
                    merge = functools.partial(self._merge, r=self.plan.merges[index - 1])
                    hook = blocks[index].register_forward_pre_hook(merge, with_kwargs=True)
                    stack.callback(hook.remove)
            stack.callback(tower.register_forward_hook(self._spread_merged).remove)
        if self.plan.windows is not None:
            blocks = self.adapter.blocks(self.capture.modality)
            for block in blocks[1:]:
                chain(readers, self.adapter.attention(block), self._hide_filler)
            hook = blocks[1].register_forward_pre_hook(self._merge_windows, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(tower.register_forward_hook(self._spread_merged).remove)

    # ------------------------------------------------------------------ resizing

    def _raster(self) -> tuple[int, int, int]:
        """Slots high and wide of one tile, and patches along a slot's side."""
        layout = self.capture.layouts[0]
        assert layout.side is not None
        return *layout.side, math.isqrt(layout.patches.shape[1])

    def _shrink(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        assert self.plan.size is not None
        height, width, _ = self._raster()
        h, w = self.plan.size
        kwargs = dict(kwargs)
        named = "pixel_values" in kwargs
        pixels = kwargs.pop("pixel_values") if named else args[0]
        size = (pixels.shape[-2] * h // height, pixels.shape[-1] * w // width)
        small = F.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True)
        small = small.to(pixels.dtype)
        kwargs["interpolate_pos_encoding"] = True
        if named:
            return args, {**kwargs, "pixel_values": small}
        return (small, *args[1:]), kwargs

    def _spread_resized(self, module: nn.Module, args: Any, output: Any) -> Any:
        assert self.plan.size is not None
        height, width, side = self._raster()
        h, w = self.plan.size
        y = torch.arange(height) * h // height
        x = torch.arange(width) * w // width
        # Whole slots are copied, patch for patch, so that a group stays a group.
        inner = torch.arange(side)
        rows = (y[:, None] * side + inner).flatten()
        columns = (x[:, None] * side + inner).flatten()
        index = (rows[:, None] * (w * side) + columns).flatten()
        cells = (y.repeat_interleave(side)[:, None] * w + x.repeat_interleave(side)).flatten()
        tiles = 1 + int(max(layout.tile.max() for layout in self.capture.layouts))
        self.capture.cells = (torch.arange(tiles)[:, None] * (h * w) + cells).flatten()
        self._spread_read(index.expand(tiles, -1))
        self._spread(output, index.expand(tiles, -1))
        return output

    # ------------------------------------------------------------------ native resolution

    def _sizes(self) -> list[tuple[int, int]]:
        return [plan.size for plan in self.plans if plan.size is not None]

    def _shrink_native(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self.adapter.shrink_native(args, kwargs, self._sizes())

    def _spread_native(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Every slot of a picture shows the token of the smaller one that covers it."""
        if any(getattr(self.capture, name) is not None for name in _READ):
            raise StageNotAvailable(
                "What the tower's patches receive cannot be read here of a picture that was made "
                "smaller.\nUse a method that does not read it, or stage 'image' alone."
            )
        indices, start = [], 0
        cells = torch.zeros(sum(part.patches.numel() for part in self.capture.layouts)).long()
        for part, (h, w) in zip(self.capture.layouts, self._sizes(), strict=True):
            grid = part.grids[0]
            frame = torch.arange(grid.frames)[:, None, None] * (h * w)
            y = (torch.arange(grid.height) * h // grid.height)[:, None] * w
            x = torch.arange(grid.width) * w // grid.width
            index = (frame + y + x).flatten() + start
            cells[part.patches] = index[:, None]
            indices.append(index)
            start += grid.frames * h * w
        self.capture.cells = cells
        index = torch.cat(indices)

        def spread(tokens: Tensor) -> Tensor:
            return tokens[index.to(tokens.device)]

        output.pooler_output = spread(output.pooler_output)
        deep = getattr(output, "deepstack_features", None)
        if deep is not None:
            output.deepstack_features = [spread(features) for features in deep]
        return output

    # ------------------------------------------------------------------ merging

    @torch.no_grad()
    def _read_keys(
        self, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Tensor | None:
        self.metric = k.mean(1)
        if self.size is None or not self.plan.proportional:
            return None
        return self.size.log()[:, None, None, :]

    def _merge(self, module: nn.Module, args: Any, kwargs: Any, *, r: int) -> tuple[Any, Any]:
        x = first_tensor(args, kwargs)
        assert self.metric is not None
        size = torch.ones(x.shape[:2], device=x.device) if self.size is None else self.size
        merged, sizes, owners = [], [], []
        for tile in range(len(x)):
            owner = ops.bipartite_matching(self.metric[tile], r, protected=self.lead)
            token, weight = ops.merge_weighted(x[tile], owner, size[tile])
            merged.append(token)
            sizes.append(weight)
            owners.append(owner)
        owner = torch.stack(owners)
        self.owners.append(owner if not self.owners else owner.gather(1, self.owners[-1]))
        self.lengths.append(int(owner.max()) + 1)
        self.size = torch.stack(sizes)
        new = torch.stack(merged)
        if args and args[0] is x:
            return (new, *args[1:]), kwargs
        return args, {name: new if value is x else value for name, value in kwargs.items()}

    def _merge_windows(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        x, plan = first_tensor(args, kwargs), self.plan.windows
        assert plan is not None
        height, width, _ = self._raster()
        merged, owners = [], []
        for tile in x:
            owner = ops.alike_windows(
                tile[self.lead :], height, width, plan.side, plan.least, plan.most
            )
            owner = torch.cat([torch.arange(self.lead, device=x.device), owner + self.lead])
            merged.append(
                ops.merge_weighted(tile, owner, torch.ones(len(tile), device=x.device))[0]
            )
            owners.append(owner)
        counts = torch.tensor([len(tokens) for tokens in merged])
        longest, shortest = int(counts.max()), int(counts.min())
        # States from before and after the merge are told apart by their length (`_spread`).
        longest += shortest < longest == x.shape[1]
        self.owners.append(torch.stack(owners))
        self.lengths.append(longest)
        self.capture.alive = torch.arange(longest) < counts[:, None]
        if shortest < longest:
            self.filler = ~self.capture.alive
        new = torch.stack([torch.cat([t, t[-1:].expand(longest - len(t), -1)]) for t in merged])
        if args and args[0] is x:
            return (new, *args[1:]), kwargs
        return args, {name: new if value is x else value for name, value in kwargs.items()}

    def _hide_filler(
        self, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Tensor | None:
        if self.filler is None:
            return None
        hidden = self.filler.to(k.device)[:, None, None, :]
        return torch.zeros_like(hidden, dtype=k.dtype).masked_fill(hidden, torch.finfo(k.dtype).min)

    def _spread_merged(self, module: nn.Module, args: Any, output: Any) -> Any:
        final = self.owners[-1]
        tiles = len(final)
        distinct = int(final.max()) + 1
        offset = torch.arange(tiles, device=final.device)[:, None] * distinct
        self.capture.cells = (final[:, self.lead :] + offset).flatten().cpu()
        self._spread_read(final[:, self.lead :] - self.lead)
        self._spread(output, None)
        return output

    # ------------------------------------------------------------------ both

    def _spread_read(self, owner: Tensor) -> None:
        """Bring what was read of the tower's tokens to every patch behind them.

        Args:
            owner: (t, patches) which of its tile's tokens, CLS apart, stands for each patch.
        """
        counts = owner.amax(1) + 1
        index = (owner + (counts.cumsum(0) - counts)[:, None]).flatten()
        for name in _READ:
            values = getattr(self.capture, name)
            if values is not None:
                setattr(self.capture, name, values[index.to(values.device)])

    def _spread(self, output: Any, index: Tensor | None) -> None:
        """Bring every token sequence of a tower output back to its full length, in place."""
        lengths = {}
        if index is None:
            lengths = dict(zip(self.lengths, self.owners, strict=True))
            full = self.owners[0].shape[1]
        else:
            lead = torch.arange(self.lead).expand(len(index), -1)
            index = torch.cat([lead, index + self.lead], 1)
            full = index.shape[1]

        def spread(x: Tensor) -> Tensor:
            if x.shape[1] == full:
                return x
            where = (lengths[x.shape[1]] if index is None else index).to(x.device)
            return x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))

        if getattr(output, "last_hidden_state", None) is not None:
            output.last_hidden_state = spread(output.last_hidden_state)
        if getattr(output, "hidden_states", None) is not None:
            # Recent releases keep only the states that are read, None for the others.
            output.hidden_states = tuple(
                None if x is None else spread(x) for x in output.hidden_states
            )
