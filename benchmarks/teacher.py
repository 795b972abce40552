"""What a training step costs with the full model's side cached, and with it run anew.

    python -m benchmarks.teacher                        # the shipped model on the CPU, minutes
    python -m benchmarks.teacher --device cuda --batch 36 --repeats 15

Algorithm 1 of MetaCompress (arXiv 2603.21701) runs the vision tower and the full model in every
step, foveate once before the first. Three ways to make the same step of the same optimiser on the
same dialogues:

* cached: features, answers and their distributions are read from disk, as `foveate train` does;
* given answers: pictures are prepared and encoded, and the full model runs once over the answers
  that the data gives;
* generated answers: the full model generates them first, turn after turn, on features that are
  encoded once.

The three take turns (A B C, B C A, C A B ...) after a warm-up, so that a busy machine slows all of
them; what counts are the ratios of each round, told by their median and quartiles.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import typer

from foveate import catalog, reference
from foveate.adapters import adapter_for
from foveate.attach import encode
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue
from foveate.evaluation.timing import seconds
from foveate.learned import LearnedCompressor
from foveate.training import data
from foveate.training.batches import Lesson, Lessons, collate
from foveate.training.features import join, pack
from foveate.training.losses import Distribution, Weights
from foveate.training.student import Student, eq10, frozen
from foveate.training.teacher import Teacher
from foveate.training.transcripts import first_inputs, transcript

CACHED, GIVEN, GENERATED = "cached", "given answers", "generated answers"
KEEP = 0.1
_LONGEST = 16  # tokens of a generated answer; the shipped model's are shorter


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to make a step, beside the cached one.

    Attributes:
        name: what is done anew.
        median, low, high: of its time over the cached step's, round by round; and the quartiles.
        seconds: its median time.
    """

    name: str
    median: float
    low: float
    high: float
    seconds: float


class _Seen(Batch):
    """A batch whose pictures are encoded: its inputs are text alone."""

    def inputs(self, *asked: Any, **options: Any) -> dict[str, Any]:
        found = super().inputs(*asked, **options)
        return {name: value for name, value in found.items() if not name.startswith("pixel")}


@torch.no_grad()
def anew(teacher: Teacher, dialogues: Sequence[Dialogue], generated: bool) -> Lessons:
    """What `Teacher` stores of some dialogues, computed now and kept in memory."""
    model, processor = teacher.model, teacher.processor
    pictures = [each.load() for each in dialogues]
    inputs = [
        first_inputs(model, processor, each, shown)
        for each, shown in zip(dialogues, pictures, strict=True)
    ]
    features = [pack(encode(model, each), project=adapter_for(model).project) for each in inputs]
    answers = [[turn.answers[0] for turn in each.turns] for each in dialogues]
    if generated:
        batch = _Seen(model, processor, dialogues, pictures, frozenset(), _LONGEST)
        # The tower has run already; without this it would run a second time.
        shared = join(features, model.device, adapter_for(model).project)
        batch._encoded[tuple(range(len(dialogues)))] = shared
        answers = [record["answers"] for record in batch.converse(None)]
    texts = [
        transcript(model, processor, each, said, given)
        for each, said, given in zip(dialogues, answers, inputs, strict=True)
    ]
    asked = [Lesson(text, None, each) for text, each in zip(texts, features, strict=True)]
    whole = collate(asked).to(model.device)
    logits = whole.rows_of(whole.answer_logits(model))
    told = [Distribution.of(own, teacher.top) for own in logits]
    return collate(
        [dataclasses.replace(each, full=full) for each, full in zip(asked, told, strict=True)]
    )


def measure(teacher: Teacher, dialogues: Sequence[Dialogue], repeats: int) -> list[Way]:
    """The three ways, each as a step of AdamW on one batch of these dialogues.

    Args:
        teacher: of the model; what it stores is made first.
        dialogues: of a step, of equally many turns.
        repeats: timed rounds, at least 2.
    """
    model = teacher.model
    teacher.fill(dialogues)
    entries = teacher.entries(dialogues)
    method: Any = catalog.make("metacompress")
    assert isinstance(method, LearnedCompressor)
    student = Student(method.initialised(model), model, eq10(Weights())).to(model.device)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step(lessons: Lessons) -> None:
        given = lessons.to(model.device)
        optimiser.zero_grad()
        with student.attached(given, KEEP):
            student(given)["loss"].mean().backward()
        optimiser.step()

    ways: dict[str, Callable[[], None]] = {
        CACHED: lambda: step(collate([each() for each in entries])),
        GIVEN: lambda: step(anew(teacher, dialogues, generated=False)),
        GENERATED: lambda: step(anew(teacher, dialogues, generated=True)),
    }
    names = list(ways)
    rounds: list[dict[str, float]] = []
    with frozen(model):
        for call in ways.values():
            call()
        for number in range(repeats):
            turned = [names[(number + i) % len(names)] for i in range(len(names))]
            rounds.append({name: seconds(ways[name], model.device.type) for name in turned})
    return [_way(name, rounds) for name in names]


def _way(name: str, rounds: Sequence[dict[str, float]]) -> Way:
    ratios = [each[name] / each[CACHED] for each in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Way(name, middle, low, high, statistics.median(each[name] for each in rounds))


def table(ways: Sequence[Way]) -> str:
    """The ways as Markdown."""
    lines = [
        "| the full model's side | time / cached [quartiles] | seconds |",
        "| --- | --- | --- |",
    ]
    for way in ways:
        ratio = "1" if way.name == CACHED else f"{way.median:.2f} [{way.low:.2f}, {way.high:.2f}]"
        lines.append(f"| {way.name} | {ratio} | {way.seconds:.2f} |")
    return "\n".join(lines)


def main(
    batch: Annotated[int, typer.Option(help="Dialogues of a step.", min=1)] = 12,
    repeats: Annotated[int, typer.Option(help="Rounds that are timed.", min=2)] = 7,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure what the cached teacher saves in a step."""
    model, processor = reference.load()
    model.to(device)
    dialogues = data.examples("scenes", batch)
    with tempfile.TemporaryDirectory() as folder:
        ways = measure(Teacher(model, processor, folder), dialogues, repeats)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    typer.echo(f"{batch} dialogues, {repeats} rounds, {where}, {torch.get_num_threads()} threads\n")
    typer.echo(table(ways))


if __name__ == "__main__":
    typer.run(main)
