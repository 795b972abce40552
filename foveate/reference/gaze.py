"""Where the decoder looks while it learns: a hint from the renderer, which fades out.

Looking an attribute up by reference has two halves, finding the object's patches and reading them;
from answers alone neither is learned before the other. The renderer knows which patches a name
means and which an answer is read from, so half of the heads of one layer are told where to look in
the first part of the stage: where a name ends, so that what is said about two objects later finds
them told apart, and where an answer is given. Where a name ends, the state must also tell the place
of what it means: two places can only be compared once both are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from foveate.reference.labels import MOST_OWNERS
from foveate.reference.packing import Packed

_SHARE_OF_HEADS = 2  # half of them
# Misses of up to this much (the picture is 2 wide) count by their square.
_NEAR = 0.1


def place_head(width: int, numbers: int = 2) -> nn.Linear:
    """Reads places off a state, thrown away after training; starts at the picture's middle."""
    # Without drawing random numbers: nothing else shall depend on whether there is a head.
    head = nn.utils.skip_init(nn.Linear, width, numbers)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class Gaze:
    """Attention of the watched heads from text tokens to patches in the last forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        layers = model.model.language_model.layers
        # Before the middle a name's words can be gathered, behind it what was found compared.
        self.layer = layers[len(layers) // 2]
        self.attention = self.layer.self_attn
        self._seen: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        self._left: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[Gaze]:
        """Note what the layer receives and leaves while the context lasts."""

        def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self._seen = kwargs["hidden_states"], kwargs["position_embeddings"]

        def leave(_: Any, args: Any, output: Any) -> None:
            self._left = output[0] if isinstance(output, tuple) else output

        handles = [
            self.attention.register_forward_pre_hook(note, with_kwargs=True),
            self.layer.register_forward_hook(leave),
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, owners: Tensor, packed: Packed, prefix: int) -> tuple[Tensor, dict[str, float]]:
        """Mean of -log of the attention that falls on what a word means or is read from.

        Args:
            owners: int64[b, n] the owner of each patch, 0 for background.
            packed: the dialogues, with the owners that each text token should look at.
            prefix: tokens before the text, the patches being the last n of them.

        Returns:
            The loss, the mean over names and answers, and the attention that falls there.
        """
        assert self._seen is not None
        hidden, rotations = self._seen
        query, key = _queries_and_keys(self.attention, hidden, rotations)
        watched = query.shape[1] // _SHARE_OF_HEADS
        patches = key[:, :watched, prefix - owners.shape[1] : prefix]
        scores = query[:, :watched, prefix:] @ patches.mT * self.attention.scaling
        # float[b, heads, t, owners]: the attention that each owner gets
        one_hot = F.one_hot(owners, MOST_OWNERS).to(scores.dtype)
        given = scores.softmax(-1) @ one_hot[:, None]
        there = one_hot.any(1)[:, None]
        names, named = _missed(given, packed.named & there)
        answers, about = _missed(given, packed.about & there)
        return (names + answers) / 2, {"gaze at named": named, "gaze at asked": about}

    def place_loss(
        self, head: nn.Linear, places: Tensor, packed: Packed, prefix: int
    ) -> tuple[Tensor, dict[str, float]]:
        """How far the states where names end are from telling the place of what is named.

        Args:
            head: as `place_head` makes it.
            places: float[b, owners, numbers] of each owner, -1 to 1, as from the left and from the
                top; NaN where it has none.
            packed: the dialogues; names that mean one owner count.
            prefix: tokens before the text.

        Returns:
            The loss, and the mean distance on each axis in halves of the picture.
        """
        assert self._left is not None
        one = packed.named.sum(-1) == 1
        owner = packed.named.long().argmax(-1)
        wanted = places[one.nonzero()[:, 0], owner[one]]
        states = self._left[:, prefix:][one]
        known = wanted.isfinite()
        # The scale of a state says nothing about a place.
        told = head(F.layer_norm(states, states.shape[-1:]))[known]
        if not len(told):
            return told.sum(), {}
        loss = F.smooth_l1_loss(told, wanted[known], beta=_NEAR)
        return loss, {"place off": (told - wanted[known]).abs().mean().item()}


def _missed(given: Tensor, meant: Tensor) -> tuple[Tensor, float]:
    """Mean of -log of the attention on what is meant, and that attention.

    Args:
        given: float[b, heads, t, owners] the attention that each owner gets.
        meant: bool[b, t, owners].
    """
    found = given.transpose(1, 2)[meant.any(-1)]
    wanted = meant[meant.any(-1)][:, None]
    # Where several are meant each should get its share, so their logarithms are averaged.
    logs = (found.clamp(min=1e-6).log() * wanted).sum(-1) / wanted.sum(-1)
    return -logs.mean(), float((found.detach() * wanted).sum(-1).mean())


def _queries_and_keys(
    attention: LlamaAttention, hidden: Tensor, rotations: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Rotated, keys repeated for every query head: float[b, heads, tokens, d] each."""
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(hidden).view(shape).transpose(1, 2)
    key = attention.k_proj(hidden).view(shape).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotations)
    return query, key.repeat_interleave(attention.num_key_value_groups, 1)
