"""The vision side: what is read while the tower runs, kept until the language model starts.

A model may encode its images long before the prompt's forward pass (generate does). Nothing is
therefore decided here: a `Capture` records one `get_image_features` or `get_video_features`
call - geometry, projector input, scores - and the decision is taken where the language model
begins. Only methods that change the tower itself act here, through a `TowerEdit`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapters.base import Adapter, first_tensor
from foveate.attach.capture import Capture
from foveate.attach.probe import (
    attention_received,
    attention_rows,
    chain,
    probed,
    scale_of,
)
from foveate.attach.tower import TowerEdit
from foveate.attention import visible_keys
from foveate.compressor import Reads, TowerMethod, TowerPlan
from foveate.errors import AttachError, StageNotAvailable

KEPT_CAPTURES = 8  # encoder calls remembered; a prompt needs at most one a modality


class Encoder:
    """Hooks on the vision side of one model.

    Args:
        adapter: the model's adapter.
        reads: what to record beside the projector's input.
        tower: the method that changes the tower, None for all others.
        count: tokens that it must leave of a picture of n.
    """

    def __init__(
        self,
        adapter: Adapter,
        reads: frozenset[Reads],
        tower: TowerMethod | None = None,
        count: Callable[[int], int] = lambda n: n,
    ) -> None:
        self.adapter, self.reads, self.tower, self.count = adapter, reads, tower, count
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
            chain(readers, adapter.attention(blocks[chosen]), _ScoreReader(capture, adapter))
        if Reads.WIDE in self.reads:
            chain(readers, adapter.attention(blocks[-1]), _WideReader(capture, adapter))
        if self.tower is not None:
            plans = self._tower_plans(self.tower, capture)
            TowerEdit(adapter, capture, plans).install(stack, readers)
        if readers:
            stack.enter_context(probed(readers))

    def _tower_plans(self, tower: TowerMethod, capture: Capture) -> list[TowerPlan]:
        """What to do to the tower: one plan for all tiles of a call, or one for each picture."""
        layouts, blocks = capture.layouts, self.adapter.selected_block(capture.modality)
        shares = [self.count(part.n) / part.n for part in layouts]
        if any(part.weights is not None for part in layouts):
            raise StageNotAvailable(
                f"Stage '{tower.stage}' needs slots that are tower tokens; here the model "
                "interpolates them.\nUse a method that acts at 'vision' or 'input'."
            )
        if layouts[0].side is not None:
            # Tiles run as one tensor: they share the largest share that any image asks for.
            rasters, shares = [layouts[0].side], [max(shares)]
        else:
            rasters = [(part.grids[0].height, part.grids[0].width) for part in layouts]
        plans = []
        for (height, width), share in zip(rasters, shares, strict=True):
            target = min(height * width, math.ceil(share * height * width - 1e-9))
            plans.append(tower.tower_plan(height, width, max(1, target), blocks))
            self.adapter.check_tower_plan(plans[-1])
        return plans


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


class _Accumulate:
    """A reader that appends per-token values to a capture, call after call."""

    def __init__(self, capture: Capture, adapter: Adapter) -> None:
        self.capture, self.lead = capture, int(adapter.has_cls)

    def _alive(
        self, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Each sequence of an attention call, without what fills shorter ones up."""
        alive = self.capture.alive
        for tile, (qs, ks, visible) in enumerate(_sequences(q, k, mask, kwargs)):
            if alive is None:
                yield qs, ks, visible
            else:
                here = alive[tile].to(qs.device)
                seen = None if visible is None else visible[:, here][:, :, here]
                yield qs[:, here], ks[:, here], seen

    def _append(self, name: str, values: Tensor) -> None:
        old = getattr(self.capture, name)
        setattr(self.capture, name, values if old is None else torch.cat([old, values]))


class _ScoreReader(_Accumulate):
    """Attention received in the selected block (CLS row, or mean over queries), mean keys."""

    @torch.no_grad()
    def __call__(self, q: Tensor, k: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        scale = scale_of(q, kwargs)
        for qs, ks, visible in self._alive(q, k, mask, kwargs):
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
        for qs, ks, visible in self._alive(q, k, mask, kwargs):
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
