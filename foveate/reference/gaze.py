"""Where the decoder looks while it learns: a hint from the renderer, which fades out.

Looking an attribute up by reference has two halves, finding the object's patches and reading them;
from answers alone neither is learned before the other. The renderer knows which patches an answer
is read from, so two heads of one layer are told where to look in the first part of the stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from foveate.reference.labels import MOST_OWNERS

_SHARE_OF_HEADS = 2  # half of them


class Gaze:
    """Attention of the watched heads from every text token to every patch of the last forward."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        layers = model.model.language_model.layers
        # Before the middle a question's words can be gathered, behind it what was found compared.
        self.attention = layers[len(layers) // 2].self_attn
        self._seen: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    @contextmanager
    def watching(self) -> Iterator[Gaze]:
        """Note what the layer receives while the context lasts."""

        def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self._seen = kwargs["hidden_states"], kwargs["position_embeddings"]

        handle = self.attention.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield self
        finally:
            handle.remove()

    def loss(self, owners: Tensor, about: Tensor, prefix: int) -> tuple[Tensor, float]:
        """Mean of -log of the attention that falls on what an answer is read from.

        Args:
            owners: int64[b, n] the owner of each patch, 0 for background.
            about: bool[b, t, 13] the owners that each text token's next word is read from.
            prefix: tokens before the text, the patches being the last n of them.

        Returns:
            The loss, and the attention that falls there on average.
        """
        assert self._seen is not None
        hidden, (cos, sin) = self._seen
        attention, shape = self.attention, (*hidden.shape[:2], -1, self.attention.head_dim)
        query = attention.q_proj(hidden).view(shape).transpose(1, 2)
        key = attention.k_proj(hidden).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        watched = query.shape[1] // _SHARE_OF_HEADS
        key = key.repeat_interleave(attention.num_key_value_groups, 1)[:, :watched]
        patches = key[:, :, prefix - owners.shape[1] : prefix]
        scores = query[:, :watched, prefix:] @ patches.mT * attention.scaling
        # float[b, heads, t, 13]: the attention that each owner gets
        one_hot = F.one_hot(owners, MOST_OWNERS).to(scores.dtype)
        given = scores.softmax(-1) @ one_hot[:, None]
        shown = about & one_hot.any(1)[:, None]
        found = given.transpose(1, 2)[shown[:, :, None].expand(-1, -1, watched, -1).any(-1)]
        wanted = shown[shown.any(-1)].repeat_interleave(watched, 0)
        # Where several are meant each should get its share, so their logarithms are averaged.
        logs = (found.clamp(min=1e-6).log() * wanted).sum(-1) / wanted.sum(-1)
        return -logs.mean(), float((found.detach() * wanted).sum(-1).mean())
