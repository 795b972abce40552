"""The Hugging Face Trainer for learned compressors: order, budgets, evaluation, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from foveate.errors import InputError
from foveate.evaluation.data import Dialogue
from foveate.training.batches import Lesson, Lessons, collate
from foveate.training.recipe import Recipe
from foveate.training.student import Student
from foveate.training.teacher import Teacher

COMPLETE = "complete"  # in a checkpoint of which every file has been written
STILL, STILL_LOGS = 1e-5, 3  # a norm of all gradients that moves nothing; logs in a row of it
_WEIGHTS = "model.safetensors"  # as the Trainer calls it


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        step, steps: of the optimiser.
        epoch: passes over the dialogues so far.
        values: what was measured: of training without, of validation with "eval_" in front.
    """

    step: int
    steps: int
    epoch: float
    values: dict[str, float]

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        return f"step {self.step} of {self.steps}: {shown}"


Tell = Callable[[Progress], None]


class Lectures(Dataset[Lesson]):
    """Dialogues with what the full model says, read from disk one by one."""

    def __init__(self, teacher: Teacher, dialogues: Sequence[Dialogue]) -> None:
        # The files' names alone, so that a worker process need not hold the model.
        self._entries = teacher.entries(dialogues)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Lesson:
        return self._entries[index]()


class Order(Sampler[int]):
    """A new order in every epoch, by the seed alone; whole batches only.

    Args:
        count: dialogues.
        batch: dialogues of a step. What is left over in an epoch may come in another one.
        seed: of the orders.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed, self.epoch = count, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count - self.count % self.batch

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.count))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return iter(order[: len(self)])


class SavingTrainer(Trainer):
    """The Hugging Face Trainer; where a checkpoint cannot be written it says why."""

    def _save_checkpoint(self, *given: Any, **named: Any) -> None:
        """A checkpoint; what cannot be written is torn, and the last whole one counts.

        Raises:
            InputError: the disk is full, or the like.
        """
        try:
            super()._save_checkpoint(*given, **named)
        # Each writer has an error of its own: the disk's, safetensors', torch's.
        except (OSError, RuntimeError, SafetensorError) as error:
            folder, step = Path(str(self.args.output_dir)), self.state.global_step
            free = shutil.disk_usage(folder).free
            raise InputError(
                f"The checkpoint of step {step} cannot be written into {folder}:\n"
                f"{str(error).splitlines()[0]:.120} ({free:,} bytes are free).\n"
                "Make room, and the same call goes on from the checkpoint before it."
            ) from error


class CompressorTrainer(SavingTrainer):
    """Trains a `Student`; the order of the data does not depend on the number of processes.

    Args:
        student: what is trained.
        arguments: as `Recipe.arguments` makes them.
        recipe: the same recipe.
        train_dataset, eval_dataset: lessons.
        tell: told what is measured, in the first process only.
    """

    def __init__(
        self,
        student: Student,
        arguments: TrainingArguments,
        recipe: Recipe,
        train_dataset: Dataset[Lesson],
        eval_dataset: Dataset[Lesson] | None = None,
        tell: Tell = lambda progress: None,
    ) -> None:
        self.student, self.recipe = student, recipe
        self._sums: dict[str, Tensor] = {}
        self._passes = 0
        super().__init__(
            model=student,
            args=arguments,
            data_collator=lambda lessons: {"lessons": collate(lessons)},
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[Watch(self, recipe.clipped_value, tell), _Vanishing()],
        )
        self.remove_callback(PrinterCallback)
        self.measured: tuple[int, dict[str, float]] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return Order(len(dataset), self.recipe.batch, self.recipe.seed)

    def keep_of(self, step: int) -> int | float:
        """The budget of a step of the optimiser: drawn by the seed and the step's number."""
        return random.Random(f"{self.recipe.seed} {step}").choice(self.recipe.keeps)

    # ------------------------------------------------------------------ a step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One forward and backward pass, with the compressor on the model during both."""
        inputs = self._prepare_inputs(inputs)
        with self.student.attached(inputs["lessons"], self.keep_of(self.state.global_step)):
            found: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return found

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"lessons": inputs["lessons"].to(self.args.device)}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean over the dialogues."""
        found = {name: value.mean() for name, value in model(inputs["lessons"]).items()}
        for name, value in found.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._passes += 1
        return (found["loss"], found) if return_outputs else found["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The loss's parts beside it, averaged over steps and processes."""
        if "loss" in logs and self._sums:
            means = torch.stack([*self._sums.values()]) / self._passes
            means = self.accelerator.reduce(means, "mean")
            logs |= dict(zip(self._sums, means.tolist(), strict=True))
            self._sums, self._passes = {}, 0
        super().log(logs, start_time)

    # ------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Means over the validation dialogues, of each budget by itself and of all together."""
        loader = self.get_eval_dataloader(eval_dataset)
        metrics: dict[str, float] = {}
        losses = []
        for keep in self.recipe.keeps:
            found: dict[str, list[Tensor]] = {}
            for inputs in loader:
                lessons: Lessons = inputs["lessons"].to(self.args.device)
                with self.student.attached(lessons, keep):
                    values = self.student(lessons)
                for name, value in values.items():
                    # Without those that fill up the last batch of all processes.
                    gathered = self.accelerator.gather_for_metrics(value)
                    found.setdefault(name, []).append(gathered)
            for name, parts in found.items():
                mean = float(torch.cat(parts).mean())
                metrics[f"{metric_key_prefix}_{name}_{keep:g}"] = mean
                losses += [mean] if name == "loss" else []
        metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        self.measured = self.state.global_step, dict(metrics)
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def final(self) -> dict[str, float]:
        """The last step's means over the validation dialogues; none without any."""
        if self.eval_dataset is None:
            return {}
        if self.measured is not None and self.measured[0] == self.state.global_step:
            return self.measured[1]
        return self.evaluate()

    # ------------------------------------------------------------------ checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The compressor's weights, and nothing else."""
        from safetensors.torch import save_file

        folder = Path(output_dir or str(self.args.output_dir))
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.student.state_dict().items()}
        save_file(tensors, str(folder / f"{_WEIGHTS}.partial"), metadata={"format": "pt"})
        os.replace(folder / f"{_WEIGHTS}.partial", folder / _WEIGHTS)


class _Vanishing(TrainerCallback):
    """Warns once where a training stands still: gradients without size, log after log."""

    def __init__(self) -> None:
        self.still = 0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """What the Trainer has measured of the steps since the last time."""
        norm = (logs or {}).get("grad_norm")
        if norm is None:
            return
        self.still = self.still + 1 if float(norm) < STILL else 0
        if self.still == STILL_LOGS and state.is_world_process_zero:
            sharp = (logs or {}).get("entropy")
            rows = "" if sharp is None else f" (its rows' mean entropy is {sharp:.2g})"
            warnings.warn(
                f"Gradients have vanished: their norm was below {STILL:g} at the last "
                f"{STILL_LOGS} logs, up to step {state.global_step}{rows}.\nThe compressor hardly "
                "moves. Start from the tokens' directions (pca_start, --start pca), take a "
                "larger dim, or another seed.",
                stacklevel=2,
            )


def arguments(
    recipe: Recipe,
    folder: Path,
    *,
    validated: bool,
    tensorboard: bool,
    cpu: bool,
    **more: Any,
) -> TrainingArguments:
    """The Trainer's arguments for a recipe; every training's.

    Args:
        recipe: every number of it.
        folder: for checkpoints and logs.
        validated: whether it is measured as it goes.
        tensorboard: whether to log for TensorBoard, into `folder`/runs.
        cpu: whether to leave an accelerator alone.
        more: further ones.

    Raises:
        InputError: a step cannot be parted evenly among the processes.
    """
    measured = {"eval_strategy": "steps", "eval_steps": recipe.evaluate_every}
    found = TrainingArguments(
        **recipe.arguments(
            str(folder),
            int(os.environ.get("WORLD_SIZE", "1")),
            report_to=["tensorboard"] if tensorboard else "none",
            use_cpu=cpu,
            dataloader_pin_memory=False,
            **(measured if validated else {}),
            **more,
        )
    )
    # One process is one device: DataParallel would copy the frozen model at every step.
    found._n_gpu = min(1, found.n_gpu)
    return found


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that is whole. None if there is none."""
    found = [each for each in folder.glob("checkpoint-*") if (each / COMPLETE).is_file()]
    return max(found, key=_step, default=None)


def clear_torn(folder: Path) -> None:
    """Remove checkpoints that were interrupted while they were written."""
    for each in folder.glob("checkpoint-*"):
        if not (each / COMPLETE).is_file():
            shutil.rmtree(each)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def resume(running: Trainer, folder: Path) -> None:
    """Train from the last whole checkpoint in a folder, or from the beginning.

    If it is that of the last step, its weights are read and nothing is trained: the Trainer would
    take one more step where that is not the end of an epoch.
    """
    if running.args.should_save:
        clear_torn(folder)
    running.accelerator.wait_for_everyone()
    last = last_checkpoint(folder)
    if last is not None:
        state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
        if state.global_step >= state.max_steps:
            running._load_from_checkpoint(str(last))
            running.state = state
            return
    running.train(resume_from_checkpoint=None if last is None else str(last))


class Watch(TrainerCallback):
    """Clips values, marks checkpoints that are whole, tells what is logged, stops at no number.

    Args:
        trainer: of what is trained.
        clip: what each entry of a gradient is clipped at; None if it is not.
        tell: told what is measured, in the first process only.
    """

    def __init__(self, trainer: Trainer, clip: float | None, tell: Tell) -> None:
        self.trainer, self.clip, self.tell = trainer, clip, tell

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Gradients are whole and synchronised here."""
        if self.clip is not None:
            nn.utils.clip_grad_value_(self.trainer.model.parameters(), self.clip)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every process has written its part."""
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / COMPLETE).touch()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """What the Trainer has measured.

        Raises:
            InputError: the loss is no number any more.
        """
        if logs and math.isnan(float(logs.get("loss", 0.0))):
            raise InputError(
                f"The loss is no number since step {state.global_step} or shortly before.\n"
                f"Take a smaller rate; earlier checkpoints are in {args.output_dir}."
            )
        if state.is_world_process_zero and logs:
            values = {k: float(v) for k, v in logs.items() if k != "epoch"}
            step, steps = state.global_step, state.max_steps
            self.tell(Progress(step, steps, float(state.epoch or 0.0), values))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the Trainer's own lines; what it measures is told in one place."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
