"""Attention of one decoder layer, on demand: the rows that are asked for, never a whole map.

A method that acts inside the language model asks for a handful of rows (the last token's, the
question's) or for sums over many. What is kept is the layer's own queries and keys, after norm and
RoPE; probabilities are made from them a chunk of rows at a time, in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from foveate.errors import StageNotAvailable

# Entries of a probability block held in memory at a time: heads x rows x keys.
BLOCK = 1 << 24


@dataclasses.dataclass(frozen=True)
class Logits:
    """What a layer's kernel makes of the products of queries and keys before the softmax.

    Attributes:
        scale: factor on them.
        window: keys that a query sees, its own included, where the mask does not say it; None for
            all of them.
        cap: what they are bent below, cap tanh(logits / cap), as Gemma 2 does it; None if they are
            left alone.
    """

    scale: float
    window: int | None = None
    cap: float | None = None

    def of(self, q: Float[Tensor, "h r d"], k: Float[Tensor, "h s d"]) -> Float[Tensor, "h r s"]:
        """The logits, hidden ones among them."""
        logits = (q @ k.mT) * self.scale
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()

    def slope(
        self, q: Float[Tensor, "h r d"], k: Float[Tensor, "h s d"]
    ) -> Float[Tensor, "h r s"] | float:
        """How fast logits move with the products."""
        if self.cap is None:
            return self.scale
        return self.scale * (1 - (self.of(q, k) / self.cap).square())


@dataclasses.dataclass(frozen=True, eq=False)
class LayerAttention:
    """Queries and keys of one decoder layer for one prompt, and where its parts lie among them.

    s tokens ran in this pass; p keys were visible to them, cached ones included.

    Attributes:
        q: (h, s, d) queries.
        k: (g, p, d) keys; each serves h / g neighbouring query heads.
        logits: how the layer's kernel makes them.
        offset: the key of query 0; query i sees keys 0..i + offset where there is no mask.
        mask: (1 or h, s, p) boolean (True: visible) or additive; or (p,), the keys that hold a
            token; or None, all keys up to one's own.
        visual: (n,) which of the s tokens are the picture's, in slot order.
        text: (t,) the text after the picture, template tokens included.
        question: (l,) the user's text in the turn being answered.
        everyone: (r,) all tokens of the prompt that ran, padding apart.
        last: the prompt's last token.
        ones: makes (s, d) what this layer's position encoding makes of a vector of ones at each
            token's place; None where there is no model.
    """

    q: Float[Tensor, "h s d"]
    k: Float[Tensor, "g p d"]
    logits: Logits
    offset: int
    mask: Tensor | None
    visual: Int[Tensor, " n"]
    text: Int[Tensor, " t"]
    question: Int[Tensor, " l"]
    everyone: Int[Tensor, " r"]
    last: int
    ones: Callable[[], Float[Tensor, "s d"]] | None = None

    @property
    def keys(self) -> Float[Tensor, "n c"]:
        """(n, g d) the picture's keys, all heads side by side."""
        return self._keys_of(self.visual)

    @property
    def text_keys(self) -> Float[Tensor, "t c"]:
        """(t, g d) keys of the text after the picture."""
        return self._keys_of(self.text)

    def _keys_of(self, which: Int[Tensor, " r"]) -> Float[Tensor, "r c"]:
        return self.k[:, which.to(self.k.device) + self.offset].transpose(0, 1).flatten(1)

    def rows(self, which: Int[Tensor, " r"]) -> Float[Tensor, "h r n"]:
        """(h, r, n) probabilities with which tokens `which` look at the picture's tokens.

        Normalised over all keys that they see. Meant for a few rows: see `blocks` for many.
        """
        which = which.to(self.q.device)
        heads = self.q.shape[0] // self.k.shape[0]
        keys = self.k.float().repeat_interleave(heads, 0)
        logits = self.logits.of(self.q[:, which].float(), keys)
        logits = logits.masked_fill(~self._visible(which), -torch.inf)
        columns = (self.visual + self.offset).to(logits.device)
        return logits.softmax(-1)[:, :, columns]

    def blocks(self, which: Int[Tensor, " r"]) -> Iterator[Float[Tensor, "h c n"]]:
        """`rows` of `which`, in blocks of bounded size, in order."""
        each = max(1, BLOCK // (self.q.shape[0] * self.k.shape[1]))
        for part in which.split(each):
            yield self.rows(part)

    def received(self, which: Int[Tensor, " r"], heads: str = "mean") -> Float[Tensor, " n"]:
        """(n,) attention that each of the picture's tokens gets from `which`, summed over them.

        Args:
            which: the looking tokens.
            heads: ``"mean"`` or ``"max"`` over heads, before summing.
        """
        total = torch.zeros(len(self.visual), device=self.q.device)
        for block in self.blocks(which):
            total += (block.amax(0) if heads == "max" else block.mean(0)).sum(0)
        return total

    def nearness(self, which: Int[Tensor, " r"]) -> Float[Tensor, "r n"]:
        """(r, n) how much the position encoding alone draws tokens `which` to the picture's.

        The cosine of a vector of ones at both places: 1 at the same place, less the further away.

        Raises:
            StageNotAvailable: the model does not show its position encoding.
        """
        if self.ones is None:
            raise StageNotAvailable(
                "This attention comes without its position encoding.\nAttach the method to a model."
            )
        turned = F.normalize(self.ones().float(), dim=-1)
        return turned[which.to(turned.device)] @ turned[self.visual.to(turned.device)].mT

    def _visible(self, which: Int[Tensor, " r"]) -> Bool[Tensor, "..."]:
        """What tokens `which` may look at: broadcastable to (h, r, p)."""
        return visible(self.mask, which, self.k.shape[1], self.offset, self.logits.window)


def visible(
    mask: Tensor | None,
    which: Int[Tensor, " r"],
    keys: int,
    offset: int = 0,
    window: int | None = None,
) -> Bool[Tensor, "..."]:
    """What queries `which` of one sequence may look at: broadcastable to (h, r, keys).

    Args:
        mask: as `LayerAttention.mask`.
        which: the queries.
        keys: how many there are.
        offset: the key of query 0.
        window: as `Logits.window`.
    """
    if mask is not None and mask.ndim == 3:
        return visible_keys(mask[:, which])
    own, key = (which + offset)[:, None], torch.arange(keys, device=which.device)
    seen = key <= own if window is None else (key <= own) & (key > own - window)
    return seen if mask is None else seen & mask.bool()


def visible_keys(mask: Tensor) -> Bool[Tensor, "..."]:
    """Boolean form of a boolean or additive mask: True where a key may be seen."""
    if mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min / 2
