"""Scenes and dialogues, checked against a second reading of the question's words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from foveate.errors import InputError, UnknownName
from foveate.reference import samples, words
from foveate.reference.layout import Thing
from foveate.reference.questions import KINDS
from foveate.reference.scenes import SPLITS, Scene, dialogue, patch_mask, scene, scene_layout

ADJECTIVES = {
    "colour": tuple(words.COLOURS),
    "size": words.SIZES,
    "pattern": words.PATTERNS,
    "shape": words.SHAPES,
}


def place(thing: Thing) -> str:
    """The region word, from scratch."""
    row, column = int(thing.y * 3 / 128), int(thing.x * 3 / 128)
    return words.REGION_WORDS[3 * row + column]


def meant(scene: Scene, who: str) -> list[Thing]:
    """The objects that fit a phrase, word by word."""
    found = list(scene.things)
    for word in who.split():
        for part, known in ADJECTIVES.items():
            for singular in known:
                plural = words.plural(singular) if part == "shape" else singular
                if word in (singular, plural):
                    found = [thing for thing in found if getattr(thing, part) == singular]
        if word in words.REGION_WORDS:
            found = [thing for thing in found if place(thing) == word]
    return found


def only(scene: Scene, who: str) -> Thing:
    (thing,) = meant(scene, who)
    return thing


def expected(scene: Scene, text: str) -> str:
    """The answer by a second program that shares no code with the asking one."""
    if found := re.fullmatch(r"what (colour|shape) is the (\w+most) thing \?", text):
        axis = (lambda t: t.x) if found[2] in ("leftmost", "rightmost") else (lambda t: t.y)
        choose = min if found[2] in ("leftmost", "topmost") else max
        return str(getattr(choose(scene.things, key=axis), found[1]))
    if found := re.fullmatch(r"what (colour|shape|size) is the (.+) \?", text):
        return str(getattr(only(scene, found[2]), found[1]))
    if found := re.fullmatch(r"what pattern is on the (.+) \?", text):
        return only(scene, found[1]).pattern
    if found := re.fullmatch(r"where is the (.+) \?", text):
        return place(only(scene, found[1]))
    if found := re.fullmatch(r"is there a (.+) \?", text):
        return "yes" if meant(scene, found[1]) else "no"
    if found := re.fullmatch(r"how many (.+) are there \?", text):
        numerals = dict(enumerate("zero one two three four".split()))
        return numerals.get(len(meant(scene, found[1])), "many")
    if found := re.fullmatch(r"is the (.+) larger than the (.+) \?", text):
        # Small objects have a radius below 10 pixels, large ones above 12.
        first, second = only(scene, found[1]), only(scene, found[2])
        return "yes" if first.radius > 11 > second.radius else "no"
    if found := re.fullmatch(r"is the (.+) (left of|right of|above|below) the (.+) \?", text):
        first, second = only(scene, found[1]), only(scene, found[3])
        holds = {
            "left of": first.x < second.x,
            "right of": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }[found[2]]
        return "yes" if holds else "no"
    if text == "what number is on the plate ?":
        (plate,) = [plate for plate in scene.plates if plate.kind == "number"]
        return " ".join(plate.text)
    found = re.fullmatch(r"what letter is on the (?:(light|dark) )?sign \?", text)
    assert found, text
    signs = [plate for plate in scene.plates if plate.kind == "letter"]
    (sign,) = [plate for plate in signs if found[1] in (None, plate.tone)]
    return sign.text


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(seed, "validation") for seed in range(60)]


def test_same_seed_same_picture_and_questions() -> None:
    first, second = scene(7, "test"), scene(7, "test")
    assert (first.pixels == second.pixels).all()
    assert first.layout == second.layout
    assert dialogue(first, 7) == dialogue(second, 7)
    assert (first.pixels != scene(8, "test").pixels).any()


def test_splits_share_no_seed_and_no_picture() -> None:
    ranges = list(SPLITS.values())
    for index, one in enumerate(ranges):
        assert all(one.stop <= other.start for other in ranges[index + 1 :])
    layouts = [scene_layout(seed, split) for split in SPLITS for seed in range(20)]
    assert len(set(layouts)) == len(layouts)


def test_unknown_split_and_seed_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'train'"):
        scene(0, "trian")
    with pytest.raises(InputError, match="0 to 999999"):
        scene(1_000_000, "test")


def test_every_answer_is_right_by_a_second_reading(scenes: list[Scene]) -> None:
    seen: Counter[str] = Counter()
    for drawn in scenes:
        for seed in range(4):
            turns = dialogue(drawn, seed)
            assert len(turns) == len({turn.kind for turn in turns}) == 3
            for turn in turns:
                assert expected(drawn, turn.text) == turn.answer, turn
                seen[turn.kind] += 1
    assert set(seen) == set(KINDS)


def test_second_reading_can_disagree(scenes: list[Scene]) -> None:
    """Control: asked about the wrong scene, the check above must fail."""
    wrong = 0
    for drawn, other in pairwise(scenes):
        for turn in dialogue(drawn, 0):
            try:
                wrong += expected(other, turn.text) != turn.answer
            except ValueError:  # nobody, or several, fit the name
                wrong += 1
    assert wrong > len(scenes)


def test_pixels_show_what_the_layout_says(scenes: list[Scene]) -> None:
    """The brightest pixels of a plain object are near its colour's table entry."""
    for drawn in scenes[:40]:
        for index, thing in enumerate(drawn.things, start=1):
            if thing.pattern != "plain" or thing.size != "large":
                continue
            middle = np.median(drawn.pixels[drawn.owners == index], axis=0)
            distances = {
                name: np.abs(middle - np.array(rgb)).sum() for name, rgb in words.COLOURS.items()
            }
            assert min(distances, key=distances.__getitem__) == thing.colour


