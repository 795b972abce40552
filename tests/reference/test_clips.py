"""Clips, checked against a second reading: of the drawn frames alone, at 8 frames and at 32."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from foveate import reference
from foveate.errors import InputError, UnknownName
from foveate.reference import clip_samples, words
from foveate.reference.clip_questions import (
    CLIP_KINDS,
    clip_dialogue,
    clip_dialogue_about,
    describe_actor,
    list_actors,
)
from foveate.reference.clips import FRAME, FRAMES, Clip, clip, moments, script
from foveate.reference.scenes import SPLITS


@dataclass
class Seen:
    """What the frames show of one object: how it looks, when it is there, and where."""

    colour: str
    shape: str
    frames: list[int]
    places: list[tuple[float, float]]
    count: int

    @property
    def way(self) -> str:
        """From its first place to its last; less than 5 pixels is nowhere."""
        dx, dy = np.subtract(self.places[-1], self.places[0])
        if max(abs(dx), abs(dy)) < 5:
            return "nowhere"
        if abs(dx) > abs(dy):
            return "left" if dx < 0 else "right"
        return "up" if dy < 0 else "down"

    def when(self, verb: str) -> str:
        """The third of the clip in which it appears or leaves, half-way between two frames."""
        between = self.frames[0] if verb == "appear" else self.frames[-1] + 1
        return ("start", "middle", "end")[min(int(3 * between / self.count), 2)]


def watch(drawn: Clip) -> list[Seen]:
    """Every object as the owners of the frames show it; the script gives its looks alone."""
    found = []
    for owner, actor in enumerate(drawn.actors, start=1):
        frames = [index for index, each in enumerate(drawn.owners) if (each == owner).any()]
        places = []
        for index in frames:
            rows, columns = np.nonzero(drawn.owners[index] == owner)
            places.append((columns.mean(), rows.mean()))
        thing = actor.thing
        found.append(Seen(thing.colour, thing.shape, frames, places, len(drawn.owners)))
    return found


def meant(seen: list[Seen], who: str) -> list[Seen]:
    """The objects that fit a phrase, word by word."""
    for word in who.split():
        if word in words.COLOURS:
            seen = [each for each in seen if each.colour == word]
        for shape in words.SHAPES:
            if word in (shape, words.plural(shape)):
                seen = [each for each in seen if each.shape == shape]
    return seen


def only(seen: list[Seen], who: str) -> Seen:
    (one,) = meant(seen, who)
    return one


def expected(seen: list[Seen], text: str) -> str:
    """The answer by a second program that shares no code with the asking one."""
    if found := re.fullmatch(r"what (colour|shape) is the thing that moves (\w+) \?", text):
        (one,) = [each for each in seen if each.way == found[2]]
        return str(getattr(one, found[1]))
    if found := re.fullmatch(r"what (colour|shape) is the (.+) \?", text):
        return str(getattr(only(seen, found[2]), found[1]))
    if found := re.fullmatch(r"where does the (.+) go \?", text):
        return only(seen, found[1]).way
    if found := re.fullmatch(r"when does the (.+) (appear|leave) \?", text):
        return only(seen, found[1]).when(found[2])
    if found := re.fullmatch(r"which came first , the (.+) or the (.+) \?", text):
        first = min(found.groups(), key=lambda who: only(seen, who).frames[0])
        assert len({only(seen, who).frames[0] for who in found.groups()}) == 2
        return first.removesuffix(" thing")
    if found := re.fullmatch(r"did the (.+) appear before the (.+) \?", text):
        one, other = (only(seen, who).frames[0] for who in found.groups())
        assert one != other
        return "yes" if one < other else "no"
    if found := re.fullmatch(r"is there a (.+) \?", text):
        return "yes" if meant(seen, found[1]) else "no"
    numerals = "zero one two three four".split()
    if found := re.fullmatch(r"how many things move( \w+)? \?", text):
        way = (found[1] or "").strip()
        return numerals[sum(each.way == way if way else each.way != "nowhere" for each in seen)]
    found = re.fullmatch(r"how many (.+) are there \?", text)
    assert found, text
    return numerals[len(meant(seen, found[1]))]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [clip(seed, "validation", frames=8) for seed in range(80)]


def test_same_seed_same_clip_and_questions() -> None:
    first, second = clip(7, "test"), clip(7, "test")
    assert (first.pixels == second.pixels).all()
    assert first.script == second.script
    assert clip_dialogue(first, 7) == clip_dialogue(second, 7)
    assert len(first.pixels) in FRAMES
    assert first.script != clip(8, "test").script


def test_splits_and_worlds_share_no_script() -> None:
    scripts = [
        script(seed, split, world)
        for split in SPLITS
        for world in ("first", "second")
        for seed in range(10)
    ]
    assert len(set(scripts)) == len(scripts)
    with pytest.raises(UnknownName, match="Did you mean 'train'"):
        clip(0, "trian")
    with pytest.raises(InputError, match="0 to 999999"):
        clip(1_000_000, "test")


@pytest.mark.parametrize("world", ["first", "second"])
@pytest.mark.parametrize("frames", [8, 32])
def test_frames_show_what_the_script_says(world: str, frames: int) -> None:
    for seed in range(15):
        drawn = clip(seed, "validation", world, frames)
        assert drawn.pixels.shape == (frames, FRAME, FRAME, 3)
        assert 2 <= len(drawn.actors) <= 4
        for owner, actor in enumerate(drawn.actors, start=1):
            for moment, owners in zip(moments(frames), drawn.owners, strict=True):
                rows, columns = np.nonzero(owners == owner)
                assert bool(len(rows)) == actor.shown(moment)
                if len(rows):
                    x, y = actor.place(moment)
                    # A triangle's middle is not its centre of mass.
                    assert np.hypot(columns.mean() + 0.5 - x, rows.mean() + 0.5 - y) < 2.5


def test_the_background_stays_and_the_noise_does_not(clips: list[Clip]) -> None:
    for drawn in clips[:10]:
        still = (drawn.owners == 0).all(0)
        change = np.abs(np.diff(drawn.pixels.astype(int), axis=0))[:, still]
        assert 0 < change.mean() < 10


def test_an_object_looks_the_same_in_every_frame() -> None:
    for seed in range(10):
        drawn = clip(seed, "validation", frames=12)
        for owner, actor in enumerate(drawn.actors, start=1):
            if actor.thing.pattern == "plain":
                colours = [
                    frame[owners == owner].mean(0)
                    for frame, owners in zip(drawn.pixels, drawn.owners, strict=True)
                    if (owners == owner).any()
                ]
                assert np.ptp(colours, axis=0).max() < 12


@pytest.mark.parametrize("frames", [8, 16, 32])
def test_every_answer_can_be_read_off_the_frames(frames: int) -> None:
    """The same questions at 8 frames and at 32: events do not fall between the pictures."""
    seen: Counter[str] = Counter()
    for seed in range(30):
        drawn = clip(seed, "validation", frames=frames)
        watched = watch(drawn)
        for variant in range(3):
            turns = clip_dialogue(drawn, variant)
            assert len(turns) == len({turn.kind for turn in turns}) == 3
            for turn in turns:
                assert expected(watched, turn.text) == turn.answer, (seed, turn)
                seen[turn.kind] += 1
    assert set(seen) == set(CLIP_KINDS)


def test_second_reading_can_disagree(clips: list[Clip]) -> None:
    """Control: asked about the wrong clip, the check above must fail."""
    wrong = 0
    for drawn, other in pairwise(clips):
        for turn in clip_dialogue(drawn, 0):
            try:
                wrong += expected(watch(other), turn.text) != turn.answer
            except (ValueError, AssertionError):  # nobody, or several, fit the name
                wrong += 1
    assert wrong > len(clips)


def test_descriptions_can_be_read_off_the_frames() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        drawn = clip(seed, "validation", frames=16)
        watched = watch(drawn)
        told, listed = describe_actor(drawn.script, rng), list_actors(drawn.script, rng)
        if told is not None:
            one = only(watched, told.text.removeprefix("describe the ").removesuffix(" ."))
            when = one.when("appear"), one.when("leave")
            assert told.answer == f"{one.colour} {one.shape} {one.way} {' '.join(when)}"
            ((owner,),) = told.about
            assert drawn.actors[owner - 1].thing.colour == one.colour
        if listed is not None:
            moving = "that move" in listed.text
            named = [
                (each.colour, each.shape) for each in watched if each.way != "nowhere" or not moving
            ]
            said = [tuple(part.split()) for part in listed.answer.split(" , ")]
            assert sorted(said) == sorted(named)
            first = {(each.colour, each.shape): each.frames[0] for each in watched}
            order = [first[pair] for pair in said]
            assert order == sorted(order)


def test_names_point_at_what_they_mean(clips: list[Clip]) -> None:
    """What training is told to look at is what the words fit."""
    checked = 0
    for drawn in clips:
        for turn in clip_dialogue(drawn, 0):
            text = turn.text.split()
            for place, owners in turn.named:
                for owner in owners:
                    thing = drawn.actors[owner - 1].thing
                    near = text[max(0, place - 4) : place + 1]
                    for word in near[-2:]:
                        assert word not in words.COLOURS or word == thing.colour
                        if word in words.SHAPES:
                            assert word == thing.shape
                    checked += 1
    assert checked > 60


def test_no_answer_is_the_rule() -> None:
    """The most frequent answer of each kind stays rare enough that guessing shows."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        for turn in clip_dialogue_about(script(seed, "validation"), rng):
            answers[turn.kind][turn.answer] += 1
    assert set(answers) == set(CLIP_KINDS)
    choices = {"existence": 2, "before": 2, "when": 3}
    for kind, counter in answers.items():
        share = counter.most_common(1)[0][1] / counter.total()
        assert share < 1.4 / choices.get(kind, 3.5), (kind, counter.most_common(3))


def test_samples_know_every_word() -> None:
    known = words.vocabulary()
    for sample in clip_samples("validation", 20, frames=8):
        assert len(sample.frames) == 8
        assert sample.frames[0].size == (FRAME, FRAME)
        for question, answer, _ in sample.turns:
            assert all(word in known for word in f"{question} {answer}".split())


def test_old_words_keep_their_ids() -> None:
    """The shipped weights depend on them."""
    shipped = json.loads((reference.path() / "tokenizer.json").read_text())["model"]["vocab"]
    new = words.vocabulary()
    assert {word: new[word] for word in shipped} == shipped
    assert set(words.vocabulary(clips=False)) <= set(new)


@pytest.mark.parametrize("frames", [-3, 0, 7, 33])
def test_other_numbers_of_frames_are_refused(frames: int) -> None:
    with pytest.raises(InputError, match=f"8 to 32 frames, .*; got {frames}"):
        clip(0, "train", frames=frames)
