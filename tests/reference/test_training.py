"""Training in miniature: resuming gives the very same weights; batches are what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.errors import InputError, SavedFileError
from foveate.holding import training_in
from foveate.reference import words
from foveate.reference.architecture import build_model
from foveate.reference.dialogues import training_dialogues
from foveate.reference.labels import patch_owners
from foveate.reference.optimiser import orthogonalised, schedule
from foveate.reference.packing import IGNORE, attention_mask, pack, text_encoder
from foveate.reference.questions import Question
from foveate.reference.recipe import Recipe
from foveate.reference.scenes import patch_mask, scene, scene_layout
from foveate.reference.store import Store
from foveate.reference.train import train

TINY = Recipe(
    scenes=6,
    vision_steps=3,
    vision_batch=2,
    language_steps=3,
    language_batch=2,
    dialogues=2,
    low_share=0.5,
    vision_width=64,
    vision_layers=2,
    width=64,
    layers=2,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return dict(state["model"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, its scenes in `scenes`."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, 3, TINY)
    return folder


@pytest.mark.parametrize("stop_at", [(1, 2), (2, 1)])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, whole: Path, stop_at: tuple[int, int]
) -> None:
    train(tmp_path, 3, TINY, whole / "scenes", stop_at=stop_at)
    half = weights(tmp_path)
    model = train(tmp_path, 3, TINY, whole / "scenes")
    first, second = weights(whole), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Control: it was really stopped half-way.
    assert any(not torch.equal(first[name], half[name]) for name in first)
    assert (model / "model.safetensors").exists()
    assert (model / "training.json").exists()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_do_not_change_the_result(tmp_path: Path, whole: Path) -> None:
    """Two that draw ahead, stopped in the second stage; the rest without them."""
    train(tmp_path, 3, TINY, whole / "scenes", stop_at=(2, 2), workers=2)
    train(tmp_path, 3, TINY, whole / "scenes")
    first, second = weights(whole), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_killed_equals_uninterrupted(tmp_path: Path, whole: Path) -> None:
    """A process that is killed between two steps, with a half-written checkpoint lying about."""
    store, folder = whole / "scenes", tmp_path
    program = f"""
import json, sys, time
from foveate.reference.data import Scenes
from foveate.reference.recipe import Recipe
from foveate.reference.store import Store
from foveate.reference.train import SceneTrainer
from pathlib import Path
import torch
torch.set_num_threads({torch.get_num_threads()})

class Slow(SceneTrainer):
    def _language_step(self, batch):
        if self.step == 2:
            print("now", flush=True)
            time.sleep(600)
        return super()._language_step(batch)

recipe = json.loads({json.dumps(json.dumps(asdict(TINY)))})
recipe = Recipe(**{{**recipe, "captions": tuple(recipe["captions"])}})
scenes = Scenes(Store(Path({str(store)!r}), recipe.scenes))
Slow(Path({str(folder)!r}), 3, recipe, scenes, minutes=0).run()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any(line == "now\n" for line in process.stdout)
        process.kill()
    (folder / "checkpoint.partial").write_bytes(b"half")
    at = torch.load(folder / "checkpoint.pt", weights_only=True)["at"]
    assert (at["stage"], at["step"]) == (2, 2)
    train(folder, 3, TINY, store)
    first, second = weights(whole), weights(folder)
    assert all(torch.equal(first[name], second[name]) for name in first)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("seed", "recipe"),
    [(3, replace(TINY, dialogues=3)), (4, TINY), (3, replace(TINY, scenes=4))],
)
def test_another_run_is_refused(whole: Path, seed: int, recipe: Recipe) -> None:
    before = contents(whole / "scenes")
    with pytest.raises(InputError, match="another seed or recipe"):
        train(whole, seed, recipe)
    assert contents(whole / "scenes") == before


def test_a_folder_is_of_one_running_training(tmp_path: Path) -> None:
    with training_in(tmp_path), pytest.raises(SavedFileError, match="Another run is training in"):
        train(tmp_path, 3, TINY)
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]  # no scenes, either


def test_scenes_that_a_shared_store_lacks_are_refused(whole: Path, tmp_path: Path) -> None:
    before = contents(whole / "scenes")
    with pytest.raises(InputError, match="has room for 6 scenes"):
        train(tmp_path / "run", 3, replace(TINY, scenes=7), whole / "scenes")
    assert contents(whole / "scenes") == before
    assert [each.name for each in (tmp_path / "run").iterdir()] == [".lock"]


def test_store_holds_the_scenes(tmp_path: Path) -> None:
    store = Store(tmp_path, 3, "validation")
    store.fill()
    again = Store(tmp_path, 3, "validation")
    assert again.filled == 3
    assert (again.pixels[2] == scene(2, "validation").pixels).all()


def test_a_store_serves_fewer_scenes_and_keeps_the_others(tmp_path: Path) -> None:
    Store(tmp_path, 5, "validation").fill()
    fewer = Store(tmp_path, 2, "validation")
    fewer._mark(2)  # as a run that draws what the other one has drawn already
    assert fewer.count == 2 and fewer.filled == len(fewer.pixels) == 5


