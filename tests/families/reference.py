"""What a compressed model must compute, recomputed by the stock model without any of the library.

One prompt at a time, without padding and without a cache: every call runs the whole sequence
through the stock classes. Two ways, which share nothing but the capture of the language model's
arguments:

- original positions: the full-length sequence, with dropped tokens masked as keys from the layer
  on before which they are dropped;
- re-indexed positions: a physically shorter sequence with contiguous position ids.

This module imports nothing from foveate; tests hand it the decisions as a plain function.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Decide = Callable[[int, int, Tensor], tuple[Tensor, Tensor | None]]
"""(picture, layer, features (n, d)) -> (which of the n rows live on (m,), P (m, n) or None)

None copies the rows that live on; a matrix replaces them by P @ features.
"""


Cut = tuple[int, int, Tensor]
"""(first layer, length when it was done, (s,) what is lost)"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is dropped.

    Attributes:
        slots: for each picture of the prompt, the positions of its visual slots.
        decide: which of them live on.
        layers: decoder layers before which `decide` is asked, ascending.
        positions: ``"original"`` or ``"reindex"``.
        inside: whether a drop before layer 0 is one between layers too, where re-indexed rows
            keep their slots.
        settled: (layer, lengths): when the sequence was that long, caches from that layer on were
            cut to what is left at the end; whatever follows sees nothing else.
    """

    slots: Sequence[Tensor]
    decide: Decide
    layers: Sequence[int] = (0,)
    positions: str = "original"
    inside: bool = False
    settled: tuple[int, Sequence[int]] | None = None


def keep_all(picture: int, layer: int, features: Tensor) -> tuple[Tensor, None]:
    """The decision that drops nothing."""
    return torch.arange(len(features)), None


def language_model(model: nn.Module) -> nn.Module:
    """The inner language model of any family."""
    base = model.model
    return base.language_model if hasattr(base, "language_model") else base.text_model


@contextlib.contextmanager
def _hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stock_logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """(s, v) logits of one prompt by the untouched model."""
    return model(**inputs, use_cache=False).logits[0]


def logits(model: nn.Module, inputs: dict[str, Any], plan: Plan) -> Tensor:
    """(s, v) logits of one unpadded prompt under `plan`.

    The row of a dropped token is that of the last token before it that is left after all layers,
    NaN where there is none.
    """
    assert len(inputs["input_ids"]) == 1, "one prompt at a time"
    at_input = tuple(plan.layers) == (0,) and not plan.inside
    length = inputs["input_ids"].shape[1]
    if plan.positions == "reindex" and at_input:
        rows, kept = _shortened(model, inputs, plan)
        return _spread(rows, kept, length)
    run = _masked if plan.positions == "original" else _renumbered
    layer, lengths = plan.settled or (0, ())
    cuts: list[Cut] = []
    for end in lengths:
        # What was dropped up to here does not depend on what follows.
        _, kept = run(model, inputs, plan, cuts)
        lost = torch.ones(length, dtype=torch.bool)
        lost[kept] = False
        lost[end:] = False
        cuts.append((layer, end, lost))
    rows, kept = run(model, inputs, plan, cuts)
    return _spread(rows, kept, length)


def _hidden(cuts: list[Cut], layer: int, length: int) -> Tensor:
    """(length, length) which keys a query must not see, because they were cut before it came."""
    hide = torch.zeros(length, length, dtype=torch.bool)
    for first, end, lost in cuts:
        if layer >= first:
            hide[end:] |= lost
    return hide


def _cut(
    hidden: Tensor, alive: list[Tensor], plan: Plan, layer: int
) -> tuple[Tensor, list[Tensor]]:
    """Hidden states (1, s, d) with merged rows written in, and the positions alive from now on."""
    after = []
    for picture, positions in enumerate(alive):
        rows, matrix = plan.decide(picture, layer, hidden[0, positions].detach())
        if matrix is not None:
            mixed = matrix.to(hidden.dtype) @ hidden[0, positions]
            hidden = hidden.index_copy(1, positions[rows], mixed[None])
        after.append(positions[rows].sort().values)
    return hidden, after


def _spread(rows: Tensor, kept: Tensor, length: int) -> Tensor:
    """(length, v): each position shows the row of the last kept position up to it."""
    rank = torch.zeros(length, dtype=torch.long)
    rank[kept] = 1
    rank = rank.cumsum(0) - 1
    out = rows[rank.clamp(min=0)]
    return torch.where((rank >= 0)[:, None], out, torch.full_like(out, torch.nan))


def _masked(
    model: nn.Module, inputs: dict[str, Any], plan: Plan, cuts: list[Cut]
) -> tuple[Tensor, Tensor]:
    length = inputs["input_ids"].shape[1]
    gone = torch.zeros(length, dtype=torch.bool)
    alive = list(plan.slots)
    itself = torch.eye(length, dtype=torch.bool)

    def before(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal alive
            hidden = args[0]
            if layer in plan.layers:
                hidden, now = _cut(hidden, alive, plan, layer)
                for old, new in zip(alive, now, strict=True):
                    gone[old] = True
                    gone[new] = False
                alive = now
            mask = kwargs["attention_mask"]
            if mask is None:
                mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            hide = (
                gone[None, :] & ~itself
            )  # a dropped token may see itself, so that no row is empty
            hide = hide | (_hidden(cuts, layer, length) & ~itself)
            if mask.dtype == torch.bool:
                mask = mask & ~hide
            else:
                mask = mask.masked_fill(hide, torch.finfo(mask.dtype).min)
            return (hidden, *args[1:]), kwargs | {"attention_mask": mask}

        return hook

    layers = language_model(model).layers
    handles = [
        block.register_forward_pre_hook(before(i), with_kwargs=True)
        for i, block in enumerate(layers)
    ]
    with _hooks(*handles):
        out = stock_logits(model, inputs)
    kept = (~gone).nonzero().flatten()
    return out[kept], kept


def _shortened(model: nn.Module, inputs: dict[str, Any], plan: Plan) -> tuple[Tensor, Tensor]:
    length = inputs["input_ids"].shape[1]
    kept = torch.arange(length)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal kept
        assert not args, "the language model is called by keywords"
        embeds = kwargs["inputs_embeds"]
        stays = torch.ones(length, dtype=torch.bool)
        # Rows fill the first visual slots in their own order; each keeps the position ids and
        # the DeepStack features of the slot that it comes from.
        origin = torch.arange(length)
        for picture, slots in enumerate(plan.slots):
            rows, matrix = plan.decide(picture, 0, embeds[0, slots].detach())
            new = embeds[0, slots[rows]]
            if matrix is not None:
                new = matrix.to(embeds.dtype) @ embeds[0, slots]
            embeds = embeds.index_copy(1, slots[: len(rows)], new[None])
            stays[slots[len(rows) :]] = False
            origin[slots[: len(rows)]] = slots[rows]
        kept = stays.nonzero().flatten()
        short = dict(kwargs)
        short["inputs_embeds"] = embeds[:, kept]
        short["attention_mask"] = shorten_mask(kwargs.get("attention_mask"), kept)
        short["position_ids"] = contiguous(kwargs.get("position_ids"), origin[kept])
        if kwargs.get("visual_pos_masks") is not None:
            visual = kwargs["visual_pos_masks"]
            number = visual[0].long().cumsum(0) - 1
            short["visual_pos_masks"] = visual[:, kept]
            rows = number[origin[kept]][visual[0, kept]]
            short["deepstack_visual_embeds"] = [x[rows] for x in kwargs["deepstack_visual_embeds"]]
        return (), short

    handle = language_model(model).register_forward_pre_hook(hook, with_kwargs=True)
    with _hooks(handle):
        return stock_logits(model, inputs), kept


def _renumbered(
    model: nn.Module, inputs: dict[str, Any], plan: Plan, cuts: list[Cut]
) -> tuple[Tensor, Tensor]:
    """Between layers the states get physically shorter and are numbered from one end to the other.

    Rows keep their order. Each layer's cos and sin are made anew from contiguous ids.
    """
    length = inputs["input_ids"].shape[1]
    kept, alive = torch.arange(length), list(plan.slots)
    language, ids = language_model(model), None

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal ids
        ids = kwargs.get("position_ids")

    def rotations(index: int, hidden: Tensor) -> Any:
        now = contiguous(ids, kept)
        now = now[-3:] if now.ndim == 3 else now
        kinds = getattr(language.rotary_emb, "layer_types", None)
        named = kinds is not None and hasattr(language.rotary_emb, f"{kinds[0]}_inv_freq")
        kind = (language.config.layer_types[index],) if named else ()
        return language.rotary_emb(hidden, now, *kind)

    def before(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal alive, kept
            hidden = args[0]
            if layer in plan.layers:
                hidden, now = _cut(hidden, alive, plan, layer)
                for old, new in zip(alive, now, strict=True):
                    gone = old[~torch.isin(old, new)]
                    kept = kept[~torch.isin(kept, gone)]
                alive = now
            hidden = hidden[:, kept]
            mask = kwargs["attention_mask"]
            hide = _hidden(cuts, layer, length)
            if mask is None and hide.any():
                mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            if mask is not None:
                blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
                mask = mask.masked_fill(hide, blocked)[:, :, kept][..., kept]
            new = {"attention_mask": mask, "position_ids": None}
            if layer >= plan.layers[0]:
                new["position_embeddings"] = rotations(layer, hidden)
            return (hidden, *args[1:]), kwargs | new

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Rows go back where they were: DeepStack adds to them there, and decisions ask there."""
        states = output[0] if isinstance(output, tuple) else output
        wide = states.new_zeros(1, length, states.shape[-1])
        wide[:, kept] = states
        return (wide, *output[1:]) if isinstance(output, tuple) else wide

    handles = [language.register_forward_pre_hook(note, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in language.layers]
    handles += [
        block.register_forward_pre_hook(before(i), with_kwargs=True)
        for i, block in enumerate(language.layers)
    ]
    with _hooks(*handles):
        out = stock_logits(model, inputs)
    return out[kept], kept


def shorten_mask(mask: Any, kept: Tensor) -> Any:
    """The language model's attention mask for the kept positions only."""
    if isinstance(mask, dict):
        return {
            name: None if part is None else part[:, :, kept][..., kept]
            for name, part in mask.items()
        }
    if mask is not None and mask.ndim == 4:
        return mask[:, :, kept][..., kept]
    return torch.ones(1, len(kept), dtype=torch.long)


def contiguous(position_ids: Tensor | None, kept: Tensor) -> Tensor:
    """Position ids without gaps; with several axes the dense rank over all of them jointly."""
    if position_ids is None:
        return torch.arange(len(kept))[None]
    first = int(position_ids[..., 0].min())
    if position_ids.ndim == 2:
        return torch.arange(len(kept))[None] + first
    axes = position_ids[-3:, :, kept]
    _, rank = torch.unique(axes, return_inverse=True)
    ranked = rank.reshape(axes.shape) + int(axes.min())
    if len(position_ids) == 4:
        text = torch.arange(len(kept)).expand(1, 1, -1) + first
        ranked = torch.cat([text, ranked])
    return ranked


def greedy(
    model: nn.Module,
    inputs: dict[str, Any],
    plan: Plan,
    steps: int,
    *,
    banned: Sequence[int] = (),
    suffix_type: int = 0,
) -> tuple[list[int], Tensor]:
    """(tokens, (steps, v) raw logits of each step), recomputing everything at each step.

    Args:
        banned: token ids that generation suppresses.
        suffix_type: `token_type_ids` of a generated token.
    """
    tokens: list[int] = []
    scores = []
    extra = {
        "attention_mask": 1,
        "mm_token_type_ids": 0,
        "token_type_ids": suffix_type,
    }
    for _ in range(steps):
        last = logits(model, inputs, plan)[-1]
        allowed = last.clone()
        allowed[list(banned)] = -torch.inf
        tokens.append(int(allowed.argmax()))
        scores.append(last)
        inputs = dict(inputs)
        for name, value in {"input_ids": tokens[-1], **extra}.items():
            if name in inputs:
                column = torch.full((1, 1), value, dtype=inputs[name].dtype)
                inputs[name] = torch.cat([inputs[name], column], 1)
    return tokens, torch.stack(scores)
