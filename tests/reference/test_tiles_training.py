"""The tiled model's training in miniature: what resumes, what is exported, what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from foveate.errors import InputError, SavedFileError
from foveate.holding import training_in
from foveate.reference.architecture import build_model
from foveate.reference.clips import clip
from foveate.reference.data import pixel_values
from foveate.reference.forms import CLIPS, OVERVIEWS, TILED, Form, Tiled
from foveate.reference.language_stage import packed_loss
from foveate.reference.onevision import (
    VIEW_GRID,
    build_tiles_model,
    load_tiles_processor,
    start_from,
)
from foveate.reference.packing import pack, text_encoder
from foveate.reference.questions import Question
from foveate.reference.recipe import TilesRecipe
from foveate.reference.tiled import tiled_dialogue, tiled_scene
from foveate.reference.tiles_batches import places_of
from foveate.reference.tiles_measure import (
    clip_hits,
    measure_tiles,
    resized_hits,
    tiled_hits,
)
from foveate.reference.tiles_train import TilesTrainer, train_tiles
from foveate.reference.views import scene_views
from tests.families.models import FAMILIES

TINY = TilesRecipe(
    scenes=6,
    vision_steps=3,
    vision_batch=2,
    vision_clips=1,
    language_steps=4,
    language_batch=2,
    language_tokens=1_000,
    dialogues=2,
    low_share=0.5,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return dict(state["model"])


def recipe_of(folder: Path) -> TilesRecipe:
    """The recipe as the run noted it, with what it began with."""
    known = json.loads(torch.load(folder / "checkpoint.pt", weights_only=True)["recipe"])
    return TilesRecipe(**known | {"captions": tuple(known["captions"])})


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `reference` that learned nothing."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(1)
    model = build_model(64, 2, 64, 2)
    with torch.no_grad():
        for block in model.model.language_model.layers:  # query heads start alike there
            queries = block.self_attn.q_proj.weight.unflatten(0, (-1, 2, 32))
            outputs = block.self_attn.o_proj.weight.unflatten(1, (-1, 2, 32))
            queries[:, 1], outputs[:, :, 1] = queries[:, 0], outputs[:, :, 0]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start: Path) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train_tiles(folder, 3, TINY, start=start)
    return folder


@pytest.fixture
def trainer(whole: Path) -> TilesTrainer:
    """That run, loaded again; what it began with is not asked for any more."""
    return TilesTrainer(whole, 3, recipe_of(whole), build_model(64, 2, 64, 2))


@pytest.fixture(scope="module")
def loaded(whole: Path) -> tuple[Any, Any]:
    """What the run exported."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(whole / "model", dtype=torch.float32)
    return model.eval(), load_tiles_processor(whole / "model")


