"""Training the relevance compressor: labels, loss, pairs on disk, and a net that learns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import foveate
from foveate import relevance
from foveate.attach.prompt import placed
from foveate.errors import InputError, SavedFileError, UnknownName
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue, Turn, form
from foveate.holding import training_in
from foveate.methods.relevance import Predictor, Relevance
from foveate.methods.seek import Seek, Seekers
from foveate.relevance import Rule
from foveate.training import relevance as training
from foveate.training.files import read_tensors
from foveate.training.pairs import Pair, Pairs, observations, predictions
from foveate.training.processes import Process
from foveate.training.relevance import (
    Examples,
    Learner,
    Settings,
    collate,
    divergence,
    label,
    overlap,
    train,
)
from tests.evaluation.test_turns import dialogue
from tests.families import checkpoints
from tests.families.models import FAMILIES
from tests.training import launched

Loaded = tuple[Any, Any]
SMALL = {"channels": (4, 4), "kinds": ("image",)}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = checkpoints.save("llava", tmp_path_factory.mktemp("llava"))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def test_the_lower_half_is_masked_and_the_rest_shared_out() -> None:
    assert label(torch.tensor([0.1, 0.6, 0.2, 0.05])).tolist() == pytest.approx([0, 0.75, 0.25, 0])
    # Of five, two are masked; what is below zero counts nothing.
    found = label(torch.tensor([-0.1, 0.6, 0.2, -0.5, -0.7]))
    assert found.tolist() == pytest.approx([0, 0.75, 0.25, 0, 0])
    # Nothing above zero: the upper half, all alike.
    assert label(torch.tensor([-3.0, -1.0, -2.0, -4.0])).tolist() == [0, 0.5, 0.5, 0]


def test_the_loss_by_hand() -> None:
    labels = torch.tensor([[0.0, 0.75, 0.25], [0.5, 0.5, 0.0]])
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, -torch.inf]])
    logs = torch.tensor([1.0, 3.0, 2.0]).log_softmax(0)
    expected = 0.75 * (torch.tensor(0.75).log() - logs[1])
    expected += 0.25 * (torch.tensor(0.25).log() - logs[2])
    found = divergence(labels, logits)
    assert found.tolist() == pytest.approx([float(expected), 0.0], abs=1e-6)


def test_a_batch_of_both_kinds_and_all_lengths_is_the_mean_of_each() -> None:
    torch.manual_seed(0)
    method = Relevance(channels=(4, 4), scaling="share").drawn(8)
    assert isinstance(method, Relevance)
    learner = Learner(method)
    pairs = [Pair({"attention": torch.rand(n)}, torch.randn(n), bool(n % 2)) for n in (7, 4, 9, 2)]
    examples = Examples(pairs, method)
    each = [learner(**collate([examples[i]]))["loss"] for i in range(4)]
    together = learner(**collate([examples[i] for i in range(4)]))["loss"]
    torch.testing.assert_close(together, torch.stack(each).mean())
    together.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


def test_a_batch_of_all_lengths_teaches_in_finite_numbers() -> None:
    """Also a net that looks at words, where rows of both are filled up."""
    torch.manual_seed(0)
    method = Seek(inner=8, small=4, kinds=("image",)).drawn(6)
    assert isinstance(method, Seek)
    pairs = [
        Pair(
            {
                "tokens": torch.randn(n, 6),
                "places": torch.rand(n, 3),
                "words": torch.randn(words, 6),
            },
            torch.rand(n),
        )
        for n, words in ((7, 2), (4, 5))
    ]
    examples, learner = Examples(pairs, method), Learner(method)
    each = [learner(**collate([examples[i]]))["loss"] for i in range(2)]
    together = learner(**collate([examples[0], examples[1]]))["loss"]
    torch.testing.assert_close(together, torch.stack(each).mean())
    together.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())


@pytest.mark.parametrize(("is_video", "kind"), [(False, "image"), (True, "video")])
def test_each_kind_teaches_its_own_net(is_video: bool, kind: str) -> None:
    method = Relevance(channels=(4, 4)).drawn(8)
    assert isinstance(method, Relevance) and method.net is not None
    pair = Pair({"attention": torch.rand(6)}, torch.rand(6), is_video)
    Learner(method)(**collate(list(Examples([pair], method))))["loss"].backward()
    taught = {name.split(".")[0] for name, p in method.net.named_parameters() if p.grad is not None}
    assert taught == {kind}


def test_overlap_counts_the_shared_ones() -> None:
    wanted = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert overlap(torch.tensor([1.0, 9.0, 0.0, 2.0]), wanted, 0.5) == 0.5
    assert overlap(wanted, wanted, 3) == 1.0


def answered(
    loaded: Loaded, turns: int, wrong: tuple[int, ...] = (), pictures: int = 1
) -> Dialogue:
    """A dialogue whose right answers are what the model says, but for some turns."""
    asked = dialogue(pictures - 1, turns, pictures)
    (record,) = Batch(*loaded, [asked], [asked.load()], frozenset(), 4).converse(None)
    given = [
        Turn(turn.question, ("something else" if number in wrong else said,))
        for number, (turn, said) in enumerate(zip(asked.turns, record["answers"], strict=True))
    ]
    return dataclasses.replace(asked, turns=tuple(given))


def prompt(loaded: Loaded, asked: Dialogue, turn: int) -> dict[str, Any]:
    """The inputs of one turn of a dialogue by itself, after what the model itself said before."""
    batch = Batch(*loaded, [asked], [asked.load()], frozenset(), 4)
    (record,) = batch.converse(None)
    return batch.inputs([0], turn, [record["answers"][:turn]])


def test_pairs_are_of_right_answers_and_what_is_said_elsewhere(
    loaded: Loaded, tmp_path: Path
) -> None:
    one, two = answered(loaded, 3, wrong=(1,)), dialogue(1, 1)
    made = Pairs(*loaded, tmp_path, max_new_tokens=4)
    done: list[int] = []
    made.fill([one, two], done=done.append)
    assert done == [0, 2]
    found = made.read([one, two])
    assert len(found) == 2  # the first and third turn of the first dialogue
    for pair, turn in zip(found, (0, 2), strict=True):
        said = [each.answers[0] for each in one.turns]
        batch = Batch(*loaded, [one], [one.load()], frozenset(), 4)
        (record,) = batch.converse(None)
        said = record["answers"]
        inputs = batch.inputs([0], turn, [said[:turn]])
        (truth,) = relevance.explain(loaded[0], inputs, max_new_tokens=4)
        torch.testing.assert_close(pair.relevance, truth, rtol=1e-3, atol=1e-6)
        seen = pair.seen["attention"]
        assert seen.shape == truth.shape and seen.min() >= 0
    again = Pairs(*loaded, tmp_path, max_new_tokens=4)
    done.clear()
    again.fill([one, two], done=done.append)
    assert done == [2]  # nothing is computed twice
    short = Pairs(*loaded, tmp_path, max_new_tokens=4, limit=24)
    short.fill([one])
    assert short.read([one]) == []


def test_only_prompts_that_count_are_explained(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is answered wrong or too long shares a batch with what is not, but not its cost."""
    some = [answered(loaded, 2, wrong=(0,)), answered(loaded, 2), answered(loaded, 2, wrong=(0, 1))]
    explained: list[int] = []
    explain = relevance.explain

    def watched(model: Any, inputs: dict[str, Any], *given: Any, **options: Any) -> Any:
        explained.append(len(inputs["input_ids"]))
        return explain(model, inputs, *given, **options)

    monkeypatch.setattr(relevance, "explain", watched)
    made = Pairs(*loaded, tmp_path, max_new_tokens=4)
    made.fill(some)
    assert explained == [1, 2]
    found, asked = made.read(some), [(some[0], 1), (some[1], 0), (some[1], 1)]
    assert len(found) == 3
    for pair, (each, turn) in zip(found, asked, strict=True):
        (truth,) = explain(loaded[0], prompt(loaded, each, turn), max_new_tokens=4)
        torch.testing.assert_close(pair.relevance, truth, rtol=1e-3, atol=1e-6)


