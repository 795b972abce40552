"""The vision side: what is read while the tower runs, kept until the language model starts.

A model may encode its images long before the prompt's forward pass (generate does). Nothing is
therefore decided here: a `Capture` records one `get_image_features` or `get_video_features`
call - geometry, projector input, scores - and the decision is taken where the language model
begins. Only methods that change the tower itself act here, through a `TowerEdit`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import ops
from foveate.adapters.base import Adapter, Layout, first_tensor
from foveate.attach.probe import attention_received, attention_rows, probed, visible_keys
from foveate.compressor import Reads, TowerMethod, TowerPlan, resolve_keep
from foveate.errors import AttachError, StageNotAvailable

KEPT_CAPTURES = 8  # encoder calls remembered; a prompt needs at most one a modality


@dataclasses.dataclass(eq=False)
class Capture:
    """One call that encoded images or videos.

    Attributes:
        modality: ``"image"`` or ``"video"``.
        layouts: one for each image (or tile) of the call.
        rows: (R, c) input rows of the projector, flattened over the call.
        cls: (t, c) CLS outputs of the selected block, one a tile; None without CLS.
        attention, keys, wide_attention, wide_keys: per tower token (CLS apart), flattened over
            the call; None unless read. See `VisualTokens`.
        cells: per tower token, the distinct tower output behind it; None if the tower is stock.
        seconds: time the call took, measured on the host.
    """

    modality: str
    layouts: list[Layout]
    rows: Tensor | None = None
    cls: Tensor | None = None
    attention: Tensor | None = None
    keys: Tensor | None = None
    wide_attention: Tensor | None = None
    wide_keys: Tensor | None = None
    cells: Tensor | None = None
    seconds: float = 0.0

    @property
    def placeholders(self) -> int:
        """Placeholders that this call's features fill."""
        return sum(layout.length for layout in self.layouts)


