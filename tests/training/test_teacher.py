"""What the full model says, from disk: the same as without a disk."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import foveate
from foveate import reference
from foveate.errors import InputError, SavedFileError
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue, Stored, Turn, from_clips
from foveate.training import data
from foveate.training.batches import collate
from foveate.training.entries import Size
from foveate.training.files import is_whole
from foveate.training.losses import prediction
from foveate.training.pairs import Pairs
from foveate.training.teacher import Teacher
from foveate.training.transcripts import first_inputs, transcript
from tests.families import checkpoints
from tests.laws.methods import TopNorm
from tests.training import needs_features

pytestmark = needs_features


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return reference.load()


@pytest.fixture(scope="module")
def scenes() -> list[Dialogue]:
    found = data.examples("scenes", count=3)
    # Of different lengths, and two about one picture.
    return [found[0], dataclasses.replace(found[0], turns=found[0].turns[:1]), *found[1:]]


@torch.no_grad()
def test_the_places_predict_the_answers_and_their_ends(
    loaded: tuple[Any, Any], scenes: list[Dialogue]
) -> None:
    model, processor = loaded
    inputs = first_inputs(model, processor, scenes[0], scenes[0].load())
    text = transcript(model, processor, scenes[0], ["red", "", "no"], inputs)
    said = processor.tokenizer.convert_ids_to_tokens(text.ids[text.places + 1].tolist())
    assert said == ["red", "</s>", "</s>", "no", "</s>"]
    assert text.turns.tolist() == [0, 0, 1, 2, 2]
    whole = processor.tokenizer.decode(text.ids, skip_special_tokens=True)
    assert all(turn.question in whole for turn in scenes[0].turns)
    assert torch.equal(text.ids[: inputs["input_ids"].shape[1]], inputs["input_ids"][0])


def test_an_answer_that_the_template_rewrites_is_refused(
    loaded: tuple[Any, Any], scenes: list[Dialogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded
    inputs = first_inputs(model, processor, scenes[0], scenes[0].load())
    written = processor.chat_template.replace("{{ item['text'] }}", "{{ item['text'] | upper }}")
    monkeypatch.setattr(processor, "chat_template", written)
    with pytest.raises(InputError, match="does not write the answer 'red'"):
        transcript(model, processor, scenes[0], ["red", "a", "no"], inputs)


@torch.no_grad()
def test_stored_distributions_are_those_of_a_fresh_forward_pass(
    loaded: tuple[Any, Any], scenes: list[Dialogue], tmp_path: Path
) -> None:
    model, processor = loaded
    teacher = Teacher(model, processor, tmp_path)
    told: list[Size] = []
    done: list[int] = []
    teacher.fill(scenes, batch_size=3, tell=told.append, done=done.append)
    assert sum(done) == len(scenes) and len(told) == 1
    assert "4 dialogues and 3 pictures takes" in str(told[0])
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 7 and told[0].nbytes == sum(f.stat().st_size for f in files)

    pictures = [each.load() for each in scenes]
    batch = Batch(model, processor, scenes, pictures, frozenset(), 64)
    expected = [each["answers"] for each in batch.converse(None)]
    assert [teacher.said(each) for each in scenes] == expected

    for each, shown in zip(scenes, pictures, strict=True):
        inputs = first_inputs(model, processor, each, shown)
        text = transcript(model, processor, each, teacher.said(each), inputs)
        lesson = teacher.lesson(each)
        assert torch.equal(lesson.text.ids, text.ids) and lesson.full is not None
        mask = torch.ones_like(text.ids)[None]
        inputs |= {"input_ids": text.ids[None], "attention_mask": mask}
        logits = model(**inputs, use_cache=False).logits[0, text.places]
        assert float(prediction(lesson.full, logits).max()) < 1e-5
        # The likeliest token is the one that greedy decoding chose.
        assert torch.equal(logits.argmax(-1), text.ids[text.places + 1])


@torch.no_grad()
def test_compressed_logits_from_the_cache_are_those_from_pixels(
    loaded: tuple[Any, Any], scenes: list[Dialogue], tmp_path: Path
) -> None:
    model, processor = loaded
    teacher = Teacher(model, processor, tmp_path, answers="given")
    teacher.fill(scenes)
    assert teacher.said(scenes[0]) == [turn.answers[0] for turn in scenes[0].turns]
    batch = collate([teacher.lesson(each) for each in scenes])
    shared = batch.encoded(model)
    with foveate.attach(model, TopNorm(), keep=20, encoded=shared):
        found = batch.rows_of(batch.answer_logits(model, shared))
    for each, own in zip(scenes, found, strict=True):
        inputs = first_inputs(model, processor, each, each.load())
        text = teacher.lesson(each).text
        mask = torch.ones_like(text.ids)[None]
        inputs |= {"input_ids": text.ids[None], "attention_mask": mask}
        with foveate.attach(model, TopNorm(), keep=20):
            expected = model(**inputs, use_cache=False).logits[0, text.places]
        torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_only_what_is_missing_or_torn_is_computed(
    loaded: tuple[Any, Any],
    scenes: list[Dialogue],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, processor = loaded
    computed: list[int] = []
    compute = Teacher.compute

    def counted(self: Teacher, dialogues: Any) -> dict[Path, bytes]:
        computed.append(len(dialogues))
        return compute(self, dialogues)

    monkeypatch.setattr(Teacher, "compute", counted)
    teacher = Teacher(model, processor, tmp_path, answers="given")
    teacher.fill(scenes[:2])
    teacher.fill(scenes[:3])
    assert sum(computed) == 3
    torn = teacher.answer_file(scenes[1])
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-9])
    with pytest.raises(SavedFileError, match="cut off"):
        teacher.lesson(scenes[1])
    teacher.fill(scenes[:3])
    assert sum(computed) == 4 and len(torn.read_bytes()) == len(whole)
    assert not list(tmp_path.rglob("*.partial"))


def test_entries_of_other_weights_questions_or_settings_are_others(
    loaded: tuple[Any, Any], scenes: list[Dialogue], tmp_path: Path
) -> None:
    model, processor = loaded
    teacher = Teacher(model, processor, tmp_path)
    one = scenes[0]
    turn = Turn(one.turns[0].question, ("another",))
    changed = dataclasses.replace(one, turns=(turn, *one.turns[1:]))
    asked = dataclasses.replace(one, turns=(Turn("what ?", turn.answers), *one.turns[1:]))
    assert teacher.picture_file(changed) == teacher.picture_file(one)
    assert teacher.answer_file(changed) == teacher.answer_file(one)  # it answers by itself
    assert teacher.answer_file(asked) != teacher.answer_file(one)
    given = Teacher(model, processor, tmp_path, answers="given")
    assert given.answer_file(changed) != given.answer_file(one)
    short = Teacher(model, processor, tmp_path, max_new_tokens=3)
    assert short.answer_file(one) != teacher.answer_file(one)
    assert short.picture_file(one) == teacher.picture_file(one)
    first = next(model.parameters())
    before = first.data.flatten()[0].item()
    try:
        first.data.view(-1)[0] = 7.0
        other = Teacher(model, processor, tmp_path)
    finally:
        first.data.view(-1)[0] = before
    assert other.picture_file(one) != teacher.picture_file(one)


def test_entries_of_another_configuration_are_others(
    loaded: tuple[Any, Any],
    scenes: list[Dialogue],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which layer's features are taken stands in the configuration, not in the weights."""
    model, processor = loaded
    config, one = model.config, scenes[0]

    def files() -> list[Path]:
        teacher, pairs = Teacher(model, processor, tmp_path), Pairs(model, processor, tmp_path)
        return [teacher.picture_file(one), teacher.answer_file(one), pairs.file(one)]

    before = files()
    monkeypatch.setattr(config, "name_or_path", str(tmp_path))  # where it lies decides nothing
    assert files() == before
    with monkeypatch.context() as changed:
        changed.setattr(config, "vision_feature_layer", config.vision_feature_layer - 1)
        assert not set(files()) & set(before)
    generation = model.generation_config
    monkeypatch.setattr(generation, "temperature", 0.3)  # of sampling, which is not done
    assert files() == before
    monkeypatch.setattr(generation, "repetition_penalty", 1.5)
    assert not set(files()[1:]) & set(before)


