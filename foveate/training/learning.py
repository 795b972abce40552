"""Training a learned compressor from beginning to end, or from where it was interrupted."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

from foveate import catalog, saving
from foveate.errors import InputError, MissingDependency, SavedFileError
from foveate.evaluation import fingerprints
from foveate.evaluation.data import Dialogue, fingerprint
from foveate.fingerprint import of_bits, of_weights
from foveate.holding import training_in
from foveate.learned import LearnedCompressor
from foveate.training import processes
from foveate.training.accuracy import MOST, measure
from foveate.training.entries import Size
from foveate.training.recipe import Recipe
from foveate.training.student import Objective, Student, eq10, frozen
from foveate.training.teacher import Entry, Teacher

RECORD, FOLDER = "training.json", "compressor"
_SAMPLE = 64  # dialogues that a start may look at


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        method: the compressor, with its weights.
        folder: where it is saved, for `foveate.load`.
        values: the last measurements on the validation dialogues, by name and budget; among them
            "accuracy", and visual tokens "entering" the language model and on "average" over its
            layers.
    """

    method: LearnedCompressor
    folder: Path
    values: dict[str, float]


# (method, model, some of what it will learn from) -> the method with its first parameters
Start = Callable[[Any, Any, Sequence[Entry]], LearnedCompressor]


def random_start(seed: int = 0) -> Start:
    """The method's own fresh parameters, unless it has some."""

    def start(method: LearnedCompressor, model: Any, examples: Sequence[Entry]) -> Any:
        if method.net is None:
            return method.initialised(model, seed)
        # A copy: the same call after an interruption begins where this one did.
        return dataclasses.replace(method, net=copy.deepcopy(method.net))

    return start


