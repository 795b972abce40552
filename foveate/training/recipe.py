"""How a compressor is trained: every number of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from foveate.compressor import check_keep
from foveate.errors import InputError
from foveate.training.losses import Weights

OPTIMISERS = {"sgd": "sgd", "adamw": "adamw_torch"}  # ours -> the Trainer's name
CLIPS = ("norm", "value", "none")
SCHEDULES = ("constant", "cosine", "linear")  # the Trainer's names
_RATES = {"sgd": 1e-3, "adamw": 1e-3}
_BOUNDS = {"sgd": 1e-2, "adamw": 1.0}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Of one training. Defaults are MetaCompress's (arXiv 2603.21701, section 6.1).

    Attributes:
        keeps: budgets; with several, each step draws one.
        epochs: passes over the dialogues.
        steps: steps of the optimiser instead of epochs; None for epochs.
        batch: dialogues of a step, over all processes.
        micro_batch: dialogues of one forward pass in one process; None: as many as a step has.
            Gradients are accumulated over the rest of the step.
        optimiser: ``"sgd"`` as published, or ``"adamw"``.
        rate: learning rate; None for 1e-3. 0 leaves the start as it is: it is measured and saved.
        clip: gradients' ``"norm"`` over all parameters, or each ``"value"``, or ``"none"``. The
            paper says "a maximum value of 1e-2", which may mean either.
        bound: what is clipped at; None for 1e-2 with sgd and 1.0 with adamw.
        schedule: of the learning rate: ``"constant"``, ``"cosine"`` or ``"linear"``.
        entropy, collapse: weights of the regularisers in Eq. 10.
        seed: of the order of dialogues and of the budgets drawn.
        checkpointing: whether activations are computed again in the backward pass.
        log_every, evaluate_every, save_every: steps.
    """

    keeps: tuple[int | float, ...] = (0.1,)
    epochs: float = 2.0
    steps: int | None = None
    batch: int = 36
    micro_batch: int | None = None
    optimiser: str = "sgd"
    rate: float | None = None
    clip: str = "norm"
    bound: float | None = None
    schedule: str = "constant"
    entropy: float = 1.0
    collapse: float = 1.0
    seed: int = 0
    checkpointing: bool = False
    log_every: int = 10
    evaluate_every: int = 100
    save_every: int = 100

    def __post_init__(self) -> None:
        if not self.keeps:
            raise InputError("A training needs a budget at least: keeps=(0.1,).")
        for keep in self.keeps:
            check_keep(keep)
            if keep == 1.0 and isinstance(keep, float):
                raise InputError("keep=1.0 is the untouched model: there is nothing to train.")
        named = (("optimiser", OPTIMISERS), ("clip", CLIPS), ("schedule", SCHEDULES))
        for name, known in named:
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
        counts = ("steps", "batch", "micro_batch", "log_every", "evaluate_every", "save_every")
        for name in counts:
            if (count := getattr(self, name)) is not None and count < 1:
                raise InputError(f"{name} must be at least 1; got {count}.")
        if self.rate is not None and not 0 <= self.rate < math.inf:
            raise InputError(f"rate must be at least 0 and finite; got {self.rate}.")
        for name in ("epochs", "bound"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0 and finite; got {value}.")
        for name in ("entropy", "collapse"):
            if not math.isfinite(value := getattr(self, name)):
                raise InputError(f"The weight {name} must be finite; got {value}.")

    @property
    def effective(self) -> dict[str, Any]:
        """Every number as it counts, for a record: what is not said by its value, no idle one."""
        found = dataclasses.asdict(self)
        found["rate"] = _RATES[self.optimiser] if self.rate is None else self.rate
        found["bound"] = _BOUNDS[self.optimiser] if self.bound is None else self.bound
        found["micro_batch"] = self.micro_batch or self.batch
        idle = {"epochs" if self.steps is not None else "steps"}
        idle |= {"bound"} if self.clip == "none" else set()
        return {name: value for name, value in found.items() if name not in idle}

    @property
    def weights(self) -> Weights:
        """Of the losses."""
        return Weights(self.entropy, self.collapse)

    def parts(self, processes: int) -> tuple[int, int]:
        """(dialogues of a forward pass, forward passes of a step) in each process.

        Raises:
            InputError: a step cannot be parted evenly.
        """
        own, uneven = divmod(self.batch, processes)
        micro = self.micro_batch or own
        if uneven or own % micro:
            raise InputError(
                f"A batch of {self.batch} dialogues cannot be parted evenly into {processes} "
                f"processes with\nforward passes of {micro}. Change batch or micro_batch."
            )
        return micro, own // micro

    def arguments(self, out: str, processes: int, **more: Any) -> dict[str, Any]:
        """What `transformers.TrainingArguments` takes of it."""
        micro, passes = self.parts(processes)
        return {
            "output_dir": out,
            "per_device_train_batch_size": micro,
            "per_device_eval_batch_size": micro,
            "gradient_accumulation_steps": passes,
            "num_train_epochs": self.epochs,
            "max_steps": -1 if self.steps is None else self.steps,
            "optim": OPTIMISERS[self.optimiser],
            "learning_rate": self.effective["rate"],
            "weight_decay": 0.0,
            "lr_scheduler_type": self.schedule,
            "max_grad_norm": self.effective["bound"] if self.clip == "norm" else 0.0,
            "seed": self.seed,
            "logging_steps": self.log_every,
            "logging_nan_inf_filter": False,  # it would show the last good loss for ever
            "save_strategy": "steps",
            "save_steps": self.save_every,
            # Two: until the new one is complete, the last one is needed.
            "save_total_limit": 2,
            "remove_unused_columns": False,
            "ddp_find_unused_parameters": False,
            "disable_tqdm": True,
            **more,
        }

    @property
    def clipped_value(self) -> float | None:
        """What each entry of a gradient is clipped at; None if it is not."""
        return self.effective["bound"] if self.clip == "value" else None
