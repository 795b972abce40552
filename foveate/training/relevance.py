"""Training the relevance compressor: what the first layer sees, and what the answer came from.

    pairs = Pairs(model, processor, "output/pairs")
    pairs.fill(dialogues)
    trained = train(Relevance(kinds=("image",)), model, pairs.read(dialogues), "output/relevance")

The model is run once for each question, to collect pairs; the net is then trained without it
(arXiv 2506.01097, section 3.3 and Appendix B).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from foveate import catalog, ops, relevance, saving
from foveate.attach import attach
from foveate.attach.prompt import Placed, placed
from foveate.compressor import DecoderMethod, Reads, VisualTokens, resolve_keep
from foveate.errors import InputError
from foveate.evaluation import fingerprints
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue, fingerprint
from foveate.fingerprint import of_weights
from foveate.mapping import Mapping
from foveate.methods.relevance import KINDS, Predictor, Relevance, observed, scaled
from foveate.relevance import Rule
from foveate.training.learning import (
    FOLDER,
    Trained,
    begin,
    begins_at,
    finished,
    need,
    random_start,
)
from foveate.training.teacher import is_whole, read_tensors, write_tensors
from foveate.training.trainer import (
    COMPLETE,
    Order,
    Progress,
    Tell,
    clear_torn,
    last_checkpoint,
    quiet,
)

FORMAT = "1"
LIMIT = 1500  # visual tokens of a sample, as in the paper
SHARES = (0.5, 0.25, 0.1)  # budgets at which a prediction is measured


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One picture of one question that the model answered right.

    Attributes:
        attention: (n,) A_v, what the first layer's question tokens look at.
        relevance: (n,) R_v, of the answer.
        is_video: whether it is a video.
    """

    attention: Float[Tensor, " n"]
    relevance: Float[Tensor, " n"]
    is_video: bool = False


# ---------------------------------------------------------------- what is learned


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
    predicted = logits.log_softmax(-1)
    terms = torch.xlogy(labels, labels) - labels * predicted
    return torch.where(labels > 0, terms, torch.zeros_like(terms)).sum(-1)


def overlap(found: Float[Tensor, " n"], wanted: Float[Tensor, " n"], keep: int | float) -> float:
    """Share of the most relevant tokens that are among those predicted to be."""
    m = resolve_keep(keep, len(found))
    both = torch.isin(ops.top(found, m), ops.top(wanted, m))
    return float(both.float().mean())


# ---------------------------------------------------------------- pairs


@dataclasses.dataclass(frozen=True)
class _Observing(DecoderMethod):
    """Keeps everything, and notes what the first layer's question tokens look at."""

    noted: list[Tensor] = dataclasses.field(default_factory=list)
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.AHEAD})

    @property
    def layers(self) -> tuple[int, ...]:
        return (0,)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        self.noted.append(observed(tokens).cpu())
        return Mapping.identity(tokens.n)


@torch.no_grad()
def attentions(
    model: Any, inputs: dict[str, Any], processor: Any = None
) -> list[Float[Tensor, " n"]]:
    """A_v of each picture, row by row, as the attached compressor will see it.

    Args:
        model, inputs: the model and its inputs.
        processor: leaves the chat template's tokens out of the question.
    """
    method = _Observing()
    with attach(model, method, processor=processor, _force=True):
        model(**inputs, use_cache=False)
    return method.noted