def train(
    method: LearnedCompressor,
    teacher: Teacher,
    dialogues: Sequence[Dialogue],
    out: str | Path,
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    validation: Sequence[Dialogue] = (),
    objective: Objective | None = None,
    start: Start | None = None,
    facts: Table[str, Any] | None = None,
    tensorboard: bool = True,
    cpu: bool = False,
    batch_size: int = 8,
    accuracy: int = MOST,
    tell: Callable[[Any], None] = lambda progress: None,
    sized: Callable[[Size], None] = lambda size: None,
    answered: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> Trained:
    """Train a compressor, and save it with what is known of its training.

    The model is frozen; nothing of it is stored. Killed at any time, the same call goes on from
    the last checkpoint and ends with the same weights. Under `torchrun` or `accelerate launch`
    every process takes its share of each batch.

    Args:
        method: its fields, and parameters to go on from if it has some.
        teacher: the full model and where its answers are kept. Load the model in bfloat16 to train
            in it; the compressor's own parameters stay in float32.
        dialogues: to learn from.
        out: a folder for checkpoints, logs and the compressor.
        recipe: every number of the training.
        validation: dialogues on which it is measured as it goes; none if empty.
        objective: what is minimised; Eq. 10 of MetaCompress with the recipe's weights if None.
        start: makes the first parameters; the method's own if None.
        facts: more that the record shall say, and that must be the same when it goes on.
        tensorboard: whether to log for TensorBoard, into `out`/runs.
        cpu: whether to leave an accelerator alone.
        batch_size: dialogues that the full model answers at a time.
        accuracy: validation dialogues that are asked in the end, if they have answers, of the full
            and of the compressed model at every budget; 0 for none.
        tell: given a `Progress` whenever something was measured.
        sized, answered: given what the full model's answers take on disk, and how many more
            dialogues are answered.
        options: further ones of `foveate.attach`.

    Raises:
        MissingDependency: `accelerate`, or `tensorboard` if asked for, is not installed.
        InputError: fewer dialogues than a batch, or the answers take more than they may.
        SavedFileError: the folder holds another training, or one that is running.
    """
    need("accelerate", "Training")
    if tensorboard:
        need("tensorboard", "Logging for TensorBoard")
    if len(dialogues) < recipe.batch:
        raise InputError(
            f"A batch of {recipe.batch} needs as many dialogues; there are {len(dialogues)}.\n"
            "Give more of them, or a smaller batch."
        )
    from foveate.training import trainer as engine

    folder, model = Path(out), teacher.model
    arguments = engine.arguments(
        recipe, folder, validated=bool(validation), tensorboard=tensorboard, cpu=cpu
    )
    process = processes.of(arguments)
    process.hold(model)
    everything = [*dialogues, *validation]
    record = {
        "method": catalog.name_of(method),
        "fields": dataclasses.asdict(_bare(method)),
        "model": of_weights(model),
        "dtype": str(model.dtype),
        "recipe": dataclasses.asdict(recipe),
        "dialogues": [len(dialogues), fingerprint(dialogues)],
        "validation": [len(validation), fingerprint(validation)],
        "answers": [teacher.answers, teacher.max_new_tokens, teacher.top],
        **begins_at(method),
        **({"attached": {k: _told(v) for k, v in options.items()}} if options else {}),
        **(facts or {}),
    }
    with begun(folder, record, process):
        if (folder / FOLDER / saving.FILE).is_file():
            return finished(folder, model)

        teacher.fill(
            process.share(everything),
            whole=everything,
            processes=process.count,
            batch_size=batch_size,
            tell=sized if process.first else lambda size: None,
            done=answered,
        )
        process.wait()
        sample = dialogues[:: max(1, len(dialogues) // _SAMPLE)][:_SAMPLE]
        first = (start or random_start(recipe.seed))(method, model, teacher.entries(sample))
        with engine.quiet(), frozen(model, checkpointing=recipe.checkpointing):
            student = Student(first, model, objective or eq10(recipe.weights), **options)
            running = engine.CompressorTrainer(
                student,
                arguments,
                recipe,
                engine.Lectures(teacher, dialogues),
                engine.Lectures(teacher, validation) if validation else None,
                tell,
            )
            engine.resume(running, folder)
            values = running.final()
        net = student.net.cpu()
        trained = dataclasses.replace(first, net=net, trained_on=of_weights(model))
        found = None
        if accuracy:
            found = measure(
                trained,
                model,
                teacher.processor,
                validation,
                recipe.keeps,
                process,
                most=accuracy,
                max_new_tokens=teacher.max_new_tokens,
                batch_size=batch_size,
                attached=options,
            )
        values |= found.values if found else {}
        if process.first:
            known = {
                "settings": recipe.effective,
                "data": {key: record[key] for key in ("dialogues", "validation", "answers")},
                "measured": values,
                **({"accuracy": dataclasses.asdict(found)} if found else {}),
                **({"source": dict(facts)} if facts else {}),
            }
            saving.save(trained, folder / FOLDER, model=model, training=known)
        process.wait()
        return Trained(trained, folder / FOLDER, values)


def begins_at(method: LearnedCompressor) -> dict[str, str]:
    """For a training's record: the parameters that a method brings along, if it does."""
    return {} if method.net is None else {"begins": of_bits(method.net)}


def _told(option: Any) -> Any:
    """An option of `foveate.attach` for the record; of a processor what it does."""
    plain = option is None or isinstance(option, bool | int | float | str)
    return option if plain else fingerprints.processor(option)


def _bare(method: LearnedCompressor) -> LearnedCompressor:
    return dataclasses.replace(method, net=None, trained_on=None)


def need(package: str, purpose: str) -> None:
    """Raise a MissingDependency if a package of the extra `train` is not installed."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingDependency(package, purpose, "train") from error


@contextlib.contextmanager
def begun(folder: Path, record: dict[str, Any], process: processes.Process) -> Iterator[None]:
    """Hold a folder for a training; a process that ends, however it does, lets go of it.

    Args:
        folder: for all that it writes.
        record: what it is.
        process: which of its processes this is.

    Raises:
        SavedFileError: the folder holds another training, or one that is running.
    """
    if not process.first:
        yield
        return
    with training_in(folder):
        begin(folder, record)
        yield


def begin(folder: Path, record: dict[str, Any]) -> None:
    """Write what this training is, or check that it is the one in the folder.

    One that has made no step there yet gives way: another number of dialogues may be what its own
    error asked for.
    """
    file = folder / RECORD
    plain = json.loads(json.dumps(record))
    if file.is_file() and any(folder.glob("checkpoint-*")) | (folder / FOLDER).exists():
        with contextlib.suppress(json.JSONDecodeError):
            there = json.loads(file.read_text())
            if there == plain:
                return
            other = sorted(k for k in {**there, **plain} if there.get(k) != plain.get(k))
            raise SavedFileError(
                f"{folder} holds another training: it differs in {', '.join(other)}.\n"
                "Choose another folder, or give the same settings to go on."
            )
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(plain, indent=2) + "\n")
    os.replace(partial, file)


def finished(folder: Path, model: Any) -> Trained:
    """What an earlier call has trained."""
    method = saving.load(folder / FOLDER, model=model)
    assert isinstance(method, LearnedCompressor)
    told = json.loads((folder / FOLDER / saving.FILE).read_text())["training"]
    return Trained(method, folder / FOLDER, told["measured"])