@pytest.mark.parametrize("stop_at", [(1, 2), (2, 2)])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, whole: Path, start: Path, stop_at: tuple[int, int]
) -> None:
    train_tiles(tmp_path, 3, TINY, stop_at, start=start)
    half = weights(tmp_path)
    train_tiles(tmp_path, 3, TINY, start=start)
    first, second = weights(whole), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Control: it was really stopped half-way.
    assert any(not torch.equal(first[name], half[name]) for name in first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_do_not_change_the_result(tmp_path: Path, whole: Path, start: Path) -> None:
    train_tiles(tmp_path, 3, TINY, (2, 2), start=start, workers=2)
    train_tiles(tmp_path, 3, TINY, start=start)
    first, second = weights(whole), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_recipe_or_start_is_refused(whole: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another seed or recipe"):
        train_tiles(whole, 3, replace(TINY, clip_share=0.5), start=start)
    build_model(64, 2, 64, 2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="another seed or recipe"):
        train_tiles(whole, 3, TINY, start=tmp_path)


def test_a_folder_is_of_one_running_training(start: Path, tmp_path: Path) -> None:
    with (
        training_in(tmp_path),
        pytest.raises(SavedFileError, match="Another run is training in") as error,
    ):
        train_tiles(tmp_path, 3, TINY, start=start)
    assert len(str(error.value).splitlines()) <= 4
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]


def test_what_is_no_reference_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        train_tiles(tmp_path / "run", 3, TINY, start=tmp_path)
    FAMILIES["llava"].build().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no reference model") as error:
        train_tiles(tmp_path / "run", 3, TINY, start=tmp_path)
    assert len(str(error.value).splitlines()) <= 4
    assert not (tmp_path / "run").exists()


def test_it_begins_with_what_the_reference_says(start: Path, tmp_path: Path) -> None:
    """An overview is a picture of 64 pixels to both models, and means the same before training."""
    source = LlavaForConditionalGeneration.from_pretrained(start)
    train_tiles(tmp_path, 3, replace(TINY, vision_steps=0), (2, 0), start=start)
    trainer = TilesTrainer(tmp_path, 3, recipe_of(tmp_path), source)
    packed = pack([[[Question("x", "is there a red thing ?", "yes")]]], text_encoder())
    drawn = OVERVIEWS[0].draw(4, "train")
    raw = source.model.vision_tower(
        pixel_values(drawn.views.pixels, VIEW_GRID),
        output_hidden_states=True,
        interpolate_pos_encoding=True,
    ).hidden_states[-2][:, 1:]
    projected = source.model.multi_modal_projector(raw)
    newline = trainer.model.model.image_newline
    visual = OVERVIEWS[0].visual(projected[:, None], newline).detach()
    said = packed_loss(source, visual, packed)[1]
    found = packed_loss(trainer.model, trainer.visual(OVERVIEWS[0], [drawn.views]), packed)[1]
    known = len(source.get_input_embeddings().weight)
    assert found.shape[-1] > known
    assert torch.allclose(found[..., :known], said, atol=1e-4)
    # Heads that were copies of each other no longer are where it shows in their gradients.
    for model, copies in ((source, True), (trainer.model, False)):
        packed_loss(model, visual, packed)[0].backward()
        queries = model.model.language_model.layers[0].self_attn.q_proj.weight.grad
        first, second = queries.unflatten(0, (-1, 2, 32)).unbind(1)
        assert torch.allclose(first, second, atol=1e-7) == copies
    # Control: another start says something else.
    torch.manual_seed(2)
    other = packed_loss(build_model(64, 2, 64, 2), visual, packed)[1]
    assert not torch.allclose(other, said, atol=1e-2)


def test_what_the_reference_does_not_know_begins_as_large_as_the_rest() -> None:
    source = build_model(64, 2, 64, 2)
    with torch.no_grad():
        source.get_input_embeddings().weight.normal_(0, 3.0)
        source.lm_head.weight.normal_(0, 0.5)
    model = build_tiles_model(64, 2, 64, 2)
    start_from(model, source)
    model.requires_grad_(False)
    known = len(source.lm_head.weight)
    embedded, head = model.get_input_embeddings().weight, model.lm_head.weight
    assert torch.equal(embedded[:known], source.get_input_embeddings().weight)
    assert torch.equal(head[:known], source.lm_head.weight)
    assert embedded[known:].std() == pytest.approx(3.0, rel=0.1)
    torch.testing.assert_close(head[known:], embedded[known:] / 6, rtol=0.02, atol=0)
    assert model.model.image_newline.std() == pytest.approx(3.0, rel=0.3)


def test_only_heads_that_are_copies_are_told_apart() -> None:
    """Two groups of two heads in each layer, of which the first two alone are alike."""
    model = build_tiles_model(64, 2, 128, 2)
    source = build_model(64, 2, 128, 2)
    with torch.no_grad():
        for block in source.model.language_model.layers:
            queries = block.self_attn.q_proj.weight.unflatten(0, (2, 2, 32))
            queries[0, 1] = queries[0, 0]
    start_from(model, source)
    layers = (model.model.language_model.layers, source.model.language_model.layers)
    for mine, theirs in zip(*layers, strict=True):
        now, before = (
            block.self_attn.o_proj.weight.unflatten(1, (2, 2, 32)) for block in (mine, theirs)
        )
        assert torch.equal(now[:, 1], before[:, 1])
        assert (now[:, 0] - before[:, 0]).std() > 0.5 * before.std()
        torch.testing.assert_close(now.sum(2), before.sum(2), rtol=1e-4, atol=1e-5)


def test_everything_learns_that_should(trainer: TilesTrainer) -> None:
    """The newline with the decoder; the tower in its own stage only."""
    learning = {id(parameter) for parameter in trainer.optimiser.parameters}
    base = trainer.model.model
    assert id(base.image_newline) in learning
    assert not learning & {id(parameter) for parameter in base.vision_tower.parameters()}
    others = [*base.language_model.parameters(), *base.multi_modal_projector.parameters()]
    assert {id(parameter) for parameter in others} < learning


def test_places_tell_where_and_when() -> None:
    """Against the layout and the script: a scene's owners have one place and no time."""
    drawn = tiled_scene(4, "train", canvas=(192, 128))
    told = places_of(TILED[1].draw(4, "train"))
    for owner, thing in enumerate(drawn.things, start=1):
        wanted = torch.tensor([thing.x / 96 - 1, thing.y / 64 - 1])
        assert torch.allclose(told[owner, :2], wanted, atol=1e-5)
    assert told[:, 2:].isnan().all()
    assert told[0].isnan().all()
    for seed in range(5):
        shown = clip(seed, "train", frames=8)
        told = places_of(CLIPS[0].draw(seed, "train"))
        assert told[1 + len(shown.actors) :].isnan().all()
        for owner, actor in enumerate(shown.actors, start=1):
            across, down, start, end = told[owner, 2:].tolist()
            way = {"left": -across, "right": across, "up": -down, "down": down, "nowhere": 1.0}
            assert way[actor.move] > 0.3
            assert 0.0 in (across, down)
            # Frames are an eighth of the clip: its first lies within one step of appearing.
            assert 0 <= (start + 1) / 2 - actor.appears + 1 / 16 <= 1 / 8
            assert 0 <= (end + 1) / 2 - actor.leaves + 1 / 16 <= 1 / 8


def test_exported_model_is_the_trained_one(trainer: TilesTrainer, loaded: tuple[Any, Any]) -> None:
    """The whitening is folded in, and half precision changes little."""
    model, processor = loaded
    packed = pack([[[Question("x", "is there a red thing ?", "yes")]]], text_encoder())

    def answer(raw: torch.Tensor, of: Any, form: Form) -> torch.Tensor:
        projected = of.model.multi_modal_projector(raw)[None]
        return packed_loss(of, form.visual(projected, of.model.image_newline), packed)[1]

    for form in (TILED[0], CLIPS[0]):
        drawn = form.draw(5, "train")
        with torch.no_grad():
            raw = trainer.raw_features(drawn.views)
            _, trained = packed_loss(trainer.model, trainer.visual(form, [drawn.views]), packed)
            exported, unwhitened = answer(raw, model, form), answer(raw, trainer.model, form)
        assert torch.allclose(trained, exported, atol=0.1)
        # Control: without the whitening it is another model.
        assert (trained - unwhitened).abs().max() > 3 * (trained - exported).abs().max()
    assert processor.image_processor.image_grid_pinpoints[-1] == [192, 192]
    record = json.loads((trainer.folder / "model" / "training.json").read_text())
    noted = record["training"]["recipe"]
    assert (noted["clip_share"], noted["width"]) == (TINY.clip_share, 64)
    assert noted["started_from"]


def test_measures_every_table(loaded: tuple[Any, Any]) -> None:
    found = measure_tiles(*loaded, count=8, split="validation")
    conditions = {"accuracy", "blind", "wrong_image", "majority", "questions"}
    resized = {f"views_of_{pixels}_pixels" for pixels in (32, 48, 56)}
    more = {
        "scenes": {"overview_only", *resized},
        "clips": {"middle_frame", "at_8_frames", "at_32_frames", *resized},
    }
    for part, extra in more.items():
        assert found[part]["all"]["questions"] == 24
        assert set(found[part]["all"]) == conditions | extra
        for row in found[part]["kinds"].values():
            assert set(row) == conditions | extra
    assert set(found["cls_attention"]) == {"overviews", "tiles", "frames"}
    for row in found["cls_attention"].values():
        assert 0 < row["object_area"] < 1
        assert 0 < row["attention_on_objects"] < 1


def test_a_form_of_full_size_is_what_the_processor_gives(loaded: tuple[Any, Any]) -> None:
    """The path of resized views, taken with views as they are."""
    drawn = [tiled_scene(seed, "validation") for seed in range(5)]
    turns = [
        [(turn.text, turn.answer, turn.kind) for turn in tiled_dialogue(each, each.seed)]
        for each in drawn
    ]
    given = [(Tiled(each.image.size), scene_views(each)) for each in drawn]
    theirs = tiled_hits(*loaded, turns, [each.image for each in drawn])
    assert resized_hits(*loaded, turns, given) == theirs


def test_measured_clips_are_asked_as_the_processor_asks(loaded: tuple[Any, Any]) -> None:
    """Ids and pixels made without torchvision, against the processor's own."""
    from foveate.reference.clip_questions import clip_dialogue
    from foveate.reference.measure import answers_right, messages

    model, processor = loaded
    drawn = [clip(seed, "validation", frames=8) for seed in range(4)]
    turns = [
        [(turn.text, turn.answer, turn.kind) for turn in clip_dialogue(each, each.seed)]
        for each in drawn
    ]
    texts = [processor.apply_chat_template(messages(each, is_video=True)) for each in turns]
    inputs = processor(
        text=texts,
        videos=[each.frames for each in drawn],
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        guessed = model(**inputs).logits.argmax(-1)
    theirs = answers_right(inputs.input_ids, guessed, turns)
    assert clip_hits(model, processor, turns, [each.pixels for each in drawn]) == theirs
