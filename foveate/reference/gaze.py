"""Where the decoder looks while it learns: a hint from the renderer, which fades out.

Looking an attribute up by reference has two halves, finding the object's patches and reading them;
from answers alone neither is learned before the other. The renderer knows which patches a name
means and which an answer is read from, so two heads of two layers are told where to look in the
first part of the stage: first where a name ends, so that questions about two objects find both
already told apart, then where an answer is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from foveate.reference.labels import MOST_OWNERS
from foveate.reference.packing import Packed

_SHARE_OF_HEADS = 2  # half of them


class Gaze:
    """Attention of the watched heads from text tokens to patches in the last forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        layers = model.model.language_model.layers
        # Before the middle a name's words can be gathered, behind it what was found compared.
        middle = len(layers) // 2
        self.watched = {
            "named": layers[middle - 1].self_attn,
            "about": layers[middle].self_attn,
        }
        self._seen: dict[str, tuple[Tensor, tuple[Tensor, Tensor]]] = {}

    @contextmanager
    def watching(self) -> Iterator[Gaze]:
        """Note what the layers receive while the context lasts."""

        def note(which: str, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self._seen[which] = kwargs["hidden_states"], kwargs["position_embeddings"]

        handles = [
            attention.register_forward_pre_hook(partial(note, which), with_kwargs=True)
            for which, attention in self.watched.items()
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
            The loss, the mean of both layers', and the attention that falls there on average.
        """
        parts = {
            "named": self._looked("named", owners, packed.named, prefix),
            "about": self._looked("about", owners, packed.about, prefix),
        }
        total = sum((loss for loss, _ in parts.values()), start=owners.new_zeros(()).float())
        return total / len(parts), {which: share for which, (_, share) in parts.items()}

    def _looked(
        self, which: str, owners: Tensor, meant: Tensor, prefix: int
    ) -> tuple[Tensor, float]:
        """The loss and the share of one layer; `meant` is bool[b, t, owners]."""
        hidden, rotations = self._seen[which]
        query, key = _queries_and_keys(self.watched[which], hidden, rotations)
        watched = query.shape[1] // _SHARE_OF_HEADS
        patches = key[:, :watched, prefix - owners.shape[1] : prefix]
        scores = query[:, :watched, prefix:] @ patches.mT * self.watched[which].scaling
        # float[b, heads, t, owners]: the attention that each owner gets
        one_hot = F.one_hot(owners, MOST_OWNERS).to(scores.dtype)
        given = scores.softmax(-1) @ one_hot[:, None]
        shown = meant & one_hot.any(1)[:, None]
        found = given.transpose(1, 2)[shown[:, :, None].expand(-1, -1, watched, -1).any(-1)]
        wanted = shown[shown.any(-1)].repeat_interleave(watched, 0)
        # Where several are meant each should get its share, so their logarithms are averaged.
        logs = (found.clamp(min=1e-6).log() * wanted).sum(-1) / wanted.sum(-1)
        return -logs.mean(), float((found.detach() * wanted).sum(-1).mean())


def _queries_and_keys(
    attention: nn.Module, hidden: Tensor, rotations: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Rotated, keys repeated for every query head: float[b, heads, tokens, d] each."""
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(hidden).view(shape).transpose(1, 2)
    key = attention.k_proj(hidden).view(shape).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotations)
    return query, key.repeat_interleave(attention.num_key_value_groups, 1)