class Pairs:
    """Attention and relevance of dialogues, on disk; each turn of a dialogue is a sample.

    Earlier turns stand in the conversation with the model's own answers. Only turns that it
    answers right count, and only prompts of at most `limit` visual tokens.

    Args:
        model, processor: as loaded, in evaluation mode.
        folder: where the files are; made if absent. Every file's name is a hash of all that it
            depends on, so a folder may serve several runs, and an interrupted one goes on.
        rule: how relevance is computed.
        limit: visual tokens of a prompt.
        max_new_tokens: the longest answer.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        folder: str | Path,
        *,
        rule: Rule | None = None,
        limit: int = LIMIT,
        max_new_tokens: int = 16,
    ) -> None:
        self.model, self.processor, self.folder = model, processor, Path(folder)
        self.rule, self.limit, self.max_new_tokens = rule or Rule(), limit, max_new_tokens
        self._identity = {
            "format": FORMAT,
            "model": of_weights(model),
            "dtype": str(model.dtype),
            "processor": fingerprints.processor(processor),
            "rule": dataclasses.asdict(self.rule),
            "limit": limit,
            "max_new_tokens": max_new_tokens,
        }

    def file(self, dialogue: Dialogue) -> Path:
        """Where the pairs of a dialogue are."""
        text = json.dumps([self._identity, fingerprint([dialogue])], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def fill(
        self,
        dialogues: Sequence[Dialogue],
        *,
        batch_size: int = 8,
        done: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Compute and store what is not there yet.

        Args:
            dialogues: all that will be trained or measured on.
            batch_size: of them run at a time.
            done: given how many more dialogues are there.
        """
        missing = [each for each in dialogues if not is_whole(self.file(each))]
        done(len(dialogues) - len(missing))
        for is_video in (False, True):  # a batch of prompts is of one kind
            kind = [each for each in missing if each.is_video == is_video]
            for start in range(0, len(kind), batch_size):
                part = kind[start : start + batch_size]
                self._compute(part)
                done(len(part))

    def read(self, dialogues: Iterable[Dialogue]) -> list[Pair]:
        """What was stored of these dialogues.

        Raises:
            SavedFileError: a file is not there, or cut off.
        """
        found = []
        for each in dialogues:
            tensors, _ = read_tensors(self.file(each))
            count = sum(name.startswith("attention.") for name in tensors)
            found += [
                Pair(tensors[f"attention.{i}"], tensors[f"relevance.{i}"], each.is_video)
                for i in range(count)
            ]
        return found

    def _compute(self, dialogues: Sequence[Dialogue]) -> None:
        pictures = [each.load() for each in dialogues]
        batch = Batch(
            self.model, self.processor, dialogues, pictures, frozenset(), self.max_new_tokens
        )
        said: list[list[str]] = [[] for _ in dialogues]
        found: list[list[Pair]] = [[] for _ in dialogues]
        for turn in range(max(len(each.turns) for each in dialogues)):
            rows = [i for i, each in enumerate(dialogues) if len(each.turns) > turn]
            inputs = batch.inputs(rows, turn, [said[row] for row in rows])
            answers = relevance.own_answers(self.model, inputs, self.max_new_tokens)
            texts = self.processor.batch_decode(answers, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                said[row].append(text.strip())
            there = placed(self.model, inputs)
            if not any(
                self._counts(dialogues[row], turn, said[row], there, i)
                for i, row in enumerate(rows)
            ):
                continue
            maps = relevance.explain(self.model, inputs, answers, rule=self.rule)
            seen = attentions(self.model, inputs, self.processor)
            for p, a, r in zip(there, seen, maps, strict=True):
                row = rows[p.row]
                if self._counts(dialogues[row], turn, said[row], there, p.row):
                    found[row].append(Pair(a, r, p.is_video))
        for dialogue, pairs, texts in zip(dialogues, found, said, strict=True):
            tensors = {f"attention.{i}": each.attention for i, each in enumerate(pairs)}
            tensors |= {f"relevance.{i}": each.relevance for i, each in enumerate(pairs)}
            write_tensors(self.file(dialogue), tensors, {"answers": json.dumps(texts)})

    def _counts(
        self, dialogue: Dialogue, turn: int, said: Sequence[str], there: Sequence[Placed], row: int
    ) -> bool:
        """Whether a turn is answered right and its prompt not too long."""
        tokens = sum(p.layout.n for p in there if p.row == row)
        return dialogue.turns[turn].right(said[turn]) and 0 < tokens <= self.limit


class Examples(Dataset[dict[str, Tensor]]):
    """Pairs as the net is given them.

    Args:
        pairs: of images and videos.
        scaling: of the method.
    """

    def __init__(self, pairs: Sequence[Pair], scaling: str) -> None:
        self._items = [
            {
                "attention": scaled(each.attention.float(), scaling),
                "labels": label(each.relevance.float()),
                "video": torch.tensor(each.is_video),
            }
            for each in pairs
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._items[index]


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pictures of different lengths side by side; `real` says which entries there are."""
    lengths = [len(each["labels"]) for each in items]
    found = {
        name: nn.utils.rnn.pad_sequence([each[name] for each in items], batch_first=True)
        for name in ("attention", "labels")
    }
    places = torch.arange(max(lengths))
    found["real"] = places < torch.tensor(lengths)[:, None]
    found["video"] = torch.stack([each["video"] for each in items])
    return found


# ---------------------------------------------------------------- the training


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of a training. Defaults are the paper's (Appendix B).

    Attributes:
        epochs: passes over the pairs.
        batch: pairs of a step.
        rate: of Adam.
        seed: of the first parameters and of the order.
        save_every: steps between checkpoints.
    """

    epochs: int = 100
    batch: int = 128
    rate: float = 1e-3
    seed: int = 0
    save_every: int = 500


class Learner(nn.Module):
    """The nets of each kind with the loss, as the Trainer takes them."""

    def __init__(self, net: nn.ModuleDict) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        attention: Float[Tensor, "b n"],
        labels: Float[Tensor, "b n"],
        real: Bool[Tensor, "b n"],
        video: Bool[Tensor, " b"],
    ) -> dict[str, Tensor]:
        """The mean of Eq. 3 over the batch, whatever kinds are in it."""
        losses = []
        for kind, net in self.net.items():
            rows = video == (kind == KINDS[1])
            if bool(rows.any()):
                losses.append(divergence(labels[rows], net(attention[rows], real[rows])))
        return {"loss": torch.cat(losses).mean()}


class RelevanceTrainer(Trainer):
    """The Hugging Face Trainer with an order of its own that the seed alone decides."""

    def __init__(self, settings: Settings, tell: Tell, **options: Any) -> None:
        self.settings = settings
        super().__init__(**options, data_collator=collate, callbacks=[_Watch(tell)])
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        count = len(self.train_dataset if train_dataset is None else train_dataset)
        return Order(count, min(self.settings.batch, count), self.settings.seed)


class _Watch(TrainerCallback):
    """Marks checkpoints that are whole, tells what is logged."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        values = {k: float(v) for k, v in (logs or {}).items() if k in ("loss", "train_loss")}
        if values:
            self.tell(Progress(state.global_step, state.max_steps, float(state.epoch or 0), values))


def train(
    method: Relevance,
    model: nn.Module,
    pairs: Sequence[Pair],
    out: str | Path,
    settings: Settings = Settings(),
    *,
    validation: Sequence[Pair] = (),
    facts: Table[str, Any] | None = None,
    cpu: bool = False,
    tell: Tell = lambda progress: None,
) -> Trained:
    """Fit the net to pairs, and save it with what is known of its training.

    Killed at any time, the same call goes on from the last checkpoint; another in the same folder
    is refused.

    Args:
        method: its fields, and parameters to go on from if it has some.
        model: whose pairs they are; it is not run.
        pairs: to learn from.
        out: a folder for checkpoints and the compressor.
        settings: every number of the training.
        validation: pairs on which it is measured in the end.
        facts: more that the record shall say.
        cpu: whether to leave an accelerator alone.
        tell: given a `Progress` whenever something was measured.

    Raises:
        InputError: there is no pair of a kind that the method has a net for.
        MissingDependency: `accelerate` is not installed.
        SavedFileError: the folder holds another training.
    """
    need("accelerate", "Training")
    for kind in method.kinds:
        if not any(KINDS[each.is_video] == kind for each in pairs):
            raise InputError(
                f"There is no pair of the kind {kind!r} to learn from, which the method has a net "
                "for.\nGive dialogues about some that the model answers right, or leave the kind "
                "out of kinds=."
            )
    folder = Path(out)
    chosen = [each for each in pairs if KINDS[each.is_video] in method.kinds]
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
    begin(folder, record)
    if (folder / FOLDER / saving.FILE).is_file():
        return finished(folder, model)
    begun = random_start(settings.seed)(method, model, ())
    assert isinstance(begun, Relevance) and isinstance(begun.net, nn.ModuleDict)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=min(settings.batch, len(chosen)),
        num_train_epochs=settings.epochs,
        optim="adamw_torch",
        weight_decay=0.0,  # without decay AdamW is Adam
        learning_rate=settings.rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        seed=settings.seed,
        logging_steps=50,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=cpu,
    )
    with quiet():
        running = RelevanceTrainer(
            settings,
            tell,
            model=Learner(begun.net),
            args=arguments,
            train_dataset=Examples(chosen, method.scaling),
        )
        clear_torn(folder)
        last = last_checkpoint(folder)
        running.train(resume_from_checkpoint=None if last is None else str(last))
    trained = dataclasses.replace(begun, net=begun.net.cpu(), trained_on=of_weights(model))
    values = measure(trained, validation)
    known = {
        "settings": dataclasses.asdict(settings),
        "data": {"pairs": len(chosen), "validation": len(validation), **(facts or {})},
        "measured": values,
    }
    saving.save(trained, folder / FOLDER, model=model, training=known)
    return Trained(trained, folder / FOLDER, values)


def _identity(pairs: Sequence[Pair]) -> list[Any]:
    """How many pairs, and a hash of them."""
    found = hashlib.sha256()
    for each in pairs:
        for values in (each.attention, each.relevance):
            found.update(values.contiguous().numpy().tobytes())
    return [len(pairs), found.hexdigest()[:16]]


@torch.no_grad()
def measure(method: Relevance, pairs: Sequence[Pair]) -> dict[str, float]:
    """Means over pairs: Eq. 3, and the overlap with the most relevant tokens at some shares.

    Beside it the same overlaps of the attention itself, which a net must beat.
    """
    assert isinstance(method.net, nn.ModuleDict)
    sums: dict[str, list[float]] = {}
    for each in (p for p in pairs if KINDS[p.is_video] in method.kinds):
        net = method.net[KINDS[each.is_video]]
        assert isinstance(net, Predictor)
        given = scaled(each.attention.float(), method.scaling)
        found = net(given[None].to(next(net.parameters()).device)).cpu()
        values = {"loss": float(divergence(label(each.relevance.float())[None], found))}
        for share in SHARES:
            name = f"overlap at {100 * share:g} %"
            values[name] = overlap(found[0], each.relevance, share)
            values[f"{name}, attention"] = overlap(each.attention, each.relevance, share)
        for name, value in values.items():
            sums.setdefault(name, []).append(value)
    return {name: sum(parts) / len(parts) for name, parts in sums.items()}