@torch.no_grad()
def test_a_limit_is_told_before_it_is_broken(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    many = data.examples("scenes", count=12)
    teacher = Teacher(*loaded, tmp_path, answers="given", limit=1_500_000)
    with pytest.raises(InputError, match=r"would take [\d,]+ bytes") as error:
        teacher.fill(many)
    assert len(str(error.value).splitlines()) <= 4
    used = sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))
    assert used <= 1_500_000


# ---------------------------------------------------------------- other families and templates


def shown(family: str, folder: Path) -> tuple[Any, Any]:
    checkpoints.save(family, folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, transformers.AutoProcessor.from_pretrained(folder)


def drawn(count: int) -> list[Dialogue]:
    """Pictures of several shapes, dialogues of several lengths."""
    found = []
    for i in range(count):
        image = Image.effect_noise((24 + 12 * i, 48 - 8 * i), 90.0).convert("RGB")
        turns = [Turn("what colour ?", ("red",)), Turn("is the thing blue ?", ("no yes no",))]
        found.append(Dialogue(str(i), (image,), tuple(turns[: 1 + i % 2])))
    two = (found[0].pictures[0], found[1].pictures[0])
    return [*found, Dialogue("two", two, (Turn("in picture ?", ("yes",)),))]


def used(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*.safetensors"))


def noisy(name: str, size: int, pictures: int) -> Dialogue:
    shown = [Image.effect_noise((size, size), 90.0 + i).convert("RGB") for i in range(pictures)]
    return Dialogue(name, tuple(shown), (Turn(f"what colour {name} ?", ("red",)),))


@torch.no_grad()
def test_the_size_is_foreseen_from_every_number_of_pictures(tmp_path: Path) -> None:
    one = [noisy(f"one {i}", 24, 1) for i in range(8)]
    many = [noisy(f"many {i}", 24, 6) for i in range(16)]
    told: list[Size] = []
    teacher = Teacher(*shown("llava", tmp_path / "model"), tmp_path / "a", answers="given")
    teacher.fill([*one, *many], tell=told.append)
    total = used(tmp_path / "a")
    assert told[0].nbytes == pytest.approx(total, rel=0.02)
    small = Teacher(
        teacher.model, teacher.processor, tmp_path / "b", answers="given", limit=total // 2
    )
    with pytest.raises(InputError, match=r"would take [\d,]+ bytes"):
        small.fill([*one, *many])
    assert used(tmp_path / "b") < total // 4  # told after a few


@torch.no_grad()
def test_no_write_passes_the_limit(tmp_path: Path) -> None:
    """Pictures that turn out larger than those that the size was foreseen from."""
    model, processor = shown("qwen2_vl", tmp_path / "model")
    scenes = [noisy(f"{i}", 28 if i < 8 else 112, 1) for i in range(16)]
    whole = Teacher(model, processor, tmp_path / "whole", answers="given")
    whole.fill(scenes, batch_size=2)
    total = used(tmp_path / "whole")
    limit = total * 3 // 4
    teacher = Teacher(model, processor, tmp_path / "part", answers="given", limit=limit)
    with pytest.raises(InputError, match=f"more than the limit of {limit:,} bytes") as error:
        teacher.fill(scenes, batch_size=2)
    there = used(tmp_path / "part")
    assert total // 2 < there <= limit and f"{there:,} are in" in str(error.value)
    assert len(str(error.value).splitlines()) <= 4
    files = list((tmp_path / "part").rglob("*.safetensors"))
    assert all(is_whole(each) for each in files) and len(files) % 4 == 0
    # Of two processes each has half of what is left.
    both = Teacher(model, processor, tmp_path / "both", answers="given", limit=limit)
    with pytest.raises(InputError, match="more than the limit"):
        both.fill(scenes, processes=2, batch_size=2)
    assert used(tmp_path / "both") <= limit // 2
    teacher.max_bytes = total
    teacher.fill(scenes, batch_size=2)
    assert used(tmp_path / "part") == total


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("family", checkpoints.PROCESSORS)
@torch.no_grad()
def test_every_family_of_processors(family: str, template: bool, tmp_path: Path) -> None:
    model, processor = shown(family, tmp_path / "model")
    if not template:
        if family == "qwen2_vl":
            pytest.skip("its pictures stand between tokens that only a template writes")
        processor.chat_template = None
    teacher = Teacher(model, processor, tmp_path / "cache", answers="given", top=20)
    dialogues = drawn(3)
    teacher.fill(dialogues, batch_size=2)
    batch = collate([teacher.lesson(each) for each in dialogues])
    shared = batch.encoded(model)
    with foveate.attach(model, TopNorm(), keep=2, encoded=shared) as run:
        found = batch.rows_of(batch.answer_logits(model, shared))
    assert [item.row for item in run.items] == [0, 1, 2, 3, 3]
    for each, own in zip(dialogues, found, strict=True):
        inputs = first_inputs(model, processor, each, each.load())
        lesson = teacher.lesson(each)
        said = processor.tokenizer.decode(lesson.text.ids[lesson.text.places + 1])
        assert said.split() == [*" ".join(t.answers[0] for t in each.turns).split(), "</s>"]
        inputs["input_ids"] = lesson.text.ids[None]
        inputs["attention_mask"] = torch.ones_like(lesson.text.ids)[None]
        for name, values in lesson.text.types.items():
            inputs[name] = values[None]
        full = model(**inputs, use_cache=False).logits[0, lesson.text.places]
        assert lesson.full is not None and lesson.full.log_probs.shape[1] == 20
        assert float(prediction(lesson.full, full).abs().max()) < 1e-4
        with foveate.attach(model, TopNorm(), keep=2):
            expected = model(**inputs, use_cache=False).logits[0, lesson.text.places]
        torch.testing.assert_close(own, expected, atol=1e-3, rtol=1e-3)


def test_clips_of_several_lengths_are_stored_in_batches_of_one_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.training.entries._PROBE", 2)
    long = [dataclasses.replace(each, name="long") for each in from_clips(1, frames=12)]
    first, second, *short = from_clips(4, frames=8)
    clips = [first, second, short[0], *long, *short[1:]]
    teacher, done = Teacher(*reference.load("reference-tiles"), tmp_path), list[int]()
    teacher.fill(clips, batch_size=4, done=done.append)
    assert done == [0, 2, 1, 2]  # the first two and the first long one, then the others
    assert all(teacher.has(each) for each in clips)


def test_pictures_with_other_palettes_are_others(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    teacher = Teacher(*loaded, tmp_path)
    files = []
    for colour in ([200, 0, 0], [0, 0, 200]):
        one = Image.new("P", (4, 4))
        one.putpalette(colour)
        files.append(teacher.picture_file(Dialogue("a", (one,), (Turn("?", ("x",)),))))
        shown = Dialogue("a", (one.convert("RGB"),), (Turn("?", ("x",)),))
        assert teacher.picture_file(shown) == files[-1]
    assert files[0] != files[1]


def test_a_stored_picture_is_the_file_of_its_bytes(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    teacher, turns = Teacher(*loaded, tmp_path), (Turn("?", ("x",)),)
    stored = Dialogue("a", (Stored(digest, lambda: Image.open(file)),), turns)
    assert teacher.picture_file(stored) == teacher.picture_file(Dialogue("a", (file,), turns))
    assert teacher.answer_file(stored) == teacher.answer_file(Dialogue("a", (file,), turns))