def test_no_object_hides_another(scenes: list[Scene]) -> None:
    for drawn in scenes:
        assert 4 <= len(drawn.things) <= 10
        shown = set(np.unique(drawn.owners)) - {0}
        assert shown == set(range(1, 1 + len(drawn.things) + len(drawn.plates)))


def test_patch_mask_follows_the_pixels(scenes: list[Scene]) -> None:
    mask = patch_mask(scenes[0])
    assert mask.shape == (16, 16)
    assert mask.dtype == bool
    row, column = np.argwhere(mask)[0]
    cell = scenes[0].owners[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    assert (cell > 0).sum() >= 8
    assert 0.15 < np.mean([patch_mask(drawn).mean() for drawn in scenes]) < 0.45
    with pytest.raises(InputError, match="does not divide"):
        patch_mask(scenes[0], grid=15)


def test_patches_of_a_larger_scene_are_not_told() -> None:
    with pytest.raises(InputError, match="got 192 x 128"):
        patch_mask(scene(0, "train", canvas=(192, 128)))


@pytest.mark.parametrize("canvas", [(64, 64), (128, 64), (200, 200), (-128, 128)])
def test_canvases_are_of_whole_views(canvas: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="multiples of 64"):
        scene(0, "train", canvas=canvas)


def test_no_answer_is_the_rule() -> None:
    """The most frequent answer of each kind stays rare enough that guessing shows."""
    from foveate.reference.questions import dialogue_about

    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        for turn in dialogue_about(scene_layout(seed, "validation"), rng):
            answers[turn.kind][turn.answer] += 1
    for kind, counter in answers.items():
        share = counter.most_common(1)[0][1] / counter.total()
        choices = {"size": 2, "existence": 2, "relation": 2, "comparison": 2, "pattern": 3}
        assert share < 1.4 / choices.get(kind, 3.5), (kind, counter.most_common(3))


def test_every_word_is_in_the_vocabulary() -> None:
    known = words.vocabulary()
    for sample in samples("validation", 30):
        for question, answer, _ in sample.turns:
            assert all(word in known for word in f"{question} {answer}".split())
