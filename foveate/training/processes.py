"""Several processes of one training: which one this is, its share, and where it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Process:
    """One of the processes that `torchrun` or `accelerate launch` started, or the only one.

    Attributes:
        rank, count: which one, and of how many.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this process does of a work that all of them do together."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            distributed.barrier()

    def gathered(self, found: T) -> list[T]:
        """What each process has found, in all of them."""
        if self.count == 1:
            return [found]
        everyone: list[Any] = [None] * self.count
        distributed.all_gather_object(everyone, found)
        return everyone

    def hold(self, model: Any) -> None:
        """Move a model to where this process computes, unless it was placed by a device map."""
        if getattr(model, "hf_device_map", None) is None:
            model.to(self.device)


def of(arguments: Any) -> Process:
    """The process that `transformers.TrainingArguments` were made in; it joins the others."""
    return Process(arguments.process_index, arguments.world_size, arguments.device)


def here(cpu: bool = False) -> Process:
    """This process, before there is a training.

    Args:
        cpu: whether to leave an accelerator alone.

    Raises:
        MissingDependency: `accelerate` is not installed.
    """
    from foveate.training.learning import need

    need("accelerate", "Training")
    from transformers import TrainingArguments

    # It writes nothing; a training's own arguments find the same process.
    return of(TrainingArguments(output_dir="unused", use_cpu=cpu, report_to="none"))
