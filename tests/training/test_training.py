"""A training from beginning to end: what learns, what stays, what goes on after a kill."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerControl, TrainerState

import foveate
from foveate import catalog, reference
from foveate.errors import BudgetError, InputError, MissingDependency, SavedFileError
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import Setting
from foveate.learned import LearnedCompressor
from foveate.training import accuracy, data, learning
from foveate.training.batches import collate
from foveate.training.learning import train
from foveate.training.losses import Weights
from foveate.training.processes import Process
from foveate.training.recipe import Recipe
from foveate.training.start import pca_start
from foveate.training.student import Student, eq10, frozen
from foveate.training.teacher import Teacher
from foveate.training.trainer import (
    COMPLETE,
    STILL,
    STILL_LOGS,
    CompressorTrainer,
    Order,
    Progress,
    _Vanishing,
    clear_torn,
    last_checkpoint,
)
from tests.families.models import FAMILIES
from tests.training import needs_features

pytestmark = needs_features

TINY = Recipe(
    keeps=(0.1,), batch=4, steps=4, optimiser="adamw", log_every=1, evaluate_every=2, save_every=2
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    made = Teacher(*reference.load(), tmp_path_factory.mktemp("teacher"))
    made.fill(scenes())
    return made


def scenes() -> list[Dialogue]:
    found = data.examples("scenes", count=10)
    found[::3] = data.single_turns(found[::3])[::3]
    return found


def method(seed: int = 0) -> LearnedCompressor:
    found = catalog.make("metacompress", dim=8)
    assert isinstance(found, LearnedCompressor)
    return found


def run(teacher: Teacher, out: Path, recipe: Recipe = TINY, **options: Any) -> learning.Trained:
    options = {"validation": scenes()[8:], "tensorboard": False, "cpu": True, **options}
    return train(method(), teacher, scenes()[:8], out, recipe, **options)


def weights(trained: learning.Trained) -> dict[str, Tensor]:
    return load_file(str(trained.folder / "compressor.safetensors"))


# ---------------------------------------------------------------- gradients


def normed(module: Any, x: Tensor) -> Tensor:
    root = (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt()
    return module.weight * x / root


def test_gradients_through_a_frozen_model_equal_finite_differences() -> None:
    family = FAMILIES["llava"]
    model = family.build(dtype=torch.float64).requires_grad_(False)
    inputs = family.inputs(images_per_row=[2, 1], dtype=torch.float64)
    made = method().initialised(model, seed=1)
    assert made.net is not None
    made.net.double()
    with torch.no_grad():
        made.net.query.mul_(0.05)  # soft rows: finite differences see no kinks
        made.net.omega.add_(torch.linspace(-0.5, 0.5, 8))
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":  # computes in float32, whatever its weights are
            module.forward = functools.partial(normed, module)
    weight = torch.randn(200, dtype=torch.float64)

    def loss() -> Tensor:
        with foveate.attach(model, made, keep=5):
            logits = model(**inputs, use_cache=False).logits
            return (logits[:, -3:].log_softmax(-1) @ weight).sum()

    loss().backward()
    for name, parameter in made.net.named_parameters():
        assert parameter.grad is not None
        direction = torch.randn_like(parameter)
        expected = float((parameter.grad * direction).sum())
        step, values = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                values.append(float(loss()))
                parameter.sub_(sign * step * direction)
        found = (values[0] - values[1]) / (2 * step)
        assert found == pytest.approx(expected, rel=1e-6), name
        assert abs(expected) > 1, f"{name} has no influence"
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batchs_loss_is_the_mean_of_its_dialogues(teacher: Teacher, checkpointing: bool) -> None:
    model, lessons = teacher.model, [teacher.lesson(each) for each in scenes()[:4]]
    made = method().initialised(model)
    student = Student(made, model, eq10(Weights(0.5, 0.1)))

    def gradients(batch: Any, keep: float = 0.1) -> list[Tensor]:
        student.zero_grad()
        with student.attached(batch, keep):
            student(batch)["loss"].mean().backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    alone = [gradients(collate([each])) for each in lessons]
    with frozen(model, checkpointing=checkpointing):
        together = gradients(collate(lessons))
    assert len(together) == 4
    for i, found in enumerate(together):
        expected = torch.stack([each[i] for each in alone]).mean(0)
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert not model.training and next(model.parameters()).requires_grad


def test_the_objective_by_hand(teacher: Teacher) -> None:
    lessons = [teacher.lesson(each) for each in scenes()[:2]]
    batch = collate(lessons)
    student = Student(method().initialised(teacher.model), teacher.model, eq10(Weights(2.0, 3.0)))
    with torch.no_grad(), student.attached(batch, 6):
        found = student(batch)
        logits = batch.answer_logits(teacher.model, student._encoded)
        assert student._run is not None
        matrices = [item.answers[0].to_matrix() for item in student._run.items]
    start = 0
    for row, lesson in enumerate(lessons):
        assert lesson.full is not None
        stop = start + len(lesson.text.places)
        p, q = lesson.full.log_probs, logits[start:stop].log_softmax(-1)
        divergence = (p.exp() * (p - q)).sum(-1).mean()
        spread = -(matrices[row] * matrices[row].clamp(min=1e-38).log()).sum(1).mean()
        most = matrices[row].sum(0).max()
        torch.testing.assert_close(found["prediction"][row], divergence)
        torch.testing.assert_close(found["loss"][row], divergence + 2 * spread + 3 * most)
        start = stop
    assert found["loss"].shape == (2,)


# ---------------------------------------------------------------- the parameters


def test_only_the_compressor_is_a_parameter(teacher: Teacher) -> None:
    student = Student(method().initialised(teacher.model), teacher.model, eq10(Weights()))
    assert set(student.state_dict()) == {"net.query", "net.key", "net.omega", "net.offset"}
    assert len(list(student.modules())) == 2
    with pytest.raises(SavedFileError, match="no parameters to train"):
        Student(method(), teacher.model, eq10(Weights()))


def test_it_learns_saves_and_does_nothing_twice(teacher: Teacher, tmp_path: Path) -> None:
    told: list[Progress] = []
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    recipe = dataclasses.replace(TINY, steps=12, rate=3e-3, collapse=0.0, entropy=0.0)
    # From these few dialogues a random start learns or does not, by the processor's rounding.
    how = {"start": pca_start(2.0), "validation": scenes()[:8], "tell": told.append}
    first = run(teacher, tmp_path, recipe, **how)
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())
    losses = [each.values["eval_prediction_0.1"] for each in told if "eval_loss" in each.values]
    assert len(losses) == 6 and losses[-1] < 0.6 * losses[0]
    assert first.values["eval_prediction_0.1"] == losses[-1]
    steps = [each for each in told if "prediction" in each.values]
    assert [each.step for each in steps] == list(range(1, 13))
    assert all(each.values["loss"] == pytest.approx(each.values["prediction"]) for each in steps)
    held = load_file(str(tmp_path / "checkpoint-12" / "model.safetensors"))
    assert {k.removeprefix("net."): v.tolist() for k, v in held.items()} == {
        k: v.tolist() for k, v in weights(first).items()
    }
    loaded = foveate.load(first.folder, model=teacher.model)
    with foveate.attach(teacher.model, loaded, keep=0.1):
        pass
    card = (first.folder / "README.md").read_text()
    assert "optimiser: adamw" in card and "eval loss" in card
    stamp = (first.folder / "compressor.safetensors").stat().st_mtime_ns
    told.clear()
    again = run(teacher, tmp_path, recipe, **how)
    assert not told and again.values == first.values
    assert (first.folder / "compressor.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(SavedFileError, match="it differs in recipe") as error:
        run(teacher, tmp_path, dataclasses.replace(recipe, rate=0.5), **how)
    assert len(str(error.value).splitlines()) <= 4


def test_positions_and_first_parameters_belong_to_a_training(
    teacher: Teacher, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(TINY, steps=1)
    first = run(teacher, tmp_path / "a", recipe, validation=())
    with pytest.raises(SavedFileError, match="it differs in attached"):
        run(teacher, tmp_path / "a", recipe, validation=(), positions="reindex")
    again = dataclasses.replace(first.method, trained_on=None)
    dialogues = scenes()[:8]
    options: dict[str, Any] = {"tensorboard": False, "cpu": True, "positions": "reindex"}
    options["processor"] = teacher.processor
    further = train(again, teacher, dialogues, tmp_path / "b", recipe, **options)
    assert train(again, teacher, dialogues, tmp_path / "b", recipe, **options).folder
    with pytest.raises(SavedFileError, match="it differs in begins"):
        train(further.method, teacher, dialogues, tmp_path / "b", recipe, **options)


def test_a_training_without_a_step_gives_way_to_another(teacher: Teacher, tmp_path: Path) -> None:
    """As the error says that stopped it: with fewer dialogues, say."""
    small = Teacher(teacher.model, teacher.processor, tmp_path / "cache", limit=1000)
    with pytest.raises(InputError, match="use fewer dialogues"):
        run(small, tmp_path / "out")
    options: dict[str, Any] = {"tensorboard": False, "cpu": True}
    train(method(), teacher, scenes()[:4], tmp_path / "out", TINY, **options)
    with pytest.raises(SavedFileError, match="it differs in dialogues"):
        run(teacher, tmp_path / "out")


def test_a_folder_is_of_one_running_training(teacher: Teacher, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lock, asked = FileLock(out / ".lock"), list[bool]()
    with lock, pytest.raises(SavedFileError, match="Another run is training in"):
        run(teacher, out)
    assert not (out / learning.RECORD).exists()

    def holds(_: Any) -> None:
        with pytest.raises(Timeout):
            FileLock(out / ".lock").acquire(timeout=0)
        asked.append(True)

    run(teacher, out, tell=holds)
    assert asked
    with lock.acquire(timeout=0):
        pass


def test_a_checkpoint_that_cannot_be_written_is_told_and_gone_on_from_the_one_before(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(teacher, tmp_path / "whole")
    real, torn = CompressorTrainer._save_optimizer_and_scheduler, list[str]()

    def full(self: CompressorTrainer, folder: str) -> None:
        real(self, folder)
        if self.state.global_step == 4:
            torn.append(folder)
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    with monkeypatch.context() as patched:
        patched.setattr(CompressorTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(InputError, match=r"step 4 cannot be written into .*") as error:
            run(teacher, tmp_path / "out")
    assert torn and len(str(error.value).splitlines()) <= 4 and "bytes are free" in str(error.value)
    last = last_checkpoint(tmp_path / "out")
    assert last is not None and last.name == "checkpoint-2"
    again = weights(run(teacher, tmp_path / "out"))
    assert all(torch.equal(again[k], v) for k, v in weights(whole).items())


def moved(teacher: Teacher, out: Path, **changes: Any) -> Tensor:
    """What one step of plain SGD with rate 1 does to all parameters."""
    recipe = dataclasses.replace(TINY, steps=1, optimiser="sgd", rate=1.0, **changes)
    found = weights(run(teacher, out, recipe, validation=()))
    start = method().initialised(teacher.model).net
    assert start is not None
    return torch.cat([(found[k] - v).flatten() for k, v in start.state_dict().items()])


def test_clipping_by_norm_and_by_value(teacher: Teacher, tmp_path: Path) -> None:
    free = moved(teacher, tmp_path / "a", clip="none")
    assert float(free.abs().max()) > 1e-2
    by_norm = moved(teacher, tmp_path / "b", clip="norm")
    assert float(by_norm.norm()) == pytest.approx(1e-2, rel=1e-3)
    torch.testing.assert_close(by_norm, free * 1e-2 / free.norm(), atol=1e-6, rtol=1e-2)
    by_value = moved(teacher, tmp_path / "c", clip="value")
    torch.testing.assert_close(by_value, free.clamp(-1e-2, 1e-2), atol=1e-6, rtol=1e-4)


def test_accumulated_parts_of_a_batch_are_the_batch(teacher: Teacher, tmp_path: Path) -> None:
    whole = weights(run(teacher, tmp_path / "a"))
    parts = weights(run(teacher, tmp_path / "b", dataclasses.replace(TINY, micro_batch=1)))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.filterwarnings("ignore:Gradients have vanished")  # at its random start they have
def test_every_step_draws_its_budget_by_its_number(teacher: Teacher, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, keeps=(4, 30), steps=12, evaluate_every=12)
    told: list[Progress] = []
    found = run(teacher, tmp_path, recipe, tell=told.append)
    assert {"eval_prediction_4", "eval_prediction_30", "eval_loss"} <= set(found.values)
    # More rows of P give one source more: the regulariser shows which budget a step had.
    most = [each.values["collapse"] for each in told if "collapse" in each.values]
    assert min(most) < 4.0001 < max(most)


# ---------------------------------------------------------------- order and checkpoints


def test_an_epochs_order_depends_on_the_seed_and_its_number_alone() -> None:
    one, same, other = Order(10, 4, 0), Order(10, 4, 0), Order(10, 4, 1)
    assert len(one) == 8 and len(set(one)) == 8
    assert list(one) == list(same) != list(other)
    one.set_epoch(1)
    assert list(one) != list(same)


def test_a_checkpoint_that_was_cut_off_is_not_gone_on_from(
    teacher: Teacher, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(TINY, save_every=1)
    whole = weights(run(teacher, tmp_path / "whole", recipe))
    found = run(teacher, tmp_path / "torn", recipe)
    (tmp_path / "torn" / "checkpoint-4" / COMPLETE).unlink()
    (tmp_path / "torn" / "checkpoint-4" / "optimizer.pt").unlink()
    for file in found.folder.iterdir():
        file.unlink()
    last = last_checkpoint(tmp_path / "torn")
    assert last is not None and last.name == "checkpoint-3"
    told: list[Progress] = []
    again = weights(run(teacher, tmp_path / "torn", recipe, tell=told.append))
    assert {each.step for each in told} == {4}
    assert all(torch.equal(again[k], v) for k, v in whole.items())
    (tmp_path / "torn" / "checkpoint-3" / COMPLETE).unlink()
    clear_torn(tmp_path / "torn")
    assert [each.name for each in (tmp_path / "torn").glob("checkpoint-*")] == ["checkpoint-4"]


def test_killed_behind_its_last_step_it_is_not_trained_any_further(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step is not the end of an epoch: eight dialogues, batches of four, three steps."""
    recipe = dataclasses.replace(TINY, steps=3, rate=1e-2)
    whole = run(teacher, tmp_path / "whole", recipe)
    with monkeypatch.context() as patched:
        patched.setattr(learning, "measure", lambda *_, **__: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            run(teacher, tmp_path / "killed", recipe)
    told: list[Progress] = []
    again = run(teacher, tmp_path / "killed", recipe, tell=told.append)
    assert {each.step for each in told} == {3}  # it is measured again
    assert all(torch.equal(weights(again)[k], v) for k, v in weights(whole).items())
    assert again.values == whole.values


def test_a_record_says_what_counts() -> None:
    found = dataclasses.replace(TINY, optimiser="sgd").effective
    assert (found["rate"], found["bound"], found["steps"]) == (1e-3, 1e-2, 4)
    assert "epochs" not in found and found["micro_batch"] == 4
    free = Recipe(clip="none").effective
    assert free["epochs"] == 2.0 and not {"steps", "bound"} & set(free)


def test_a_loss_that_is_no_number_ends_it(teacher: Teacher, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, rate=1e30, schedule="constant")
    with pytest.raises(InputError, match="smaller rate"):
        run(teacher, tmp_path, recipe)
    assert not (tmp_path / "compressor").exists()


# ---------------------------------------------------------------- what it reached


def test_accuracy_is_that_of_the_saved_compressor(teacher: Teacher, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, keeps=(0.1, 9), steps=1)
    found = run(teacher, tmp_path, recipe, batch_size=1)
    held = scenes()[8:]
    asked = Batch(teacher.model, teacher.processor, held, [d.load() for d in held], frozenset(), 64)
    for keep, name in ((None, "full"), (0.1, "0.1"), (9, "9")):
        setting = None if keep is None else Setting(str(found.folder), keep)
        records = asked.converse(setting)
        turns = [(t, a) for d, r in zip(held, records, strict=True)
                 for t, a in zip(d.turns, r["answers"], strict=True)]  # fmt: skip
        right = sum(turn.right(answer) for turn, answer in turns)
        assert found.values[f"accuracy_{name}"] == pytest.approx(right / len(turns))
        for count in ("entering", "average") if keep else ():
            expected = sum(record[count] for record in records) / len(turns)
            assert found.values[f"{count}_{name}"] == pytest.approx(expected)
    assert found.values["entering_full"] == 256 and found.values["entering_9"] == 9
    card = (found.folder / "README.md").read_text()
    assert (
        "keep=0.1, processor=processor)" in card
        and f"on {len(turns)} questions in 2 dialogues held out" in card
    )
    row = f"| 9 tokens | {found.values['accuracy_9']:.3f} | 9.0 | 9.0 |"
    assert row in card and "| full model |" in card
    assert not any(
        "accuracy" in name for name in run(teacher, tmp_path / "b", recipe, accuracy=0).values
    )


def test_accuracy_needs_answers_and_budgets_in_reach(teacher: Teacher) -> None:
    made, held = method().initialised(teacher.model), scenes()[8:]
    asked = functools.partial(
        accuracy.measure, made, teacher.model, teacher.processor,
        process=Process(0, 1, torch.device("cpu")), most=1,
    )  # fmt: skip
    without = [
        dataclasses.replace(d, turns=tuple(dataclasses.replace(t, answers=("",)) for t in d.turns))
        for d in held
    ]
    assert asked(without, (0.1,)) is None
    found = asked([*without, *held], (0.1, 300))
    assert found is not None and [row.keep for row in found.rows] == [None, 0.1]
    assert (found.dialogues, found.held) == (1, 2)


def test_vanished_gradients_are_told_once() -> None:
    state = TrainerState(is_world_process_zero=True, is_local_process_zero=True)
    arguments, control = object(), TrainerControl()

    def logged(*norms: float) -> None:
        watch = _Vanishing()
        for state.global_step, norm in enumerate(norms, start=1):
            watch.on_log(arguments, state, control, {"grad_norm": norm, "entropy": 0.0})
            watch.on_log(arguments, state, control, {"eval_loss": 1.0})

    logged(*[STILL / 10] * (STILL_LOGS - 1), STILL * 10, STILL / 10)  # it moves again
    with pytest.warns(UserWarning, match="Gradients have vanished") as seen:
        logged(1.0, *[0.0] * 3 * STILL_LOGS)
    assert len(seen) == 1 and "mean entropy is 0" in str(seen[0].message)
    assert f"up to step {STILL_LOGS + 1}" in str(seen[0].message)


# ---------------------------------------------------------------- what is refused


def test_what_is_wrong_is_told(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="A batch of 36 needs as many dialogues; there are 8"):
        run(teacher, tmp_path, Recipe())
    with pytest.raises(InputError, match="optimiser must be one of sgd, adamw"):
        Recipe(optimiser="muon")
    with pytest.raises(InputError, match="nothing to train"):
        Recipe(keeps=(1.0,))
    with pytest.raises(InputError, match="schedule must be one of constant, cosine, linear"):
        Recipe(schedule="nonsense")
    for name in ("steps", "micro_batch", "save_every"):
        with pytest.raises(InputError, match=f"{name} must be at least 1; got 0"):
            Recipe(**{name: 0})  # type: ignore[arg-type]
    for name, value in (("rate", math.nan), ("rate", -1.0), ("bound", -1.0), ("epochs", 0.0)):
        with pytest.raises(InputError, match=f"{name} must be (at least|above) 0 and finite"):
            Recipe(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="weight entropy must be finite"):
        Recipe(entropy=math.inf)
    with pytest.raises(BudgetError):
        Recipe(keeps=(2.5,))
    with pytest.raises(InputError, match="parted evenly into 2 processes"):
        Recipe(batch=4, micro_batch=3).parts(2)
    assert Recipe(batch=12, micro_batch=3).parts(2) == (3, 2)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match=r"foveate\[train\]"):
        run(teacher, tmp_path, tensorboard=True)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- processes of their own


