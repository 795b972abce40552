"""What a setting costs: counted operations, bytes of the cache, and time beside the full model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import foveate
from foveate.evaluation.timing import Ratio, alternate, seconds

_ENOUGH = 0.9  # a batch twice as large that saves less than a tenth a row: compute-bound
LARGEST = 32


@dataclasses.dataclass(frozen=True)
class Cost:
    """One prefill, vision tower included.

    Attributes:
        flops: floating-point operations a prompt, counted while it ran (a multiply-add is two;
            causal attention counts whole).
        kv_bytes: keys and values a prompt after it; 0 where the model is untouched.
        time: beside the full model's, alternated.
    """

    flops: int
    kv_bytes: int
    time: Ratio | None


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


# torch counts the attention kernels of accelerators only.
_KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


@torch.no_grad()
def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of one call."""
    with FlopCounterMode(display=False, custom_mapping=_KERNELS) as counter:
        call()
    return int(counter.get_total_flops())


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Any]) -> Any:
    """The cache after one prefill."""
    return model(**inputs, logits_to_keep=1).past_key_values


def compute_bound_batch(model: Any, inputs: Callable[[int], dict[str, Any]], most: int) -> int:
    """The batch from which on a larger one hardly helps.

    Args:
        model: the model.
        inputs: makes the inputs of a batch.
        most: rows there are.
    """
    a_row: dict[int, float] = {}
    batch = 1
    while batch <= min(most, LARGEST):
        call = functools.partial(prefill, model, inputs(batch))
        try:
            call()
        except torch.OutOfMemoryError:
            if not a_row:
                raise
            break
        a_row[batch] = min(seconds(call, model.device.type) for _ in range(3)) / batch
        # Two doublings in a row that hardly helped: one may be noise.
        if len(a_row) > 2 and a_row[batch] > _ENOUGH * a_row[batch // 4]:
            break
        batch *= 2
    best = min(a_row.values())
    return next(size for size, each in a_row.items() if _ENOUGH * each <= best)


def measure(
    model: Any,
    inputs: dict[str, Any],
    attached: Callable[[], foveate.Run] | None,
    repeats: int,
) -> Cost:
    """The cost of one setting on these inputs.

    Args:
        model: the model.
        inputs: of a batch of prompts, pictures not yet encoded.
        attached: attaches the setting; None for the full model.
        repeats: timed pairs.
    """
    rows = len(inputs["input_ids"])

    @contextlib.contextmanager
    def setting() -> Iterator[foveate.Run | None]:
        if attached is None:
            yield None
        else:
            with attached() as run:
                yield run

    def attached_prefill() -> Any:
        with setting():
            return prefill(model, inputs)

    with setting() as run:
        flops = count_flops(lambda: prefill(model, inputs)) // rows
        cache = 0 if run is None else run.report().kv_bytes // rows
    if attached is None:
        return Cost(flops, kv_bytes(prefill(model, inputs)) // rows, None)
    time = alternate(
        lambda: prefill(model, inputs), attached_prefill, model.device.type, repeats, warm_up=1
    )
    return Cost(flops, cache, time)


def kv_bytes(cache: Any) -> int:
    """Bytes of an untouched cache's keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
