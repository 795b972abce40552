"""Tiled scenes, their views, and the model that looks at them: its own forward is the measure."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate.adapters import adapter_for
from foveate.errors import InputError
from foveate.reference import tiled_samples, words
from foveate.reference.clips import FRAME, clip, moments
from foveate.reference.data import pixel_values
from foveate.reference.forms import (
    CLIPS,
    LOW_CLIPS,
    LOW_TILED,
    OVERVIEWS,
    TILED,
    Form,
    Frames,
    Tiled,
    step_form,
    training_turns,
)
from foveate.reference.labels import MOST_OWNERS, patch_owners
from foveate.reference.language_stage import packed_loss
from foveate.reference.measure import messages
from foveate.reference.onevision import build_tiles_model, build_tiles_processor
from foveate.reference.packing import IGNORE, pack, text_encoder
from foveate.reference.scenes import Scene, scene
from foveate.reference.tiled import CANVASES, TILE, canvas_of, tiled_dialogue, tiled_scene
from foveate.reference.views import Views, clip_views, scene_views
from foveate.reference.vision_stage import encode
from tests.reference import test_scenes

FORMS = [*TILED, *CLIPS[:2]]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return build_tiles_model(64, 3, 64, 2).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_tiles_processor()


def inputs_of(form: Form, seed: int, turns: list[tuple[str, str, str]], processor: Any) -> Any:
    """What the processor gives for the picture of this seed and a finished conversation."""
    is_video = isinstance(form, Frames)
    text = processor.apply_chat_template(messages(turns, is_video))
    if isinstance(form, Frames):
        frames = clip(seed, "train", frames=form.count).frames
        return processor(text=text, videos=[frames], do_sample_frames=False, return_tensors="pt")
    assert isinstance(form, Tiled)
    image = tiled_scene(seed, "train", canvas=form.canvas).image
    return processor(text=text, images=image, return_tensors="pt")


# ---------------------------------------------------------------- scenes


def test_every_canvas_comes_up() -> None:
    drawn = [canvas_of(seed, "test") for seed in range(60)]
    assert set(drawn) == set(CANVASES)
    assert max(drawn.count(canvas) for canvas in CANVASES) < 30


def test_two_by_two_tiles_are_the_small_scene() -> None:
    small, large = scene(5, "test"), tiled_scene(5, "test", canvas=(128, 128))
    assert (small.pixels == large.pixels).all()
    assert small.layout == large.layout


def test_other_canvases_are_refused() -> None:
    with pytest.raises(InputError, match=r"192 x 192 pixels; got \(256, 128\)"):
        tiled_scene(5, "test", canvas=(256, 128))


@pytest.mark.parametrize("world", ["first", "second"])
def test_every_answer_is_right_by_a_second_reading(
    world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(40):
        drawn = tiled_scene(seed, "validation", world)
        height, width = drawn.owners.shape

        def place(thing: Any, width: int = width, height: int = height) -> str:
            return words.REGION_WORDS[3 * int(thing.y * 3 / height) + int(thing.x * 3 / width)]

        monkeypatch.setattr(test_scenes, "place", place)
        turns = tiled_dialogue(drawn, seed)
        assert len(turns) == 3
        for turn in turns:
            assert test_scenes.expected(drawn, turn.text) == turn.answer, turn


def test_samples_are_seeded() -> None:
    first, again = list(tiled_samples("test", 4)), list(tiled_samples("test", 4))
    assert [each.turns for each in first] == [each.turns for each in again]
    assert first[0].image.tobytes() == again[0].image.tobytes()
    assert all(one.turns != other.turns for one, other in pairwise(first))


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("canvas", CANVASES)
def test_views_are_what_the_processor_makes(canvas: tuple[int, int], processor: Any) -> None:
    drawn = tiled_scene(3, "train", canvas=canvas)
    given = processor.image_processor(drawn.image, return_tensors="pt").pixel_values[0]
    views = scene_views(drawn)
    assert torch.allclose(pixel_values(views.pixels, 8), given, atol=1e-5)


def test_frames_are_what_the_video_processor_makes(processor: Any) -> None:
    drawn = clip(3, "train", frames=8)
    given = processor.video_processor([drawn.frames], do_sample_frames=False, return_tensors="pt")
    mine = pixel_values(clip_views(drawn).pixels, 8)
    assert torch.allclose(mine, given.pixel_values_videos[0], atol=1e-5)


def check_patches(drawn: Scene, views: Views) -> None:
    """Labels and offsets of the tiles against the scene itself, patch by patch."""
    labels, offsets = views.patch_labels()
    across = drawn.owners.shape[1] // TILE
    for tile in range(1, len(views)):
        top, left = divmod(tile - 1, across)
        for patch in range(64):
            row, column = divmod(patch, 8)
            y, x = top * TILE + 8 * row, left * TILE + 8 * column
            cell = drawn.owners[y : y + 8, x : x + 8]
            counts = np.bincount(cell.ravel(), minlength=MOST_OWNERS)[1:]
            if counts.max() < 8:
                assert labels["sort"][tile, patch] == 0
                continue
            owner = int(counts.argmax())
            if owner < len(drawn.things):
                thing = drawn.things[owner]
                assert labels["sort"][tile, patch] == 1
                assert words.SHAPES[labels["shape"][tile, patch]] == thing.shape
                assert list(words.COLOURS)[labels["colour"][tile, patch]] == thing.colour
                wanted = torch.tensor([(thing.x - x - 4) / 8, (thing.y - y - 4) / 8])
                assert torch.allclose(offsets[tile, patch], wanted.float(), atol=1e-4)
            else:
                assert labels["sort"][tile, patch] >= 2


def test_patch_labels_say_what_the_scene_shows() -> None:
    for seed in range(4):
        drawn = tiled_scene(seed, "train", canvas=CANVASES[seed])
        check_patches(drawn, scene_views(drawn))


def test_image_labels_follow_what_a_view_shows() -> None:
    """The overview shows all objects at once, a tile none that is not there."""
    for seed in range(6):
        drawn = tiled_scene(seed, "train")
        views = scene_views(drawn)
        labels = views.image_labels()
        pairs = len(words.COLOURS) * len(words.SHAPES)
        assert labels["present"][0, :pairs].sum() == len(drawn.things)
        assert (labels["present"][1:].amax(0) <= labels["present"][0]).all()
        (number,) = [plate.text for plate in drawn.plates if plate.kind == "number"]
        assert labels["ones"][0] == int(number[-1])
        assert set(labels["ones"].tolist()) <= {int(number[-1]), IGNORE}
    frames = clip_views(clip(0, "train", frames=8))
    assert (frames.image_labels()["ones"] == IGNORE).all()
    assert (frames.patch_labels()[0]["size"] == IGNORE).all()


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("form", [*TILED, *CLIPS], ids=str)
def test_processor_and_model_count_the_same_tokens(form: Form, model: Any, processor: Any) -> None:
    inputs = inputs_of(form, 0, [("is there a red thing ?", "yes", "existence")], processor)
    token = processor.video_token_id if isinstance(form, Frames) else processor.image_token_id
    assert (inputs.input_ids == token).sum() == form.tokens
    assert (inputs.input_ids == processor.tokenizer.unk_token_id).sum() == 0
    with torch.no_grad():
        assert model(**inputs).logits.shape[1] == inputs.input_ids.shape[1]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_packed_loss_is_the_loss_of_the_models_own_forward(
    form: Form, model: Any, processor: Any
) -> None:
    drawn = form.draw(3, "train")
    (turns,) = training_turns(drawn.subject, np.random.default_rng(1), 1, 0.0)
    packed = pack([[turns]], text_encoder())
    with torch.no_grad():
        hidden, _ = encode(
            model.model.vision_tower, pixel_values(drawn.views.pixels, 8), last=False
        )
        projected = model.model.multi_modal_projector(hidden[:, 1:])
        mine, _ = packed_loss(
            model, form.visual(projected[None], model.model.image_newline), packed
        )
    plain = [(turn.text, turn.answer, turn.kind) for turn in turns]
    inputs = inputs_of(form, 3, plain, processor)
    start = form.tokens + 2
    assert inputs.input_ids[0, start:].equal(packed.ids[0])
    labels = torch.full_like(inputs.input_ids, IGNORE)
    labels[0, start + 1 :] = packed.labels[0, :-1]
    with torch.no_grad():
        theirs = model(**inputs, labels=labels).loss
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert (packed.labels != IGNORE).sum() > 3


@pytest.mark.parametrize("form", TILED, ids=str)
def test_owners_lie_where_the_model_puts_their_patches(form: Tiled, model: Any) -> None:
    """Owners sent through the model's own packing in the place of features."""
    drawn = [form.draw(seed, "train") for seed in (1, 2)]
    patches = torch.stack([patch_owners(each.views.owners, 8) for each in drawn])
    packed, _ = model.model.pack_image_features(
        list(patches[..., None].float()),
        [[form.canvas[1], form.canvas[0]]] * 2,
        image_newline=torch.zeros(1),
    )
    sent = torch.stack(packed)[..., 0].long()
    assert form.owners([each.views for each in drawn]).equal(sent)
    assert (sent > 0).any()


