"""What a later turn takes: going on from the compressed cache, or running everything again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from foveate.chat import Chat, Reply
from foveate.evaluation.comparison import Price
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import EACH, FIRST, Setting
from foveate.evaluation.timing import alternate

# Conversations that are timed: their lengths hardly differ, so more of them would say no more.
_CONVERSATIONS = 2

Begun = list[tuple[Chat, str]]  # a conversation, and the question that comes next


def price(
    model: Any,
    processor: Any,
    setting: Setting,
    data: Sequence[Dialogue],
    max_new_tokens: int,
    repeats: int,
) -> Price | None:
    """What the later turns of the first dialogues take both ways, one conversation at a time.

    A turn is timed up to its first token, pictures being encoded already where the method leaves
    the tower alone; what follows is the same both ways.

    Args:
        model, processor: as loaded.
        setting: what is attached.
        data: the dialogues.
        max_new_tokens: the longest answer of the turns before.
        repeats: timed pairs.

    Returns:
        None where no dialogue about images has a second turn.
    """
    able = [each for each in data if len(each.turns) > 1 and not each.is_video][:_CONVERSATIONS]
    if not able:
        return None

    def begun(way: str) -> Begun:
        return [
            _begun(model, processor, setting, way, dialogue, turn, max_new_tokens)
            for dialogue in able
            for turn in range(1, len(dialogue.turns))
        ]

    anew, cached = begun(EACH), begun(FIRST)
    whole, new = _tokens(anew), _tokens(cached)
    time = alternate(
        lambda: _tokens(anew), lambda: _tokens(cached), model.device.type, repeats, warm_up=1
    )
    turns = len(anew)
    time = dataclasses.replace(time, base_seconds=time.base_seconds / turns)
    return Price(whole / turns, new / turns, time, turns)


def _begun(
    model: Any,
    processor: Any,
    setting: Setting,
    way: str,
    dialogue: Dialogue,
    turn: int,
    max_new_tokens: int,
) -> tuple[Chat, str]:
    """A conversation up to a turn, and the question asked in it."""
    chat = setting.chat(model, processor, turns=way, max_new_tokens=max_new_tokens)
    for number in range(turn):
        chat.ask(dialogue.turns[number].question, () if number else dialogue.load())
    return chat, dialogue.turns[turn].question


def _tokens(begun: Begun) -> int:
    """Ask every next question for one token; returns how many tokens entered the LLM for them."""
    total = 0
    for chat, question in begun:
        total += _entered(chat.ask(question, max_new_tokens=1))
        chat.history.pop()  # the cache is cut to what the history says when it is asked again
    return total


def _entered(reply: Reply) -> int:
    dropped = sum(item.n - item.entering for item in reply.items)
    return reply.prompt - reply.reused - dropped
