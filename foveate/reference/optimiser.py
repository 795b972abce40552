"""Muon on the matrices of a network, AdamW on everything else; cosine schedule with warm-up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalised(stack: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by Newton-Schulz: float[k, rows, columns]."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        # Coefficients of Jordan's quintic iteration, which trades exactness for speed.
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; matrices of one shape are done in one batch."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; parameters without a gradient are left alone."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                updates = []
                for parameter in parameters:
                    state, gradient = self.state[parameter], parameter.grad
                    assert gradient is not None
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(state["momentum"], group["momentum"]))
                # Root mean square of the update independent of the matrix's shape.
                scale = math.sqrt(max(1.0, shape[0] / shape[1]))
                for parameter, update in zip(
                    parameters, orthogonalised(torch.stack(updates)), strict=True
                ):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)


class Optimiser:
    """Both optimisers under one schedule.

    Args:
        modules: what is trained.
        muon_lr: peak rate for the matrices inside the transformer blocks.
        adam_lr: peak rate for embeddings, norms, biases and heads.
        steps: length of the schedule.
    """

    def __init__(
        self, modules: Iterable[nn.Module], muon_lr: float, adam_lr: float, steps: int
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in modules:
            for name, parameter in module.named_parameters():
                # Embeddings and output heads are tables of rows, not maps: Muon is not for them.
                inner = parameter.ndim == 2 and not any(
                    word in name for word in ("embed", "head", "class_embedding")
                )
                (matrices if inner and parameter.requires_grad else others).append(parameter)
        others = [parameter for parameter in others if parameter.requires_grad]
        self.steps, self.peaks = steps, (muon_lr, adam_lr)
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr=muon_lr),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
        )
        self.parameters = matrices + others

    def step(self, step: int) -> None:
        """Clip, update at the schedule's rate for `step`, and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * schedule(step / self.steps, 100 / self.steps)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The state of both parts."""
        return {"muon": self.parts[0].state_dict(), "adam": self.parts[1].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.parts[0].load_state_dict(state["muon"])
        self.parts[1].load_state_dict(state["adam"])


def schedule(progress: float, warmup: float) -> float:
    """Share of the peak rate: linear up, flat to the middle, then linear down to a fiftieth."""
    if progress < warmup:
        return progress / warmup + 1e-3
    return min(1.0, max(0.02, 2 * (1 - progress)))