def test_frames_are_pooled_as_the_model_pools_them(model: Any) -> None:
    projected = torch.randn(2, 8, 64, 5)
    pooled = model.model.apply_pooling(projected.flatten(0, 1)).reshape(2, -1, 5)
    newline = torch.randn(5)
    mine = CLIPS[0].visual(projected, newline)
    assert torch.allclose(mine[:, :-1], pooled, atol=1e-6)
    assert (mine[:, -1] == newline).all()


def test_an_overview_is_what_each_of_several_pictures_gets(model: Any) -> None:
    form = OVERVIEWS[0]
    views = [form.draw(seed, "train").views for seed in (1, 2)]
    pixels = pixel_values(Views.joined(views).pixels, 8)
    with torch.no_grad():
        hidden, _ = encode(model.model.vision_tower, pixels, last=False)
        projected = model.model.multi_modal_projector(hidden[:, 1:])
        theirs = model.get_image_features(
            pixel_values=pixels,
            image_sizes=torch.full((2, 2), TILE),
            batch_num_images=torch.tensor([2]),
        ).pooler_output
        mine = form.visual(projected[:, None], model.model.image_newline)
    assert torch.allclose(mine, torch.stack(list(theirs)), atol=1e-5)
    assert form.owners(views).shape == mine.shape[:2] == (2, form.tokens)