def start(command: list[str], optimiser: str, *places: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    worker = Path(__file__).with_name("worker.py")
    return subprocess.Popen(
        [*command, str(worker), *map(str, places), optimiser],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def curve(trace: Path) -> dict[int, float]:
    """Step -> loss of the last time that it was told."""
    lines = [line.split() for line in trace.read_text().splitlines()]
    return {int(step): float(loss) for step, loss in lines if loss != "None"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_five_times_the_weights_are_bit_equal(cache: Path, tmp_path: Path) -> None:
    whole, out, trace = tmp_path / "whole", tmp_path / "out", tmp_path / "trace"
    assert start([sys.executable], "adamw", cache, whole, trace).wait() == 0
    random.seed(5)
    kills = 0
    while not (out / "compressor" / "compressor.json").is_file():
        trace.write_text("")
        process = start([sys.executable], "adamw", cache, out, trace)
        lines = random.randint(1, 3)
        while process.poll() is None:
            if kills < 5 and trace.read_text().count("\n") >= lines:
                time.sleep(random.random() * 0.3)
                process.kill()
                kills += 1
                break
            time.sleep(0.02)
        assert process.wait() in (0, -9)
    assert kills == 5
    expected = load_file(str(whole / "compressor" / "compressor.safetensors"))
    found = load_file(str(out / "compressor" / "compressor.safetensors"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_have_the_curve_of_one(cache: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert start([sys.executable], "sgd", cache, tmp_path / "a", one).wait() == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert start(command, "sgd", cache, tmp_path / "b", two).wait() == 0
    expected, found = curve(one), curve(two)
    assert list(found) == list(expected) == list(range(1, 13))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-5, abs=1e-5), step
    a = load_file(str(tmp_path / "a" / "compressor" / "compressor.safetensors"))
    b = load_file(str(tmp_path / "b" / "compressor" / "compressor.safetensors"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5)
