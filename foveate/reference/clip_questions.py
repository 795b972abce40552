"""Questions about a clip: nine kinds, and the descriptions that training mixes in.

As with scenes, objects are named by attributes that fit only them (whenever in the clip they are
there), and an answer that would be lopsided is drawn before the question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foveate.reference import words
from foveate.reference.clips import APART, Actor, Clip, Script
from foveate.reference.layout import Thing
from foveate.reference.questions import TURNS, Asked, Name, Question, ask, owners, question
from foveate.reference.referring import attribute, name

_ATTEMPTS = 12
# Objects of a clip are named by colour and shape alone.
_NAMELESS = ("size", "pattern", "region")


def clip_dialogue(clip: Clip, seed: int) -> list[Question]:
    """Three questions of different kinds about a clip."""
    return clip_dialogue_about(clip.script, np.random.default_rng([clip.seed, seed, 6]))


def clip_dialogue_about(script: Script, rng: np.random.Generator) -> list[Question]:
    """`clip_dialogue` for a clip that has not been drawn."""
    turns: list[Question] = []
    for kind in rng.permutation(CLIP_KINDS):
        asked = ask_clip(str(kind), script, rng)
        if asked is not None:
            turns.append(asked)
        if len(turns) == TURNS:
            break
    return turns


def ask_clip(kind: str, script: Script, rng: np.random.Generator) -> Question | None:
    """A random question of this kind, or None if the clip offers none."""
    cast = script.cast
    if kind == "existence":
        return ask(kind, cast, rng)
    for _ in range(_ATTEMPTS):
        found = _ASKERS[kind](script, rng)
        if found is not None:
            parts, answer, about = found
            return question(kind, cast, parts, answer, (owners(cast, about),))
    return None


def third(moment: float) -> str:
    """The word for a part of the clip: "start", "middle" or "end"."""
    return words.TIMES[min(int(3 * moment), 2)]


def _attribute(kind: str) -> Callable[[Script, np.random.Generator], Asked]:
    def asker(script: Script, rng: np.random.Generator) -> Asked:
        target = _pick(script.actors, rng)
        who = _name(script, target, rng, hidden=[kind])
        if who is None:
            return None
        answer = str(attribute(target.thing, kind))
        return [f"what {kind} is the", (who, [target.thing]), "?"], answer, [target.thing]

    return asker


def _moved(script: Script, rng: np.random.Generator) -> Asked:
    """An attribute of the only thing that goes one way."""
    move = words.MOVES[rng.integers(len(words.MOVES) - 1)]
    found = [actor.thing for actor in script.actors if actor.move == move]
    if len(found) != 1:
        return None
    part = ("colour", "shape")[rng.integers(2)]
    parts: list[str | Name] = [f"what {part} is the", (f"thing that moves {move}", found), "?"]
    return parts, str(attribute(found[0], part)), found


def _direction(script: Script, rng: np.random.Generator) -> Asked:
    move = words.MOVES[rng.integers(len(words.MOVES))]
    fitting = [actor for actor in script.actors if actor.move == move]
    if not fitting:
        return None
    target = _pick(fitting, rng)
    who = _name(script, target, rng)
    if who is None:
        return None
    return ["where does the", (who, [target.thing]), "go ?"], move, [target.thing]


def _order(script: Script, rng: np.random.Generator) -> Asked:
    """Which of two came first; read from what both names stand for, not from a mixture."""
    pair = _pair(script, rng)
    part = ("colour", "shape")[rng.integers(2)]
    hidden = [each for each in ("colour", "shape") if each != part]
    names = [_name(script, actor, rng, hidden) for actor in pair]
    if None in names or abs(pair[0].appears - pair[1].appears) < APART:
        return None
    one, other = ((str(who), [actor.thing]) for who, actor in zip(names, pair, strict=True))
    first = min(pair, key=lambda actor: actor.appears)
    answer = str(attribute(first.thing, part))
    return ["which came first , the", one, "or the", other, "?"], answer, []


def _before(script: Script, rng: np.random.Generator) -> Asked:
    answer = bool(rng.integers(2))
    pair = sorted(_pair(script, rng), key=lambda actor: actor.appears, reverse=not answer)
    names = [_name(script, actor, rng) for actor in pair]
    if None in names or abs(pair[0].appears - pair[1].appears) < APART:
        return None
    one, other = ((str(who), [actor.thing]) for who, actor in zip(names, pair, strict=True))
    return ["did the", one, "appear before the", other, "?"], "yes" if answer else "no", []


def _when(script: Script, rng: np.random.Generator) -> Asked:
    """What was there from the first picture on did not appear; what stays does not leave."""
    verb = ("appear", "leave")[rng.integers(2)]
    answer = words.TIMES[rng.integers(len(words.TIMES))]

    def happens(actor: Actor) -> bool:
        moment = actor.appears if verb == "appear" else actor.leaves
        return 0 < moment < 1 and third(moment) == answer

    fitting = [actor for actor in script.actors if happens(actor)]
    if not fitting:
        return None
    target = _pick(fitting, rng)
    who = _name(script, target, rng)
    if who is None:
        return None
    return ["when does the", (who, [target.thing]), f"{verb} ?"], answer, [target.thing]


def _count(script: Script, rng: np.random.Generator) -> Asked:
    """How many share a colour, a shape or a way to go; the number is drawn first."""
    number = int(rng.integers(len(words.NUMERALS)))
    fitting = [
        (phrase, counted, verb)
        for form in _countable(script)
        if (phrases := [each for each in form if len(each[1]) == number])
        for phrase, counted, verb in [phrases[rng.integers(len(phrases))]]
    ]
    if not fitting:
        return None
    phrase, counted, verb = fitting[rng.integers(len(fitting))]
    return ["how many", (phrase, counted), f"{verb} ?"], words.NUMERALS[number], counted


def _countable(script: Script) -> list[list[tuple[str, list[Thing], str]]]:
    """What can be counted, by form: the phrase, the things that it means, and the verb."""

    def things(fits: Callable[[Actor], bool]) -> list[Thing]:
        return [actor.thing for actor in script.actors if fits(actor)]

    def having(part: str, word: str) -> list[Thing]:
        return things(lambda actor: attribute(actor.thing, part) == word)

    colours = [(f"{word} things", having("colour", word), "are there") for word in words.COLOURS]
    shapes = [(words.plural(word), having("shape", word), "are there") for word in words.SHAPES]
    ways = [
        (f"things move {move}", [actor.thing for actor in script.actors if actor.move == move], "")
        for move in words.MOVES[:-1]
    ]
    moving = [("things move", things(lambda actor: actor.move != "nowhere"), "")]
    return [colours, shapes, ways, moving, [("things", things(lambda _: True), "are there")]]


def _name(
    script: Script, target: Actor, rng: np.random.Generator, hidden: Sequence[str] = ()
) -> str | None:
    """A name by colour or shape, or both, that fits no other object of the clip."""
    return name(script.cast.things, target.thing, rng, hidden=[*hidden, *_NAMELESS])


def _pick(actors: Sequence[Actor], rng: np.random.Generator) -> Actor:
    return actors[int(rng.integers(len(actors)))]


def _pair(script: Script, rng: np.random.Generator) -> tuple[Actor, Actor]:
    first, second = rng.choice(len(script.actors), 2, replace=False)
    return script.actors[int(first)], script.actors[int(second)]


_ASKERS: dict[str, Callable[[Script, np.random.Generator], Asked]] = {
    "moved": _moved,
    "direction": _direction,
    "order": _order,
    "before": _before,
    "when": _when,
    "count": _count,
    "colour": _attribute("colour"),
    "shape": _attribute("shape"),
}
CLIP_KINDS = (*_ASKERS, "existence")


# ---------------------------------------------------------------- descriptions, for training only


def describe_actor(script: Script, rng: np.random.Generator) -> Question | None:
    """As in "red star left start middle": how one object looks, goes, appears and leaves.

    What was there before counts as appearing at the start, what stays as leaving at the end.
    """
    target = _pick(script.actors, rng)
    who = _name(script, target, rng)
    if who is None:
        return None
    thing, cast = target.thing, script.cast
    answer = [thing.colour, thing.shape, target.move, third(target.appears), third(target.leaves)]
    parts: list[str | Name] = ["describe the", (who, [thing]), "."]
    return question("describe", cast, parts, " ".join(answer), (owners(cast, [thing]),))


def list_actors(script: Script, rng: np.random.Generator) -> Question | None:
    """Everything, or what moves, in the order of appearance; from left to right in the first."""
    moving = bool(rng.integers(2))
    found = [actor for actor in script.actors if not moving or actor.move != "nowhere"]
    if not found:
        return None
    found.sort(key=lambda actor: (actor.appears, actor.thing.x))
    things = [actor.thing for actor in found]
    answer = " , ".join(f"{thing.colour} {thing.shape}" for thing in things)
    about = tuple(owners(script.cast, [thing]) for thing in things for _ in range(3))[:-1]
    which = ("things that move" if moving else "things", things)
    return question("list", script.cast, ["list the", which, "from start ."], answer, about)
