"""The best P for one picture and its dialogue: Algorithm 2 of MetaCompress, and where it looks.

arXiv 2603.21701, sections 4 and 8.1: P_raw (m, n) drawn from N(0, 0.1^2), P its row softmax,
minimised over P_raw is L_pred + L_entropy by plain gradient descent with rate 10, 500 steps. What
is kept, each row's heaviest source, is then compared with the attention that heuristics go by
(Figures 1 and 5).

Open in the paper and decided here: L_pred is the mean over the tokens of all answers. Every
picture has a P_raw of its own, so the dialogues of a batch do not touch each other. As with every
method here a row has the place and the position of its heaviest free source, found anew in every
step (`positions="reindex"`: one behind the other). The attention of the tower is that of the layer
whose features are taken, not of its last one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate.attach import Item, attach
from foveate.compressor import Compressor, Reads, Stage, VisualTokens, check_keep, resolve_keep
from foveate.errors import AttachError, InputError
from foveate.evaluation.data import Dialogue
from foveate.evaluation.optimum import file_of
from foveate.mapping import Mapping
from foveate.methods.uniform import Uniform
from foveate.training.batches import Lesson, collate
from foveate.training.losses import entropy, prediction
from foveate.training.student import frozen, mean_by_row
from foveate.training.teacher import Teacher
from foveate.training.transcripts import Transcript

READS = frozenset({Reads.ATTENTION})  # of the tower, for the comparison: what the teacher must read


@dataclasses.dataclass(frozen=True, eq=False)
class Optimal:
    """What was found for one dialogue.

    Attributes:
        name: the dialogue's.
        mappings: P of each of its pictures, dense.
        before, after: KL(full || compressed), the mean over the answers' tokens, with P as it was
            drawn and as it was found.
        curve: (steps,) the same at every step.
        entropy: mean entropy of the rows in the end.
    """

    name: str
    mappings: tuple[Mapping, ...]
    before: float
    after: float
    curve: Float[Tensor, " s"]
    entropy: float


def optimise(
    teacher: Teacher,
    dialogues: Sequence[Dialogue],
    keep: int | float,
    *,
    steps: int = 500,
    rate: float = 10.0,
    alpha: float = 1.0,
    sigma: float = 0.1,
    seed: int = 0,
    positions: str = "original",
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> list[Optimal]:
    """The best P for each dialogue's pictures, all dialogues side by side.

    Args:
        teacher: the full model, whose answers to the dialogues are stored.
        dialogues: as many as fit into one forward and backward pass.
        keep: tokens of each picture.
        steps, rate, alpha, sigma: of Algorithm 2; the paper's.
        seed: of P_raw.
        positions: as `foveate.attach` takes it.
        tell: told the mean divergence at every step.

    Raises:
        BudgetError, InputError: a budget that cannot be served, or that leaves everything.
    """
    checked(keep)
    model = teacher.model
    with frozen(model):
        lessons = collate([teacher.lesson(each) for each in dialogues]).to(model.device)
        encoded = lessons.encoded(model)

        def said(
            mappings: Sequence[Sequence[Mapping]] | None,
        ) -> tuple[Float[Tensor, " b"], list[Item]]:
            with attach(
                model,
                Uniform(),
                keep=keep,
                positions=positions,
                encoded=encoded,
                _recorded=mappings,
            ) as run:
                logits = lessons.answer_logits(model, encoded)
                items = run.items
            assert lessons.full is not None
            return mean_by_row(prediction(lessons.full, logits), lessons), items

        with torch.no_grad():
            items = said(None)[1]
        raw = _drawn(items, dialogues, keep, sigma, seed, model.device)
        descent = torch.optim.SGD(raw, lr=rate)
        curve = []
        for step in range(steps + 1):
            matrices = [each.softmax(-1) for each in raw]
            wanted = step < steps
            with torch.set_grad_enabled(wanted):
                divergence, _ = said([[Mapping.dense(matrix)] for matrix in matrices])
            curve.append(divergence.detach().cpu())
            tell(step, float(curve[-1].mean()))
            if wanted:
                descent.zero_grad()
                # Sums: the step of one dialogue does not depend on how many there are.
                loss = divergence.sum() + alpha * _entropies(matrices, items, len(dialogues)).sum()
                loss.backward()
                descent.step()
        found = [each.detach().softmax(-1) for each in raw]
        spread = _entropies(found, items, len(dialogues)).tolist()
    told = torch.stack(curve, 1)
    return [
        Optimal(
            each.name,
            tuple(
                Mapping.dense(matrix.cpu())
                for matrix, item in zip(found, items, strict=True)
                if item.row == row
            ),
            float(told[row, 0]),
            float(told[row, -1]),
            told[row, :-1],
            spread[row],
        )
        for row, each in enumerate(dialogues)
    ]


def checked(keep: int | float) -> None:
    """Raise what is wrong with a budget, before the full model is asked anything."""
    check_keep(keep)
    if keep == 1.0 and isinstance(keep, float):
        raise InputError("keep=1.0 is the untouched model: there is nothing to optimise.")


def _drawn(
    items: Sequence[Item],
    dialogues: Sequence[Dialogue],
    keep: int | float,
    sigma: float,
    seed: int,
    device: Any,
) -> list[Tensor]:
    """P_raw of every picture; it depends on its dialogue's name, not on the batch."""
    raw = []
    for item in items:
        name = f"{dialogues[item.row].name} {item.index}"
        number = hashlib.sha256(f"{seed} {name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(number, "big"))
        drawn = sigma * torch.randn(resolve_keep(keep, item.n), item.n, generator=generator)
        raw.append(drawn.to(device).requires_grad_())
    return raw


def _entropies(
    matrices: Sequence[Tensor], items: Sequence[Item], count: int
) -> Float[Tensor, " b"]:
    """Of each dialogue: the mean over its pictures of the mean entropy of P's rows."""
    rows = torch.tensor([item.row for item in items], device=matrices[0].device)
    values = torch.stack([entropy(matrix) for matrix in matrices])
    sums = values.new_zeros(count).index_add(0, rows, values)
    return sums / torch.bincount(rows, minlength=count).clamp(min=1)


# ---------------------------------------------------------------- where it looks


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """Attention to one picture's tokens, and which of them a mapping keeps.

    Attributes:
        kept: (k,) the heaviest source of each row, each source once.
        rows: m, the rows of P.
        tower: (n,) attention from [CLS] in the tower's selected layer, or from all tokens where
            there is none.
        prompt: (n,) mean attention from the prompt's tokens in the first decoder layer.
    """

    kept: Int[Tensor, " k"]
    rows: int
    tower: Float[Tensor, " n"]
    prompt: Float[Tensor, " n"]

    def share(self, name: str) -> float:
        """The share of the kept tokens that are among the m of largest attention."""
        top = self._scores(name).topk(self.rows).indices
        return float(torch.isin(self.kept, top).double().mean())

    def rank(self, name: str) -> float:
        """Where the kept tokens stand on average, from 0 (least attention) to 1; 1/2 by chance."""
        order = self._scores(name).argsort().argsort().double()
        return float(order[self.kept].mean() / (len(order) - 1))

    @property
    def chance(self) -> float:
        """The share that tokens drawn at random would have: m / n."""
        return self.rows / len(self.tower)

    def _scores(self, name: str) -> Tensor:
        scores: Tensor = getattr(self, name)
        return scores


ATTENTIONS = ("tower", "prompt")


@dataclasses.dataclass(frozen=True)
class _Look(Compressor):
    """Keeps everything and notes the attention that heuristics would go by."""

    seen: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)
    stage: ClassVar[Stage] = Stage.DECODER
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.BEFORE, Reads.ATTENTION})

    def layers_in(self, total: int) -> tuple[int, ...]:
        """After the first layer."""
        return (1,)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P = I."""
        assert tokens.before is not None and tokens.attention is not None
        text = tokens.before.text
        prompt = tokens.before.received(text) / max(1, len(text))
        self.seen.append((tokens.attention.float().cpu(), prompt.cpu()))
        return Mapping.identity(tokens.n)


@torch.no_grad()
def looked(
    teacher: Teacher, dialogues: Sequence[Dialogue], found: Sequence[Optimal]
) -> list[Looked]:
    """Attention to each picture beside what its P keeps, picture by picture.

    Args:
        teacher: with `READS` among what it reads.
        dialogues, found: what `optimise` was given, and gave.

    Raises:
        AttachError: the teacher did not read the tower's attention.
    """
    if not teacher.reads >= READS:
        raise AttachError(
            "The teacher did not read the tower's attention.\n"
            "Make it with reads=foveate.training.optimal.READS."
        )
    result = []
    for dialogue, optimal in zip(dialogues, found, strict=True):
        lesson = teacher.lesson(dialogue)
        prompt = collate([_first_prompt(lesson)]).to(teacher.model.device)
        look, encoded = _Look(), prompt.encoded(teacher.model)
        with frozen(teacher.model), attach(teacher.model, look, encoded=encoded, _force=True):
            prompt.answer_logits(teacher.model, encoded)
        for mapping, (tower, asked) in zip(optimal.mappings, look.seen, strict=True):
            kept = mapping.to_matrix().argmax(1).unique()
            result.append(Looked(kept, mapping.m, tower, asked))
    return result


def _first_prompt(lesson: Lesson) -> Lesson:
    """A dialogue up to where its first answer begins."""
    text = lesson.text
    stop = int(text.places[0]) + 1
    types = {name: values[:stop] for name, values in text.types.items()}
    cut = Transcript(text.ids[:stop], text.places[:1], text.turns[:1], types)
    return Lesson(cut, None, lesson.pictures)


def summary(places: Sequence[Looked]) -> dict[str, float]:
    """Means over pictures: of what share of the kept tokens has much attention, and by chance."""
    found = {"chance": sum(each.chance for each in places) / len(places)}
    for name in ATTENTIONS:
        found[f"{name}_share"] = sum(each.share(name) for each in places) / len(places)
        found[f"{name}_rank"] = sum(each.rank(name) for each in places) / len(places)
    found["sources"] = sum(len(each.kept) / each.rows for each in places) / len(places)
    return found


def plot(places: Sequence[Looked], path: str | Path) -> Path:
    """Figures 1b and 1c of the paper: attention to all tokens, and to those that are kept.

    Args:
        places: of some pictures.
        path: a PNG or SVG file.
    """
    from matplotlib.figure import Figure

    titles = {"tower": "from [CLS] in the vision tower", "prompt": "from the prompt, first layer"}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ATTENTIONS, strict=True):
        # Relative to an even spread: pictures may have different numbers of tokens.
        every = torch.cat([_relative(each, name) for each in places])
        kept = torch.cat([_relative(each, name)[each.kept] for each in places])
        floor = float(every[every > 0].min()) if bool((every > 0).any()) else 1e-6
        low, high = torch.tensor([floor, float(every.max())]).log10().tolist()
        edges = torch.logspace(low, high + 1e-6, 41).tolist()
        for values, label in ((every, "all tokens"), (kept, "kept tokens")):
            axes.hist(
                values.clamp(min=floor).tolist(),
                edges,
                density=False,
                alpha=0.6,
                label=label,
                weights=[1 / len(values)] * len(values),
            )
        axes.set_xscale("log")
        axes.set_xlabel(f"attention {titles[name]}, times n")
        axes.set_ylabel("share of tokens")
        axes.legend()
    file = Path(path)
    partial = file.with_name(f"partial.{file.name}")
    figure.savefig(partial)
    os.replace(partial, file)
    return file


def _relative(each: Looked, name: str) -> Tensor:
    scores = each._scores(name)
    return scores / scores.sum() * len(scores)


def save(found: Iterable[Optimal], folder: str | Path) -> list[Path]:
    """Every P as a file that `foveate.Mapping.load` reads, named after its dialogue and picture."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for each in found:
        for number, mapping in enumerate(each.mappings):
            file = file_of(target, each.name, number)
            partial = file.with_suffix(".partial")
            mapping.save(partial)
            os.replace(partial, file)
            files.append(file)
    return files