class Encoder:
    """Hooks on the vision side of one model.

    Args:
        adapter: the model's adapter.
        reads: what to record beside the projector's input.
        tower: the method that changes the tower, None for all others.
        keep: its budget.
    """

    def __init__(
        self,
        adapter: Adapter,
        reads: frozenset[Reads],
        tower: TowerMethod | None = None,
        keep: int | float | None = None,
    ) -> None:
        self.adapter, self.reads, self.tower, self.keep = adapter, reads, tower, keep
        self.captures: list[Capture] = []

    # ------------------------------------------------------------------ life

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Wrap the base model's encoding calls on this instance; undo it on leaving."""
        base = self.adapter.base
        names = [f"get_{m}_features" for m in self.adapter.modalities]
        wrapped = [name for name in names if hasattr(base, name)]
        try:
            for name in wrapped:
                modality = name.split("_")[1]
                base.__dict__[name] = self._wrap(getattr(base, name), modality)
            yield
        finally:
            for name in wrapped:
                base.__dict__.pop(name, None)

    def _wrap(self, call: Callable[..., Any], modality: str) -> Callable[..., Any]:
        signature = inspect.signature(call)

        @functools.wraps(call)
        def encode(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind_partial(*args, **kwargs).arguments
            bound = {**bound, **bound.pop("kwargs", {})}
            capture = Capture(modality, self.adapter.layouts(modality, bound))
            with contextlib.ExitStack() as stack:
                self._watch(capture, stack)
                out = call(*args, **kwargs)
            if capture.rows is None:
                raise AttachError(
                    f"The projector {self.adapter.projector_path!r} did not run while encoding "
                    f"a {modality}.\nThe adapter for {self.adapter.config.model_type!r} does not "
                    "fit this model."
                )
            self.captures = [*self.captures[1 - KEPT_CAPTURES :], capture]
            return out

        return encode

    # ------------------------------------------------------------------ reading

    def _watch(self, capture: Capture, stack: contextlib.ExitStack) -> None:
        adapter, modality = self.adapter, capture.modality

        def keep_rows(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = first_tensor(args, kwargs)
            capture.rows = x.reshape(-1, x.shape[-1])

        hook = adapter.projector.register_forward_pre_hook(keep_rows, with_kwargs=True)
        stack.callback(hook.remove)

        blocks = adapter.blocks(modality)
        chosen = adapter.selected_block(modality)
        if Reads.CLS in self.reads and adapter.has_cls:

            def keep_cls(module: nn.Module, args: Any, output: Any) -> None:
                capture.cls = adapter.tower_tokens(output)[:, 0]

            stack.callback(blocks[chosen].register_forward_hook(keep_cls).remove)

        readers: dict[nn.Module, Any] = {}
        if self.reads & {Reads.ATTENTION, Reads.KEYS}:
            _chain(readers, adapter.attention(blocks[chosen]), _ScoreReader(capture, adapter))
        if Reads.WIDE in self.reads:
            _chain(readers, adapter.attention(blocks[-1]), _WideReader(capture, adapter))
        plan = self._tower_plan(capture)
        if plan is not None:
            edit = TowerEdit(adapter, capture, plan)
            edit.install(stack, readers)
        if readers:
            stack.enter_context(probed(readers))

    def _tower_plan(self, capture: Capture) -> TowerPlan | None:
        if self.tower is None:
            return None
        layout = capture.layouts[0]
        if layout.side is None or any(part.weights is not None for part in capture.layouts):
            raise StageNotAvailable(
                f"Stage '{self.tower.stage}' needs tiles of one fixed raster; this "
                f"{capture.modality} has none.\nUse a method that acts at 'vision' or 'input'."
            )
        height, width = layout.side
        # Tiles share one plan: the largest share that any image of the call asks for.
        share = max(
            (resolve_keep(1.0 if self.keep is None else self.keep, part.n) / part.n)
            for part in capture.layouts
        )
        target = min(height * width, math.ceil(share * height * width - 1e-9))
        blocks = self.adapter.selected_block(capture.modality)
        plan = self.tower.tower_plan(height, width, max(1, target), blocks)
        self.adapter.check_tower_plan(plan)
        return plan


def _chain(readers: dict[nn.Module, Any], module: nn.Module, reader: Any) -> None:
    """Add a reader to a module that may have one already; biases add up."""
    first = readers.get(module)
    if first is None:
        readers[module] = reader
        return

    def both(*args: Any) -> Tensor | None:
        found = [bias for bias in (first(*args), reader(*args)) if bias is not None]
        return sum(found[1:], found[0]) if found else None

    readers[module] = both


def _sequences(
    q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Each sequence of an attention call as (q (h, n, d), k (h, n, d), mask (1|h, n, n))."""
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is not None:  # several sequences packed into one row
        edges = bounds.tolist()
        for a, b in itertools.pairwise(edges):
            yield q[0, :, a:b], k[0, :, a:b], None
        return
    for row in range(q.shape[0]):
        here = None
        if mask is not None and mask.ndim == 4:
            n = q.shape[2]
            here = visible_keys(mask[row if len(mask) > 1 else 0]).expand(-1, n, -1)
        yield q[row], k[row], here


def _scale(q: Tensor, kwargs: dict[str, Any]) -> float:
    scaling = kwargs.get("scaling")
    return float(q.shape[-1] ** -0.5 if scaling is None else scaling)


class _Accumulate:
    """A reader that appends per-token values to a capture, call after call."""

    def __init__(self, capture: Capture, adapter: Adapter) -> None:
        self.capture, self.lead = capture, int(adapter.has_cls)

    def _append(self, name: str, values: Tensor) -> None:
        old = getattr(self.capture, name)
        setattr(self.capture, name, values if old is None else torch.cat([old, values]))


class _ScoreReader(_Accumulate):
    """Attention received in the selected block (CLS row, or mean over queries), mean keys."""

    @torch.no_grad()
    def __call__(self, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        scale = _scale(q, kwargs)
        for qs, ks, visible in _sequences(q, k, mask, kwargs):
            if self.lead:
                row_mask = None if visible is None else visible[:, :1]
                received = attention_rows(qs[:, :1], ks, scale, row_mask).mean(0)[0]
            else:
                received = attention_received(qs, ks, scale, visible)
            self._append("attention", received[self.lead :])
            self._append("keys", ks.mean(0)[self.lead :])


class _WideReader(_Accumulate):
    """softmax(q k^T / sqrt(c)) of the last block with heads not split (PruMerge)."""

    @torch.no_grad()
    def __call__(self, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        for qs, ks, visible in _sequences(q, k, mask, kwargs):
            wide_q = qs.transpose(0, 1).flatten(1)
            wide_k = ks.transpose(0, 1).flatten(1)
            scale = wide_k.shape[1] ** -0.5
            if self.lead:
                row_mask = None if visible is None else visible[:1, :1]
                received = attention_rows(wide_q[None, :1], wide_k[None], scale, row_mask)[0, 0]
            elif visible is None:
                mean = wide_q.float().mean(0, keepdim=True)
                received = attention_rows(mean[None], wide_k[None].float(), scale)[0, 0]
            else:
                received = attention_received(wide_q[None], wide_k[None], scale, visible[:1])
            self._append("wide_attention", received[self.lead :])
            self._append("wide_keys", wide_k[self.lead :])


class TowerEdit:
    """Fewer tokens inside the tower: smaller pictures, or merging between blocks.

    Afterwards the tower's outputs are spread back to the length that the base model expects, so
    that every slot shows the token that stands for it; `Capture.cells` says which one that is.
    """

    def __init__(self, adapter: Adapter, capture: Capture, plan: TowerPlan) -> None:
        self.adapter, self.capture, self.plan = adapter, capture, plan
        self.lead = int(adapter.has_cls)
        self.owners: list[Tensor] = []  # after each merge: (t, tokens) index of the new token
        self.size: Tensor | None = None  # (t, tokens) patches behind each token
        self.metric: Tensor | None = None  # (t, tokens, d) keys of the block that ran last

    def install(self, stack: contextlib.ExitStack, readers: dict[nn.Module, Any]) -> None:
        """Put the hooks on; `stack` takes them off."""
        tower = self.adapter.tower_module(self.capture.modality)
        if self.plan.size is not None:
            pre = tower.register_forward_pre_hook(self._shrink, with_kwargs=True)
            post = tower.register_forward_hook(self._spread_resized)
            stack.callback(pre.remove)
            stack.callback(post.remove)
        if self.plan.merges:
            blocks = self.adapter.blocks(self.capture.modality)
            for index in range(len(blocks)):
                _chain(readers, self.adapter.attention(blocks[index]), self._read_keys)
                if 1 <= index <= len(self.plan.merges):
                    merge = functools.partial(self._merge, r=self.plan.merges[index - 1])
                    hook = blocks[index].register_forward_pre_hook(merge, with_kwargs=True)
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
        self._spread(output, index.expand(tiles, -1))
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
        self.size = torch.stack(sizes)
        new = torch.stack(merged)
        if args and args[0] is x:
            return (new, *args[1:]), kwargs
        return args, {name: new if value is x else value for name, value in kwargs.items()}

    def _spread_merged(self, module: nn.Module, args: Any, output: Any) -> Any:
        final = self.owners[-1]
        tiles = len(final)
        distinct = int(final.max()) + 1
        offset = torch.arange(tiles, device=final.device)[:, None] * distinct
        self.capture.cells = (final[:, self.lead :] + offset).flatten().cpu()
        self._spread(output, None)
        return output

    # ------------------------------------------------------------------ both

    def _spread(self, output: Any, index: Tensor | None) -> None:
        """Bring every token sequence of a tower output back to its full length, in place."""
        lengths = {}
        if index is None:
            lengths = {int(owner.max()) + 1: owner for owner in self.owners}
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
