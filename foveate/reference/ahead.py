"""Batches drawn ahead of the steps that need them, in other processes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Generator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


def drawn_ahead(
    draw: Callable[[int], T], steps: range, workers: int = 1
) -> Generator[T, None, None]:
    """What `draw` gives for each step, its tensors on the default device.

    Closed, or left by an error, it ends the processes.

    Args:
        draw: makes the batch of a step, on the CPU. For several workers it must be picklable; what
            it holds is pickled once for each of them.
        steps: the steps, in their order.
        workers: processes that draw ahead; with one it is done here, when it is asked for.
    """
    if workers == 1 or not steps:
        for step in steps:
            with torch.device("cpu"):
                batch = draw(step)
            yield moved(batch)
        return
    # The loader draws a seed for its workers: not from the run's random numbers, nor on its device.
    with torch.device("cpu"):
        loader = DataLoader(
            _Sent(draw),
            batch_size=None,
            sampler=steps,
            num_workers=min(workers, len(steps)),
            multiprocessing_context="spawn",
            generator=torch.Generator(),
        )
        arriving = iter(loader)
    for sent in arriving:
        yield moved(pickle.loads(sent))


def moved(part: Any) -> Any:
    """The same batch with its tensors on the default device.

    Args:
        part: a tensor, a dict or a dataclass of such, or anything else, which stays as it is.
    """
    if isinstance(part, Tensor):
        return part.to(torch.get_default_device())
    if isinstance(part, dict):
        return {name: moved(value) for name, value in part.items()}
    if is_dataclass(part) and not isinstance(part, type):
        own = {each.name: moved(getattr(part, each.name)) for each in fields(part)}
        return replace(part, **own)
    return part


class _Sent(Dataset[bytes], Generic[T]):
    """Batches by step, as they travel from one process to another."""

    def __init__(self, draw: Callable[[int], T]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> bytes:
        sent = io.BytesIO()
        _Pickler(sent, protocol=pickle.HIGHEST_PROTOCOL).dump(self.draw(step))
        return sent.getvalue()


class _Pickler(pickle.Pickler):
    """Sends tensors by value, as arrays: torch would use shared memory, scarce in containers."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented
