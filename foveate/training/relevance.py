"""Training methods that predict relevance: what they are told, and what the answer came from.

    method = Relevance(kinds=("image",))
    pairs = Pairs(model, processor, "output/pairs", method)
    pairs.fill(dialogues)
    trained = train(method, model, pairs.read(dialogues), "output/relevance")

The model is run once for each question, to collect pairs; the net is then trained without it
(arXiv 2506.01097, section 3.3 and Appendix B).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping as Table
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback
from transformers.utils import is_torch_bf16_gpu_available

from foveate import catalog, ops, saving
from foveate.compressor import resolve_keep
from foveate.errors import InputError, UnknownName
from foveate.evaluation.data import Dialogue
from foveate.fingerprint import of_weights
from foveate.predicting import KINDS, RelevancePredictor
from foveate.training.accuracy import MOST
from foveate.training.accuracy import measure as asked
from foveate.training.learning import (
    FOLDER,
    Trained,
    begins_at,
    begun,
    finished,
    need,
    random_start,
)
from foveate.training.pairs import Kept, Pair
from foveate.training.processes import of
from foveate.training.recipe import CLIPS, Recipe
from foveate.training.trainer import (
    Order,
    SavingTrainer,
    Tell,
    Watch,
    arguments,
    quiet,
    resume,
)

SCHEDULES = ("constant", "cosine")
SHARES = (0.5, 0.25, 0.1)  # budgets at which a prediction is measured


def label(found: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """R*: the lower half of the relevance set to zero, the rest divided by its sum.

    Without a ReLU relevance may be negative (the paper does not say what then): what is below zero
    in the upper half is zero too. If nothing is above zero, the upper half is equally likely.
    """
    kept = ops.top(found, (len(found) + 1) // 2)
    mass = torch.zeros_like(found)
    mass[kept] = found[kept].clamp(min=0)
    if not mass.sum() > 0:
        mass[kept] = 1
    return mass / mass.sum()


def divergence(labels: Float[Tensor, "b n"], logits: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """KL(R* || R~) of Eq. 3, R~ the softmax of the logits; -inf where a row has no token."""
    predicted = logits.float().log_softmax(-1)
    terms = torch.xlogy(labels, labels) - labels * predicted
    return torch.where(labels > 0, terms, torch.zeros_like(terms)).sum(-1)


def overlap(found: Float[Tensor, " n"], wanted: Float[Tensor, " n"], keep: int | float) -> float:
    """Share of the most relevant tokens that are among those predicted to be."""
    m = resolve_keep(keep, len(found))
    both = torch.isin(ops.top(found, m), ops.top(wanted, m))
    return float(both.float().mean())


class Examples(Dataset[dict[str, Any]]):
    """Pairs as the net is given them.

    Args:
        pairs: of images and videos.
        method: that is trained.
    """

    def __init__(self, pairs: Sequence[Pair | Kept], method: RelevancePredictor) -> None:
        self._pairs, self._method = pairs, method

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        each = self._pairs[index]
        return {
            "seen": self._method.prepared(dict(each.seen)),
            "labels": label(each.relevance.float()),
            "video": torch.tensor(each.is_video),
        }


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pictures and questions of different lengths side by side.

    Returns:
        "seen" and "labels", padded with zeros; "there", of each entry of the former which rows
        there are; "video".
    """
    pad = nn.utils.rnn.pad_sequence
    seen, there = {}, {}
    for name in items[0]["seen"]:
        parts = [each["seen"][name] for each in items]
        lengths = torch.tensor([len(each) for each in parts])
        seen[name] = pad(parts, batch_first=True)
        there[name] = torch.arange(int(lengths.max())) < lengths[:, None]
    labels = pad([each["labels"] for each in items], batch_first=True)
    video = torch.stack([each["video"] for each in items])
    return {"seen": seen, "there": there, "labels": labels, "video": video}


# ---------------------------------------------------------------- the training


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of a training. Defaults are the paper's (Appendix B).

    Attributes:
        epochs: passes over the pairs.
        batch: pairs of a step.
        rate: of Adam.
        schedule: of the rate: ``"constant"``, or ``"cosine"`` down to zero.
        clip: gradients, as `Recipe` clips them. The paper says nothing of it; where a net is not
            bounded, as that of `seek`, one step too large can lose what was learned.
        bf16: whether the net's products are taken in bfloat16; parameters, loss and what is
            measured stay in float32.
        seed: of the first parameters and of the order.
        save_every: steps between checkpoints.
        evaluate_every: steps between measurements on validation pairs.
    """

    epochs: int = 100
    batch: int = 128
    rate: float = 1e-3
    schedule: str = "constant"
    clip: str = "none"
    bf16: bool = False
    seed: int = 0
    save_every: int = 500
    evaluate_every: int = 500

    def __post_init__(self) -> None:
        for name, known in (("schedule", SCHEDULES), ("clip", CLIPS)):
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)

    def recipe(self, pairs: int, processes: int) -> Recipe:
        """The same for the Trainer.

        Args:
            pairs: to learn from; fewer than a batch are one.
            processes: that share a batch.
        """
        return Recipe(
            epochs=float(self.epochs),
            batch=self.batch if self.batch <= pairs else pairs // processes * processes,
            optimiser="adamw",  # without decay AdamW is Adam
            rate=self.rate,
            clip=self.clip,
            schedule=self.schedule,
            seed=self.seed,
            log_every=50,
            evaluate_every=self.evaluate_every,
            save_every=self.save_every,
        )


class Learner(nn.Module):
    """The nets of each kind with the loss, as the Trainer takes them."""

    def __init__(self, method: RelevancePredictor) -> None:
        super().__init__()
        assert isinstance(method.net, nn.ModuleDict)
        self.net, self.method = method.net, method

    def forward(
        self,
        seen: dict[str, Tensor],
        there: dict[str, Tensor],
        labels: Float[Tensor, "b n"],
        video: Bool[Tensor, " b"],
    ) -> dict[str, Tensor]:
        """The mean of Eq. 3 over the batch, whatever kinds are in it."""
        losses = []
        for kind, net in self.net.items():
            rows = video == (kind == KINDS[1])
            if bool(rows.any()):
                told, real = ({k: x[rows] for k, x in part.items()} for part in (seen, there))
                losses.append(divergence(labels[rows], self.method.logits(net, told, real)))
        return {"loss": torch.cat(losses).mean()}


class RelevanceTrainer(SavingTrainer):
    """The Hugging Face Trainer with an order of its own that the seed alone decides.

    Args:
        settings: every number of the training.
        clip: what each entry of a gradient is clipped at; None if it is not.
        tell: told what is measured, in the first process only.
        held: pairs to measure on.
        options: the Trainer's.
    """

    def __init__(
        self,
        settings: Settings,
        clip: float | None,
        tell: Tell,
        held: Sequence[Pair | Kept] = (),
        **options: Any,
    ) -> None:
        self.settings, self.held = settings, held
        super().__init__(**options, data_collator=collate, callbacks=[Watch(self, clip, tell)])
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        count = len(self.train_dataset if train_dataset is None else train_dataset)
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return Order(count, batch, self.settings.seed)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """What `measure` says of the pairs held out; the net is small, so each process asks it."""
        learner: Any = self.accelerator.unwrap_model(self.model)
        found = {
            f"{metric_key_prefix}_{k}": v for k, v in measure(learner.method, self.held).items()
        }
        self.log(dict(found))
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, found
        )
        return found


def train(
    method: RelevancePredictor,
    model: nn.Module,
    pairs: Sequence[Pair | Kept],
    out: str | Path,
    settings: Settings = Settings(),
    *,
    validation: Sequence[Pair | Kept] = (),
    held: Sequence[Dialogue] = (),
    processor: Any = None,
    facts: Table[str, Any] | None = None,
    tensorboard: bool = True,
    cpu: bool = False,
    accuracy: int = MOST,
    max_new_tokens: int = 16,
    tell: Tell = lambda progress: None,
) -> Trained:
    """Fit the net to pairs, and save it with what is known of its training.

    Killed at any time, the same call goes on from the last checkpoint; another in the same folder
    is refused. Under `torchrun` or `accelerate launch` every process takes its share of each batch.

    Args:
        method: its fields, and parameters to go on from if it has some.
        model: whose pairs they are; it is run in the end only, on `held`.
        pairs: to learn from.
        out: a folder for checkpoints and the compressor.
        settings: every number of the training.
        validation: pairs on which it is measured as it goes, and in the end.
        held: dialogues that are asked in the end, at `SHARES` of the tokens, if they have answers.
        processor: the model's; needed to ask them.
        facts: more that the record shall say.
        tensorboard: whether to log for TensorBoard, into `out`/runs.
        cpu: whether to leave an accelerator alone.
        accuracy: how many of `held` are asked; 0 for none.
        max_new_tokens: the longest answer to them.
        tell: given a `Progress` whenever something was measured.

    Raises:
        InputError: there is no pair of a kind that the method has a net for, a batch cannot be
            parted evenly among the processes, or the accelerator knows no bfloat16.
        MissingDependency: `accelerate`, or `tensorboard` if asked for, is not installed.
        SavedFileError: the folder holds another training, or one that is running.
    """
    need("accelerate", "Training")
    if tensorboard:
        need("tensorboard", "Logging for TensorBoard")
    cpu = cpu or not torch.accelerator.is_available()
    if settings.bf16 and not cpu and not is_torch_bf16_gpu_available():
        raise InputError(
            "bf16 needs an accelerator that knows bfloat16, and this one does not.\n"
            "Leave it out, or train on the CPU."
        )
    for kind in method.kinds:
        if not any(KINDS[each.is_video] == kind for each in pairs):
            raise InputError(
                f"There is no pair of the kind {kind!r} to learn from, which the method has a net "
                "for.\nGive dialogues about some that the model answers right, or leave the kind "
                "out of kinds=."
            )
    folder = Path(out)
    chosen, measured = (
        [each for each in some if KINDS[each.is_video] in method.kinds]
        for some in (pairs, validation)
    )
    recipe = settings.recipe(len(chosen), int(os.environ.get("WORLD_SIZE", "1")))
    given = arguments(
        recipe,
        folder,
        validated=bool(measured),
        tensorboard=tensorboard,
        cpu=cpu,
        bf16=settings.bf16,
        # A batch may be of one kind, and the other kind's net is then not run.
        ddp_find_unused_parameters=len(method.kinds) > 1,
    )
    process = of(given)
    record = {
        "method": catalog.name_of(method),
        "fields": dataclasses.asdict(dataclasses.replace(method, net=None, trained_on=None)),
        "model": of_weights(model),
        "settings": dataclasses.asdict(settings),
        "pairs": _identity(chosen),
        "validation": _identity(validation),
        **begins_at(method),
        **(facts or {}),
    }
    first = random_start(settings.seed)(method, model, ())  # fields that make no net: now
    assert isinstance(first, RelevancePredictor) and isinstance(first.net, nn.ModuleDict)
    with begun(folder, record, process):
        if (folder / FOLDER / saving.FILE).is_file():
            return finished(folder, model)
        with quiet():
            running = RelevanceTrainer(
                settings,
                recipe.clipped_value,
                tell,
                held=measured,
                model=Learner(first),
                args=given,
                train_dataset=Examples(chosen, method),
                eval_dataset=Examples(measured, method) if measured else None,
            )
            resume(running, folder)
        trained = dataclasses.replace(first, net=first.net.cpu(), trained_on=of_weights(model))
        values = measure(trained, measured)
        found = None
        if accuracy and processor is not None and held:
            process.hold(model)
            found = asked(
                trained,
                model,
                processor,
                [each for each in held if KINDS[each.is_video] in method.kinds],
                SHARES,
                process,
                most=accuracy,
                max_new_tokens=max_new_tokens,
            )
        values |= found.values if found else {}
        known = {
            "settings": dataclasses.asdict(settings),
            "data": {"pairs": len(chosen), "validation": len(validation), **(facts or {})},
            "measured": values,
            **({"accuracy": dataclasses.asdict(found)} if found else {}),
        }
        if process.first:
            saving.save(trained, folder / FOLDER, model=model, training=known)
        process.wait()
        return Trained(trained, folder / FOLDER, values)


def _identity(pairs: Sequence[Pair | Kept]) -> list[Any]:
    """How many pairs, and a hash of them."""
    found = hashlib.sha256("\n".join(each.identity for each in pairs).encode())
    return [len(pairs), found.hexdigest()[:16]]


@torch.no_grad()
def measure(method: RelevancePredictor, pairs: Sequence[Pair | Kept]) -> dict[str, float]:
    """Means over pairs: Eq. 3, and the overlap with the most relevant tokens at some shares.

    Beside it the same overlaps of the attention itself, where a net is told that: it must beat it.
    """
    assert isinstance(method.net, nn.ModuleDict)
    sums: dict[str, list[float]] = {}
    for each in (p for p in pairs if KINDS[p.is_video] in method.kinds):
        net = method.net[KINDS[each.is_video]]
        device = next(net.parameters()).device
        batch = collate([Examples([each], method)[0]])
        told, there = ({k: x.to(device) for k, x in batch[k].items()} for k in ("seen", "there"))
        found = method.logits(net, told, there).cpu()
        values = {"loss": float(divergence(batch["labels"], found))}
        for share in SHARES:
            name = f"overlap at {100 * share:g} %"
            values[name] = overlap(found[0], each.relevance, share)
            if "attention" in each.seen:
                attention = each.seen["attention"]
                values[f"{name}, attention"] = overlap(attention, each.relevance, share)
        for name, value in values.items():
            sums.setdefault(name, []).append(value)
    return {name: sum(parts) / len(parts) for name, parts in sums.items()}
