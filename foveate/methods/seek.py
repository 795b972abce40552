"""Seek: a small learned net looks for what the question asks about, before the language model.

What it does:
    Reads the question's words and the projected tokens, and predicts from both how relevant each
    token will be to the answer. Words attend to one another; then they and a few learned seekers
    look at the tokens, twice, so that what one word finds can be looked for by another. Then it
    picks tokens far apart, as `cover` does, but relevant ones sooner, and merges the rest into
    them. All layers run on those alone.

The mapping:
    x_j (d) the tokens and w_i (d) the l words' embeddings, each divided by its root mean square;
    c_j where token j lies in the picture.
    (1) h_j = gelu(A x_j + B c_j), y_j = C h_j
    (2) z = [k learned seekers; D w_i + p_i], and in each round
        z <- z + attention among z; z <- z + mlp(z); a = Q z y^T / sqrt(width);
        z <- z + V softmax(a) y
    (3) R_j = logsumexp over the seekers of (a_sj + u z_s) + v h_j, with a of the last round
    (4) r_j = (exp(R_j - max R) + 0.001)^focus; first pick: argmax_j of r_j |x_j - mean|; next pick:
    argmax_j of r_j min over picks i of |x_j - x_i|, tokens as they are.
    (5) row i of P = mean of the tokens whose nearest pick is i (`merge`), else one-hot. With
    spread=False, one-hot rows of the m largest R_j.
    The matrices of (1) to (3) were trained to give what `foveate.relevance.explain` gives with the
    full model's answer. A token passes (1) once; only (4) compares tokens with each other.

Needs:
    Weights trained for the model (`foveate train seek`). The question, and
    where the slots lie in the picture.

Differs from the paper's code:
    There is no paper. `relevance`, which it was made to replace, predicts the same from how much
    the first decoder layer looks at each token. Where that layer does not look at what is asked
    about, there is nothing to predict from: see docs/relevance.md.

When it fails:
    Questions about a whole clip: what relevant tokens take is missing elsewhere, and `cover` is
    better on clips. Words that it was not trained with, and pictures unlike those. What an earlier
    turn was about ("and what colour is it?") is not known to it. A net for images says nothing of
    videos.

Reference:
    None. The labels and the loss are those of arXiv 2506.01097, section 3.3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping as Table
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import ops
from foveate.compressor import Reads, Stage, VisualTokens
from foveate.errors import BudgetError
from foveate.mapping import Mapping
from foveate.predicting import RelevancePredictor, exact

_WAVES = 6  # of a place: pi, 2 pi, 4 pi ... across the picture
_HEADS = 4
_USED = ("focus", "spread", "merge")  # fields that no weight depends on
_FLOOR = 1e-3  # of relevance, as a share of the largest


class Round(nn.Module):
    """One round of (2): words and seekers hear one another, then look at the tokens.

    Args:
        width: of words, seekers and what is looked at.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hear = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.ask = nn.Linear(width, width)
        self.learn = nn.Linear(width, width)

    def forward(
        self,
        z: Float[Tensor, "b q w"],
        y: Float[Tensor, "b n w"],
        said: Bool[Tensor, "b q"],
        real: Bool[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b q w"], Float[Tensor, "b q n"]]:
        """Give z after the round, and a; what a says of no token at all is any number."""
        x = self.norm(z)
        z = z + self.hear(x, x, x, key_padding_mask=~said, need_weights=False)[0]
        z = z + self.think(z)
        with exact(z):
            asked = self.ask(z.to(self.ask.weight.dtype))
            a = asked @ y.to(asked.dtype).mT / math.sqrt(y.shape[-1])
        shares = a.masked_fill(~real[:, None], -torch.inf).softmax(-1)
        return z + self.learn(shares @ y), a


class Seekers(nn.Module):
    """The matrices of (1) to (3).

    Args:
        width: d, of tokens and words.
        inner: of h.
        small: of y and z.
        seekers: k.
        rounds: how often words and seekers look.
    """

    def __init__(self, width: int, inner: int, small: int, seekers: int, rounds: int) -> None:
        super().__init__()
        self.token = nn.Linear(width, inner)
        self.place = nn.Linear(6 * _WAVES, inner, bias=False)
        self.shown = nn.Linear(inner, small)
        self.bias = nn.Linear(inner, 1)
        self.word = nn.Linear(width, small)
        self.seekers = nn.Parameter(0.5 * torch.randn(seekers, small))
        self.rounds = nn.ModuleList(Round(small) for _ in range(rounds))
        self.gain = nn.Linear(small, 1)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        places: Float[Tensor, "b n 3"],
        words: Float[Tensor, "b l d"],
        real: Bool[Tensor, "b n"],
        said: Bool[Tensor, "b l"],
    ) -> Float[Tensor, "b n"]:
        """R; -inf where there is no token."""
        h = F.gelu(self.token(_unit(tokens)) + self.place(_waves(places)))  # (1)
        y = self.shown(h)
        k, small = self.seekers.shape
        order = ops.sine_positions(words.shape[1], small, device=words.device)  # p
        z = torch.cat([self.seekers.expand(len(words), -1, -1), self.word(_unit(words)) + order], 1)
        said = torch.cat([said.new_ones(len(said), k), said], 1)
        a = y.new_zeros(len(y), len(z[0]), y.shape[1])
        for each in self.rounds:
            z, a = each(z, y, said, real)  # (2)
        with exact(z):
            gain = self.gain(z[:, :k].to(a.dtype))
            found: Tensor = (a[:, :k] + gain).logsumexp(1) + self.bias(h.to(a.dtype))[..., 0]  # (3)
        # Here and not in a: the gradient of a logsumexp over nothing but -inf is no number.
        return found.masked_fill(~real, -torch.inf)


def _unit(x: Float[Tensor, "b r d"]) -> Float[Tensor, "b r d"]:
    """Rows divided by their root mean square."""
    return x * x.square().mean(-1, keepdim=True).clamp(min=1e-9).rsqrt()


def _waves(places: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n c"]:
    """Sines and cosines of places, c = 6 times the number of wave lengths."""
    lengths = math.pi * 2.0 ** torch.arange(_WAVES, device=places.device)
    angle = (places[..., None] * lengths).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


@dataclasses.dataclass(frozen=True)
class Seek(RelevancePredictor):
    """Keep the tokens that a net finds by the question's words, before decoder layer 0.

    Attributes:
        inner: width of what a token becomes.
        small: width in which words look at tokens; a multiple of four.
        seekers: how many things may be looked for at a time.
        rounds: how often words look before it counts.
        focus: how much relevance counts against distance; 0 is `cover`.
        spread: whether distance counts at all.
        merge: whether tokens that were not picked are merged, or dropped.
    """

    inner: int = 64
    small: int = 32
    seekers: int = 4
    rounds: int = 2
    focus: float = 0.3
    spread: bool = True
    merge: bool = True
    stage: ClassVar[Stage] = Stage.INPUT
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.QUESTION})
    of_picture: ClassVar[frozenset[str]] = frozenset({"tokens", "places"})

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = min(self.inner, self.small, self.seekers, self.rounds) > 0
        if not sizes or self.small % _HEADS or not self.focus >= 0:
            raise BudgetError(
                f"Seek needs inner, seekers and rounds of 1 at least, small a multiple of {_HEADS} "
                f"and focus >= 0;\ngot {self.inner}, {self.seekers}, {self.rounds}, {self.small}, "
                f"{self.focus}."
            )

    def net_of_kind(self, width: int) -> nn.Module:
        """`Seekers`."""
        return Seekers(width, self.inner, self.small, self.seekers, self.rounds)

    def observe(self, tokens: VisualTokens) -> dict[str, Tensor]:
        """Tokens, their places and the question's words."""
        assert tokens.question is not None
        places = torch.cat([ops.fractions_of(grid) for grid in tokens.rasters])
        return {
            "tokens": tokens.features,
            "places": places.to(tokens.features.device),
            "words": tokens.question,
        }

    def prepared(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, at least in float32."""
        return {name: x if x.dtype == torch.float64 else x.float() for name, x in seen.items()}

    def logits(
        self, net: nn.Module, seen: Table[str, Tensor], there: Table[str, Bool[Tensor, "b _"]]
    ) -> Float[Tensor, "b n"]:
        """(1) to (3)."""
        wanted = next(net.parameters()).dtype
        given = [seen[name].to(wanted) for name in ("tokens", "places", "words")]
        found: Tensor = net(*given, there["tokens"], there["words"])
        return found

    def fitted(self, model: nn.Module) -> Seek:
        """With weights for this model; how they are used stays as it was asked for.

        Raises:
            SavedFileError: as of every learned method.
        """
        used: dict[str, Any] = {name: getattr(self, name) for name in _USED}
        fields = dataclasses.fields(self)
        defaults: dict[str, Any] = {f.name: f.default for f in fields if f.name in used}
        asked = self if self.net is not None else dataclasses.replace(self, **defaults)
        found = super(Seek, asked).fitted(model)
        assert isinstance(found, Seek)
        return dataclasses.replace(found, **used)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P of what is both relevant and far apart."""
        if not self.spread:
            return super().__call__(tokens, keep)
        m = tokens.n if keep is None else keep
        score = self.score(tokens)
        weight = ((score - score.max()).exp() + _FLOOR) ** self.focus  # r of (4)
        x = tokens.features
        anchors, owner = ops.farthest_first(x if x.dtype == torch.float64 else x.float(), m, weight)
        if not self.merge:
            return Mapping.select(anchors.sort().values, tokens.n)
        return Mapping.assign(owner, anchors).in_raster_order()  # (5)