def test_batches_of_pairs_are_of_one_form_and_as_few_as_can_be(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = dialogue(0, 1)
    clips = [
        dataclasses.replace(image, name=str(i), pictures=image.pictures * frames, is_video=True)
        for i, frames in enumerate((2, 3, 2, 3))
    ]
    made, parts = Pairs(*loaded, tmp_path), list[list[int]]()

    def noted(part: Any) -> dict[Path, bytes]:
        parts.append([form(one) for one in part])
        return {}

    monkeypatch.setattr(made, "compute", noted)
    made.fill([clips[0], image, *clips[1:]], batch_size=3)
    assert parts == [[0], [2, 2], [3, 3]]


def test_pairs_of_several_pictures_hold_what_each_one_shows(loaded: Loaded, tmp_path: Path) -> None:
    """What the question does not change is stored once a picture, the rest for every question."""
    one, two = answered(loaded, 1), answered(loaded, 3, wrong=(1,), pictures=2)
    method, rule = Seek(kinds=("image",)), Rule(relu=True)
    (slots,) = {p.layout.n for p in placed(loaded[0], prompt(loaded, one, 0))}
    asked_for: dict[str, Any] = {"rule": rule, "limit": 2 * slots, "max_new_tokens": 4}
    made = Pairs(*loaded, tmp_path, method, **asked_for)
    assert made.file(one) != Pairs(*loaded, tmp_path, **asked_for).file(one)
    made.fill([one, two])
    found = made.read([one, two])
    asked = [(one, 0), (two, 0), (two, 2)]
    truth = [
        each
        for dialogue, turn in asked
        for each in zip(
            observations(method, loaded[0], prompt(loaded, dialogue, turn), loaded[1]),
            relevance.explain(
                loaded[0], prompt(loaded, dialogue, turn), rule=rule, max_new_tokens=4
            ),
            strict=True,
        )
    ]
    assert len(found) == len(truth) == 5
    for pair, (seen, values) in zip(found, truth, strict=True):
        torch.testing.assert_close(pair.relevance, values, rtol=1e-3, atol=1e-6)
        assert pair.seen.keys() == seen.keys()
        for name, x in pair.seen.items():
            torch.testing.assert_close(x, seen[name], rtol=1e-4, atol=1e-5)
    tensors, _ = read_tensors(made.file(two))
    stored = [name for name in tensors if name.endswith(".tokens")]
    assert sorted(stored) == ["picture.0.tokens", "picture.1.tokens"]


def test_enough_pairs_are_enough(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.training.pairs._STRETCH", 1)
    some = [answered(loaded, 3, wrong=(1,)), dialogue(1, 2), answered(loaded, 1, pictures=2)]
    made, alone = Pairs(*loaded, tmp_path, max_new_tokens=4), Process(0, 1, torch.device("cpu"))
    assert made.gather(some, 2, alone) == some[:1]  # two right answers about one picture
    assert not made.file(some[1]).is_file()
    nowhere = dataclasses.replace(some[1], pictures=(tmp_path / "no.png",))
    assert made.gather([some[0], nowhere], 2, alone) == some[:1]  # nobody looks at the others
    assert made.gather(some, 3, alone) == some == made.gather(some, None, alone)
    found = made.tally(some)
    right = sum(t.right(a) for d in some for t, a in zip(d.turns, said(made, d), strict=True))
    assert (found.questions, found.right, found.pairs) == (6, right, len(made.read(some)))
    assert found.nbytes == sum(each.stat().st_size for each in tmp_path.glob("*.safetensors"))
    assert f"answers {right} of 6 questions right" in str(found)
    # Each of two processes has its share, and both ask the same dialogues in the end.
    shares: list[Any] = []
    monkeypatch.setattr(Process, "wait", lambda self: None)
    monkeypatch.setattr(Pairs, "fill", lambda self, part, **_: shares.append(list(part)))
    monkeypatch.setattr("foveate.training.pairs._STRETCH", 3)
    assert made.gather(some, 3, Process(1, 2, torch.device("cpu"))) == some
    assert shares == [[some[1]]]


def said(pairs: Pairs, dialogue: Dialogue) -> list[str]:
    found: list[str] = json.loads(read_tensors(pairs.file(dialogue))[1]["answers"])
    return found


def easy(count: int, n: int = 24) -> list[Pair]:
    """Relevance lies one place to the right of attention."""
    found = []
    for seed in range(count):
        attention = torch.rand(n, generator=torch.Generator().manual_seed(seed)) ** 4 / n
        found.append(Pair({"attention": attention}, attention.roll(1)))
    return found


def test_it_learns_is_saved_and_goes_on(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    method = Relevance(**SMALL)  # type: ignore[arg-type]
    settings = Settings(epochs=40, batch=16, rate=1e-2, save_every=20, evaluate_every=60)
    pairs, held = easy(48), easy(60)[48:]
    facts, here = {"source": "made up"}, {"cpu": True, "tensorboard": False}
    told: list[Any] = []
    whole = train(
        method, model, pairs, tmp_path / "a", settings, validation=held, facts=facts,
        cpu=True, tensorboard=False, tell=told.append,
    )  # fmt: skip
    assert whole.values["overlap at 25 %"] > 0.8
    measured = [each.values for each in told if "eval_loss" in each.values]
    assert [each.step for each in told if "eval_loss" in each.values] == [60, 120]
    assert measured[-1]["eval_overlap at 25 %"] == whole.values["overlap at 25 %"]
    assert measured[-1]["eval_loss"] < measured[0]["eval_loss"]
    assert whole.values["overlap at 25 %, attention"] < 0.5
    loaded = foveate.load(whole.folder, model=model)
    inputs = FAMILIES["llava"].inputs()
    with torch.no_grad(), foveate.attach(model, loaded, keep=5) as run:
        model(**inputs)
    assert [item.entering for item in run.items] == [5, 5]
    assert "source: made up" in (whole.folder / "README.md").read_text()

    # Interrupted, the same call goes on from the last checkpoint.
    def interrupt(progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            method,
            model,
            pairs,
            tmp_path / "b",
            settings,
            cpu=True,
            tensorboard=False,
            tell=interrupt,
        )
    assert (tmp_path / "b" / "checkpoint-40").is_dir()
    steps: list[int] = []
    parts = train(
        method, model, pairs, tmp_path / "b", settings, cpu=True, tensorboard=False,
        tell=lambda progress: steps.append(progress.step),
    )  # fmt: skip
    assert steps
    assert whole.method.net is not None and parts.method.net is not None
    for a, b in zip(whole.method.net.parameters(), parts.method.net.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    done = train(
        method, model, pairs, tmp_path / "b", settings, cpu=True, tensorboard=False, tell=interrupt
    )
    assert done.folder == parts.folder
    other = dataclasses.replace(settings, rate=1e-3)
    with pytest.raises(SavedFileError, match="differs in settings"):
        train(method, model, pairs, tmp_path / "b", other, **here)


def test_products_in_bfloat16_leave_what_a_softmax_goes_over_exact() -> None:
    """An offset that all tokens share, as rounded gradients make one grow, takes nothing away."""
    torch.manual_seed(0)
    tokens, places, words = (
        torch.randn(2, rows, width) for rows, width in ((9, 8), (9, 3), (4, 8))
    )
    there = torch.ones(2, 9, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    seek, plain = Seekers(8, 16, 8, 4, 2), Predictor((4, 8), 3)
    for net, offset, given in (
        (seek, seek.bias, (tokens, places, words, *there)),
        (plain, plain.last, (tokens[..., 0], there[0])),
    ):
        said = []
        for shared in (0, 1000):
            with torch.no_grad():
                assert offset.bias is not None
                offset.bias += shared
                # Its own context: one that goes on would go on with the parameters of before.
                with torch.autocast("cpu", torch.bfloat16):
                    said.append(net(*given).log_softmax(-1))
        torch.testing.assert_close(*said, atol=1e-3, rtol=0)
    z, y = torch.randn(2, 5, 8), torch.randn(2, 9, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        round_ = seek.rounds[0](z, y, torch.ones(2, 5, dtype=torch.bool), there[0])
        assert seek.shown(torch.randn(2, 9, 16)).dtype == torch.bfloat16  # it is on
    assert round_[1].dtype == torch.float32


def test_products_in_bfloat16_learn_the_same_in_float32_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["llava"].build()
    method, pairs = Relevance(**SMALL), easy(48)  # type: ignore[arg-type]
    settings = Settings(epochs=40, batch=16, rate=1e-2)
    products: set[torch.dtype] = set()
    logits = Relevance.logits

    def seen(self: Relevance, net: Any, *given: Any) -> Any:
        inner = net.pointwise[0].register_forward_hook(lambda *call: kinds.append(call[2].dtype))
        kinds: list[torch.dtype] = []
        found = logits(self, net, *given)
        inner.remove()
        assert found.dtype == torch.float32
        if torch.is_grad_enabled():
            products.update(kinds)
        return found

    monkeypatch.setattr(Relevance, "logits", seen)
    nets = []
    for bf16, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        products.clear()
        found = train(
            method, model, pairs, tmp_path / str(bf16), dataclasses.replace(settings, bf16=bf16),
            validation=easy(60)[48:], tensorboard=False,
        )  # fmt: skip
        assert products == {dtype}
        assert found.values["overlap at 25 %"] > 0.8
        assert found.method.net is not None
        nets.append([*found.method.net.parameters()])
        assert {each.dtype for each in nets[-1]} == {torch.float32}
    assert not all(torch.equal(a, b) for a, b in zip(*nets, strict=True))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(training, "is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(InputError, match="knows bfloat16"):
        train(method, model, pairs, tmp_path / "c", dataclasses.replace(settings, bf16=True))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "method", [Relevance(channels=(16, 16), kinds=("image",)), Seek(kinds=("image",), spread=False)]
)
def test_what_is_predicted_is_a_distribution_that_ranks_what_is_kept(method: Any) -> None:
    family = FAMILIES["llava"]
    model, inputs = family.build(), family.inputs()
    trained = method.initialised(model, seed=3)
    found = predictions(trained, model, inputs)
    with torch.no_grad(), foveate.attach(model, trained, keep=5) as run:
        model(**inputs)
    assert len(found) == len(run.items) > 1
    for values, item in zip(found, run.items, strict=True):
        assert values.shape == (item.n,) and float(values.sum()) == pytest.approx(1)
        kept = torch.isin(torch.arange(item.n), item.mapping.anchors)
        assert values[kept].min() >= values[~kept].max() - 1e-7
        assert values.max() > values.min()


def test_the_settings_are_those_that_are_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam without decay, at a rate that falls or does not, clipped or not."""
    told: list[Any] = []
    clipped: list[float | None] = []

    def stopped(settings: Settings, clip: float | None, tell: Any, **options: Any) -> None:
        told.append(options["args"])
        clipped.append(clip)
        assert len(options["train_dataset"]) == 4  # those of its kind
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "RelevanceTrainer", stopped)
    pairs = [*easy(4), Pair({"attention": torch.rand(6)}, torch.rand(6), is_video=True)]
    ways = (("constant", "none"), ("cosine", "norm"), ("cosine", "value"))
    for number, (schedule, clip) in enumerate(ways):
        settings = Settings(epochs=3, batch=2, rate=0.5, schedule=schedule, clip=clip, seed=7)
        with pytest.raises(KeyboardInterrupt):
            train(
                Relevance(**SMALL),  # type: ignore[arg-type]
                FAMILIES["llava"].build(), pairs, tmp_path / f"{number}", settings,
                cpu=True, tensorboard=False,
            )  # fmt: skip
    assert [str(each.lr_scheduler_type.value) for each in told] == [way for way, _ in ways]
    assert [each.max_grad_norm for each in told] == [0.0, 1.0, 0.0] and clipped == [None, None, 1.0]
    with pytest.raises(UnknownName, match="clip"):
        Settings(clip="length")
    for each in told:
        assert (each.learning_rate, each.num_train_epochs, each.seed) == (0.5, 3, 7)
        assert (each.per_device_train_batch_size, each.weight_decay) == (2, 0.0)
        assert each.optim == "adamw_torch"


def test_a_kind_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pair of the kind 'video'"):
        train(Relevance(), FAMILIES["llava"].build(), easy(2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_of_one_running_training(tmp_path: Path) -> None:
    net, model = Relevance(channels=(4,), kinds=("image",)), FAMILIES["llava"].build()
    settings = Settings(epochs=1, batch=4)
    with training_in(tmp_path), pytest.raises(SavedFileError, match="Another run"):
        train(net, model, easy(4), tmp_path, settings, tensorboard=False, cpu=True)
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]


# ---------------------------------------------------------------- processes of their own


def trained(out: Path, processes: int = 1) -> Any:
    """`foveate train relevance` on a few scenes."""
    small = "--count 8 --validation 0.2 --batch 8 --epochs 5 --set channels=[4,4] --save-every 3"
    quick = "--weighting mean --max-new-tokens 4 --cpu --no-tensorboard --json"
    return launched(f"train relevance --out {out} {small} {quick}", processes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_are_the_training_of_one(tmp_path: Path) -> None:
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two", processes=2)
    expected, found = json.loads(one.stdout), json.loads(two.stdout)  # printed once
    assert found["pairs"] == expected["pairs"] and found["pairs"]["pairs"] > 8
    assert found["values"].keys() == expected["values"].keys()
    for name, value in expected["values"].items():
        # What its scores choose is left out: so small a net finds many tokens alike, and rounding
        # ranks those. The weights below say more.
        chosen = name.startswith(("overlap", "accuracy_0")) and not name.endswith("attention")
        if not chosen:
            assert found["values"][name] == pytest.approx(value, abs=1e-5)
    assert two.stderr.count("questions right") == 1
    names = [{str(f.relative_to(tmp_path / run)) for f in (tmp_path / run).glob("[cp]*/*.safe*")}
             for run in ("one", "two")]  # fmt: skip
    assert names[0] == names[1]  # the same pairs, and checkpoints of the same steps
    a, b = (load_file(tmp_path / run / "compressor" / "compressor.safetensors")
            for run in ("one", "two"))  # fmt: skip
    for name, value in a.items():
        if name != "image.last.bias":  # a softmax does not see it: Adam follows its rounding
            torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5)


def test_a_batch_is_parted_among_processes() -> None:
    settings = Settings(batch=8)
    assert settings.recipe(40, 2).parts(2) == (4, 1)
    assert settings.recipe(7, 2).batch == 6  # fewer pairs than a batch: whole shares of them
    with pytest.raises(InputError, match="parted evenly into 3 processes"):
        settings.recipe(40, 3).parts(3)
