"""What the last answer of a conversation took: tokens, cache and time."""

from __future__ import annotations

import dataclasses
from typing import Any

from foveate.attach import Item
from foveate.attach.run import readable_bytes
from foveate.chat import Chat, Reply


@dataclasses.dataclass(frozen=True)
class Facts:
    """One answer in numbers.

    Attributes:
        visual: visual slots of the conversation's pictures; None if nothing was compressed.
        entering: visual tokens that entered decoder layer 0.
        average: visual tokens averaged over the decoder layers.
        layers: decoder layers.
        fresh: whether tokens were chosen for this answer; else they were in the cache.
        prompt: tokens of the whole conversation up to the answer, pictures uncompressed.
        reused: how many of them were in the cache.
        kv_bytes: bytes of keys and values after the answer.
        first_seconds, seconds: from the question to the first piece and to the end of the answer.
    """

    visual: int | None
    entering: int | None
    average: float | None
    layers: int
    fresh: bool
    prompt: int
    reused: int
    kv_bytes: int
    first_seconds: float
    seconds: float

    def __str__(self) -> str:
        held = f"cache {self.held}"
        return "; ".join([self.tokens, f"{self.cached} reused", held, f"first token {self.first}"])

    @property
    def tokens(self) -> str:
        """What became of the visual tokens."""
        if self.visual is None:
            return "all visual tokens"
        return f"{self.visual} -> {self.entering} visual tokens{self.inside}"

    @property
    def inside(self) -> str:
        """The average over layers, where some are dropped between them."""
        if self.average == self.entering:
            return ""
        return f", {self.average:.4g} averaged over {self.layers} layers"

    @property
    def cached(self) -> str:
        """How much of the conversation was in the cache."""
        return f"{self.reused} of {self.prompt} tokens"

    @property
    def held(self) -> str:
        """The size of the cache."""
        return readable_bytes(self.kv_bytes)

    @property
    def first(self) -> str:
        """The time to the first token."""
        seconds = self.first_seconds
        return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        """The numbers by their names."""
        return dataclasses.asdict(self)


def last(chat: Chat) -> Facts:
    """The facts of a conversation's last answer."""
    reply: Reply = chat.history[-1][2]
    items, layers = pictures(chat), len(chat.adapter.decoder_layers)
    return Facts(
        visual=sum(item.n for item in items) if items else None,
        entering=sum(item.entering for item in items) if items else None,
        average=sum(item.average(layers) for item in items) if items else None,
        layers=layers,
        fresh=bool(reply.items),
        prompt=reply.prompt,
        reused=reply.reused,
        kv_bytes=reply.kv_bytes,
        first_seconds=reply.first_seconds,
        seconds=reply.seconds,
    )


def pictures(chat: Chat) -> tuple[Item, ...]:
    """The pictures that the cache holds, with their mappings, in the order they were shown."""
    found: tuple[Item, ...] = ()
    for *_, reply in reversed(chat.history):
        found = reply.items + found
        if not reply.reused:  # everything was run again: its items are all there are
            break
    return found