@pytest.mark.parametrize("form", [CLIPS[0], *LOW_CLIPS[:3]], ids=str)
def test_owners_of_pooled_tokens(form: Frames) -> None:
    """The middle of an object lies in a token of its own."""
    drawn = clip(1, "train", frames=form.count)
    owners = form.owners([clip_views(drawn)])
    assert owners.shape == (1, form.tokens)
    assert owners[0, -1] == 0
    tokens = owners[0, :-1].reshape(form.count, form.side, form.side)
    hits = []
    for index, moment in enumerate(moments(form.count)):
        for owner, actor in enumerate(drawn.actors, start=1):
            if actor.shown(moment):
                column, row = (int(each * form.side / FRAME) for each in actor.place(moment))
                hits.append(tokens[index, row, column].item() == owner)
    assert np.mean(hits) > 0.8


@pytest.mark.parametrize("form", [LOW_TILED[0], LOW_TILED[5], LOW_CLIPS[1]], ids=str)
def test_resized_views_keep_their_order(form: Form) -> None:
    """Every patch's token is where a patch of a full view would be, and as many as are counted."""
    views = [form.draw(seed, "train").views for seed in (1, 2)]
    count = len(views[0])
    number = torch.arange(2.0 * count * form.grid**2).reshape(2, count, form.grid**2, 1)
    sent = form.visual(number, torch.tensor([-1.0]))[..., 0]
    assert sent.shape == form.owners(views).shape == (2, form.tokens)
    if isinstance(form, Tiled):
        visual = sent[0][sent[0] >= 0]
        assert sorted(visual.tolist()) == list(range(count * form.grid**2))
        # The mosaic's first row: the first rows of the tiles side by side.
        across = form.canvas[0] // TILE
        row = sent[0, form.grid**2 :][: across * form.grid + 1]
        tiles = number[0, 1 : 1 + across, : form.grid, 0].flatten()
        assert row[:-1].equal(tiles)
        assert row[-1] == -1


def test_the_adapter_knows_the_tower(model: Any, processor: Any) -> None:
    adapter = adapter_for(model)
    assert (adapter.has_cls, adapter.side) == (True, 8)
    inputs = inputs_of(TILED[3], 0, [("is there a red thing ?", "yes", "existence")], processor)
    (layout,) = adapter.layouts("image", dict(inputs))
    assert (layout.length, layout.n) == (664, 640)
    assert layout.rows is not None
    given = {"pixel_values_videos": torch.zeros(1, 8, 3, TILE, TILE)}
    (layout,) = adapter.layouts("video", given)
    assert (layout.length, layout.n) == (129, 128)


@pytest.mark.parametrize("form", [TILED[1], CLIPS[0]], ids=str)
@pytest.mark.parametrize("method", ["visionzip", "divprune"])
def test_methods_attach(form: Form, method: str, model: Any, processor: Any) -> None:
    """Keeping everything changes nothing; keeping a fifth changes the answer's logits."""
    inputs = inputs_of(form, 0, [("is there a red thing ?", "yes", "existence")], processor)
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]
        with foveate.attach(model, method, keep=1.0):
            same = model(**inputs).logits[0, -1]
        with foveate.attach(model, method, keep=0.2):
            less = model(**inputs).logits[0, -1]
    assert torch.allclose(same, plain, atol=1e-5)
    assert (less - plain).abs().max() > 1e-4


def test_a_steps_form_follows_its_shares() -> None:
    rng = np.random.default_rng(0)
    assert {type(step_form(rng, 1.0, 0.3)) for _ in range(20)} == {Frames}
    assert {step_form(rng, 0.0, 0.0) for _ in range(60)} == set(TILED)
    assert {step_form(rng, 0.0, 1.0) for _ in range(200)} == {*OVERVIEWS, *LOW_TILED}
    assert {step_form(rng, 1.0, 1.0) for _ in range(200)} == set(LOW_CLIPS)
    small = {step_form(rng, 0.5, 0.0, 1.0) for _ in range(40)}
    assert small == {TILED[0], CLIPS[0]}
    mixed = [step_form(rng, 0.45, 0.15) for _ in range(400)]
    assert 0.35 < sum(isinstance(form, Frames) for form in mixed) / len(mixed) < 0.55