@pytest.mark.parametrize(("count", "split"), [(4, "validation"), (3, "train"), (2, "train")])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_store_of_other_scenes_is_refused(
    tmp_path: Path, count: int, split: str, recorded: bool
) -> None:
    Store(tmp_path, 3, "validation").fill()
    if not recorded:  # as stores were before they said whose scenes they hold
        (tmp_path / "store.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        Store(tmp_path, count, split)
    assert len(str(error.value).splitlines()) <= 4
    assert contents(tmp_path) == before
    assert Store(tmp_path, 3, "validation").filled == 3


def test_a_store_of_another_world_is_refused(tmp_path: Path) -> None:
    Store(tmp_path, 1)
    (tmp_path / "store.json").write_text('{"split": "train", "world": "second"}')
    with pytest.raises(InputError, match="in the second world"):
        Store(tmp_path, 1)


def test_several_processes_draw_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.reference.store._CHUNK", 2)
    one, two = (Store(tmp_path / name, 5, "validation") for name in ("one", "two"))
    one.fill()
    two.fill(workers=2)
    assert one.filled == two.filled == 5
    assert (one.pixels == two.pixels).all() and (one.owners == two.owners).all()


def test_patch_owners_agree_with_the_mask() -> None:
    drawn = scene(5, "validation")
    owners = patch_owners(torch.from_numpy(drawn.owners)[None], 16)[0].reshape(16, 16)
    mask = torch.from_numpy(patch_mask(drawn))
    # The mask adds up neighbours that each show less than an eighth; it holds at least these.
    assert mask[owners > 0].all()
    assert ((owners > 0) == mask).float().mean() > 0.97


def test_packed_dialogue_equals_the_dialogue_alone() -> None:
    """Logits of a packed dialogue against the same dialogue behind its own picture."""
    torch.manual_seed(0)
    model = build_model(64, 2, 64, 2).eval()
    rng = np.random.default_rng(0)
    dialogues = training_dialogues(scene_layout(0, "train"), rng, 3, 0.0)
    features = torch.randn(1, 16, 64)
    from foveate.reference.language_stage import language_loss

    with torch.no_grad():
        _, packed = language_loss(model, features, pack([dialogues], text_encoder()))
        alone = [
            language_loss(model, features, pack([[turns]], text_encoder()))[1]
            for turns in dialogues
        ]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)


def test_labels_are_the_next_words() -> None:
    rng = np.random.default_rng(1)
    dialogues = training_dialogues(scene_layout(1, "train"), rng, 2, 0.5)
    packed = pack([dialogues], text_encoder())
    at = (packed.labels[0] != IGNORE).nonzero().flatten()
    assert (packed.labels[0, at] == packed.ids[0, at + 1]).all()
    answers = sum(len(turn.answer.split()) + 1 for turns in dialogues for turn in turns)
    assert len(at) == answers
    ends = packed.labels[0] == words.vocabulary()[words.EOS]
    assert ends.sum() == sum(map(len, dialogues))


def test_what_a_packed_dialogue_holds() -> None:
    """Every field by hand: two dialogues about one picture, and padding beside another."""
    table = words.vocabulary()
    named = ((2, (4,)), (3, (5, 6)))
    first = Question("x", "is the red star ?", "yes", ((3,),), named)
    second = Question("x", "list the things .", "red , blue", ((1,), (), (2, 7)), ((2, (9,)),))
    other = Question("x", "describe the thing .", "red", ((8,),))
    packed = pack([[[first, second], [other]], [[other]]], text_encoder())
    said = "is the red star ? assistant: yes </s>".split()
    said += "user: list the things . assistant: red , blue </s>".split()
    alone = "describe the thing . assistant: red </s>".split()
    row = [*said, *alone]
    padding = [words.PAD] * len(said)
    assert packed.ids.tolist() == [[table[w] for w in r] for r in (row, [*alone, *padding])]
    answers = {5: "yes", 6: "</s>", 13: "red", 14: ",", 15: "blue", 16: "</s>"}
    answers |= {len(said) + 4: "red", len(said) + 5: "</s>"}
    labels = [table[answers[at]] if at in answers else IGNORE for at in range(len(row))]
    assert packed.labels[0].tolist() == labels
    assert packed.labels[1].tolist() == [*labels[len(said) :], *[IGNORE] * len(said)]
    positions = [*range(len(said)), *range(len(alone))]
    assert packed.positions[0].tolist() == positions
    assert packed.positions[1].tolist() == [*range(len(alone)), *[0] * len(said)]
    assert packed.groups[0].tolist() == [0] * len(said) + [1] * len(alone)
    assert packed.groups[1].tolist() == [0] * len(alone) + [-1] * len(said)
    # An answer's word is read from its owners where it is told: one place before it.
    about = [[0, 5, 3], [0, 13, 1], [0, 15, 2], [0, 15, 7], [0, len(said) + 4, 8], [1, 4, 8]]
    assert packed.about.nonzero().tolist() == about
    # A name means its owners where it ends; later turns stand behind "user:".
    assert packed.named.nonzero().tolist() == [[0, 2, 4], [0, 3, 5], [0, 3, 6], [0, 11, 9]]


def test_no_dialogue_sees_another() -> None:
    groups = torch.tensor([[0, 0, 1, 1, -1]])
    allowed = attention_mask(groups, prefix=2)[0, 0] == 0
    assert allowed[4].tolist() == [True, True, False, False, True, False, False]
    assert allowed[1].tolist() == [True, True, False, False, False, False, False]


def test_orthogonalised_is_nearly_orthogonal() -> None:
    torch.manual_seed(0)
    for shape in ((2, 16, 48), (2, 48, 16)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.4
        assert values.max() < 1.5


def test_schedule_rises_and_falls() -> None:
    rates = [schedule(step / 100, 0.1) for step in range(101)]
    assert (max(rates), rates[-1]) == (1.0, 0.02)
    assert rates[0] < 0.01
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
