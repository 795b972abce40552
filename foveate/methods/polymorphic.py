"""Polymorphic: merge what the tower overlooks, then prune in the decoder what the words ignore.

What it does:
    Before the decoder, tokens of high attention in the vision tower stay and the rest is merged
    into clusters: K times the budget is left. At three depths of the decoder the tokens that
    match the question's telling words least are pruned and merged the same way, so that the
    average over all layers is the budget.

The mapping:
    Stage 1, on the encoder's output X:
    (1) of m = K budget rows, m / 6.4 are clusters and the others the tokens of highest attention
        (5.4 : 1);
    (2) the rest is clustered by density peaks (Eq. 1-6) and each cluster averaged (Eq. 7).
    Stage 2, before layers 3, 7, 16 of 32 or 40 (3, 7, 13 of 28), V and T visual and text
    embeddings:
    (3) M = softmax(V T^T / sqrt(d)) over the text, s_j its mean over V; raters: s_j above the
        mean (Eq. 9, 10);
    (4) a_i = mean over raters of M_ij (Eq. 11); the tokens of highest a_i stay (Eq. 12);
    (5) the others are clustered as in (2). Kept and merged ones together are the count, 5.4 : 1.

Needs:
    The encoder's output, attention in the vision tower (CLS row; mean received without CLS), and
    the question. No attention map of the decoder.

Differs from the paper's code:
    No code is public. What the paper leaves open is a field: V and T are input embeddings
    (`raters="embeddings"`) or the states entering the layer; the text is the user's question
    without template tokens; merged tokens count (`merged_counts`), or come on top of the budget;
    what each step leaves (`fall`) is the same share of what it found, or fewer by the same count,
    or all is dropped at the first one; a `schedule` states it outright; a token merged between
    layers keeps its centre's embedding as V; a density has `neighbours` nearest tokens, the token
    itself among them. Eq. 5's condition is read as rho_j > rho_i. The paper's K = 1 is said to be
    text-guided pruning only, though K = 1 by definition leaves stage 2 nothing to do: here K = 1 is
    stage 1 alone (`stages="merge"`), and stage 2 alone is `stages="prune"`.

When it fails:
    M is made of raw embeddings, which hardly meet across modalities. The raters are the words that
    most of the picture is like, which need not be those that are asked about. Attention in the
    tower decides what is merged, so small things beside the subject blur.

Reference:
    OpenReview Px0UrEUcFQ (ICLR 2026 submission 17299), Eq. 1-12, section 4.1.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate import ops
from foveate.compressor import (
    Compressor,
    DecoderMethod,
    Preset,
    Reads,
    Stage,
    Step,
    VisualTokens,
    most_entering,
    scaled_layers,
    solve_schedule,
)
from foveate.errors import BudgetError, StageNotAvailable
from foveate.mapping import Mapping

_PAPER = "OpenReview Px0UrEUcFQ"
_RETAINED = 5.4  # to one merged token
_LAYERS, _OF = (3, 7, 16), 32
_DEPTHS = {28: (3, 7, 13), 40: _LAYERS}  # Qwen2-VL-7B, LLaVA-1.5-13B; others at the depth of 32


def consolidate(
    x: Float[Tensor, "n d"], score: Float[Tensor, " n"], m: int, neighbours: int, merged: int
) -> Mapping:
    """Keep the m - merged highest scores and average the others in `merged` clusters (Eq. 1-8)."""
    n = len(x)
    if m >= n:
        return Mapping.identity(n, x.device)
    order = ops.top(score, n)
    kept, rest = order[: m - merged], order[m - merged :].sort().values
    if not merged:
        return Mapping.select(kept.sort().values, n)
    centres, member = ops.density_peaks(x[rest], merged, neighbours)
    owner: Int[Tensor, " n"] = torch.full((n,), -1, device=x.device)
    owner[kept] = torch.arange(len(kept), device=x.device)
    owner[rest] = len(kept) + member
    return Mapping.assign(owner, torch.cat([kept, rest[centres]]))


def merged_of(m: int) -> int:
    """How many of m tokens are merged ones."""
    return min(m, max(1, round(m / (_RETAINED + 1))))


@dataclasses.dataclass(frozen=True)
class Merge(Compressor):
    """Stage 1: attended tokens stay, the rest is merged.

    Attributes:
        neighbours: nearest tokens that make a density.
    """

    neighbours: int = 5
    stage: ClassVar[Stage] = Stage.VISION
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.ENCODER, Reads.ATTENTION})

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        if tokens.attention is None or tokens.encoder is None:
            raise StageNotAvailable("Polymorphic reads the vision tower's attention and output.")
        m = tokens.n if keep is None else keep
        return consolidate(
            tokens.encoder, tokens.attention, m, self.neighbours, merged_of(m)
        )  # (1) (2)


@dataclasses.dataclass(frozen=True)
class Prune(DecoderMethod):
    """Stage 2: tokens that match the question's telling words stay, the rest is merged.

    Attributes:
        at: layers before which tokens are dropped; None: the paper's, by depth.
        raters: what V and T are, ``"embeddings"`` or ``"states"``.
        merged_counts: whether merged tokens are part of a step's count, or come on top of it.
        neighbours: nearest tokens that make a density.
        fall: what leaves at each step, the same ``"share"`` of what is left, the same ``"count"``,
            or everything at ``"once"``.
    """

    at: tuple[int, ...] | None = None
    raters: str = "embeddings"
    merged_counts: bool = True
    neighbours: int = 5
    fall: str = "share"
    reads: ClassVar[frozenset[Reads]] = frozenset(
        {Reads.START, Reads.TEXT, Reads.TEXT_STATES, Reads.QUESTION}
    )

    def layers_in(self, total: int) -> tuple[int, ...]:
        """The three layers, or those asked for."""
        if self.at is not None:
            return self.at
        return _DEPTHS.get(total, scaled_layers(_LAYERS, _OF, total))

    def steps(self, n: int, keep: int | None, total: int) -> tuple[Step, ...]:
        """The schedule, or the one that meets the average `keep`; merged tokens may add to it."""
        found = super().steps(n, keep, total)
        if self.merged_counts:
            return found
        counts = [
            None if step.keep is None else min(n, step.keep + max(1, round(step.keep / _RETAINED)))
            for step in found
        ]
        return tuple(Step(step.layer, count) for step, count in zip(found, counts, strict=True))

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        """Counts that fall as `fall` says."""
        layers = self.layers_in(total)
        drops = range(1, len(layers) + 1)

        def shape(size: float) -> list[float]:
            if self.fall == "share":
                return [n * size**i for i in drops]
            return [n * (1 - (1 - size) * (i if self.fall == "count" else 1)) for i in drops]

        return solve_schedule(layers, n, keep, total, shape)

    def rated(self, tokens: VisualTokens) -> Float[Tensor, " n"]:
        """a: how well each token matches the raters (Eq. 9-11)."""
        assert tokens.asked is not None and tokens.so_far is not None
        if self.raters == "embeddings":
            assert tokens.start is not None and tokens.text is not None
            visual, text = tokens.start[tokens.so_far.anchors], tokens.text
        else:
            assert tokens.text_states is not None
            visual, text = tokens.features, tokens.text_states
        question = text[tokens.asked.to(text.device)]
        chosen, match = ops.raters(visual, question, question.shape[1] ** -0.5)  # (3)
        return match[:, chosen].mean(1)  # (4)

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        m = tokens.n if keep is None else keep
        score = self.rated(tokens)
        return consolidate(tokens.features, score, m, self.neighbours, merged_of(m))  # (5)


@dataclasses.dataclass(frozen=True)
class Polymorphic(Compressor):
    """Merge what the tower overlooks, then prune in the decoder what the words ignore.

    Attributes:
        ratio: K; stage 1 leaves K times the budget.
        stages: ``"both"``, or ``"merge"`` or ``"prune"`` for one alone.
        at, raters, merged_counts, neighbours, fall, schedule: as in `Prune`. A schedule is of the
            tokens that stage 1 leaves.
    """

    ratio: float = 2.0
    stages: str = "both"
    at: tuple[int, ...] | None = None
    raters: str = "embeddings"
    merged_counts: bool = True
    neighbours: int = 5
    fall: str = "share"
    schedule: tuple[int | float, ...] | None = None
    stage: ClassVar[Stage] = Stage.VISION
    reads: ClassVar[frozenset[Reads]] = Merge.reads | Prune.reads
    presets: ClassVar[dict[str, Preset]] = {
        **{
            f"authors-{budget}": Preset(f"{_PAPER}: LLaVA-1.5, Qwen2-VL; K=2", keep=budget)
            for budget in (192, 128, 64)
        },
        **{
            f"authors-next-{budget}": Preset(f"{_PAPER}: LLaVA-NeXT; K=2", keep=budget)
            for budget in (640, 320, 160)
        },
    }

    def __post_init__(self) -> None:
        if self.stages not in ("both", "merge", "prune") or self.ratio < 1:
            raise BudgetError(
                f"Polymorphic needs stages 'both', 'merge' or 'prune' and ratio >= 1; got "
                f"stages={self.stages!r}, ratio={self.ratio}."
            )
        if self.raters not in ("embeddings", "states"):
            raise BudgetError(
                f"Polymorphic's raters are 'embeddings' or 'states'; got {self.raters!r}."
            )
        if self.fall not in ("share", "count", "once"):
            raise BudgetError(
                f"Polymorphic's tokens fall by 'share', by 'count' or at 'once'; got {self.fall!r}."
            )
        if self.neighbours < 1:
            raise BudgetError(f"Polymorphic needs neighbours >= 1; got {self.neighbours}.")

    @property
    def parts(self) -> tuple[Compressor, ...]:
        """Stage 1 and stage 2, or one of them."""
        merge = Merge(self.neighbours)
        open_to_choice = self.raters, self.merged_counts, self.neighbours, self.fall
        prune = Prune(self.at, *open_to_choice, schedule=self.schedule)
        return {"both": (merge, prune), "merge": (merge,), "prune": (prune,)}[self.stages]

    @property
    def states_budget(self) -> bool:
        """Whether stage 2 is alone and has a schedule."""
        return self.stages == "prune" and self.schedule is not None

    def budgets(self, n: int, keep: int | None, total: int) -> tuple[int | None, ...]:
        """K times the budget for stage 1, the budget itself for the average after stage 2."""
        if keep is None or self.stages != "both":
            return (keep,) * len(self.parts)
        most = most_entering(self.parts[1], n, keep, total)
        return max(keep, min(round(self.ratio * keep), most)), keep

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """Stage 1, where it is asked by itself."""
        return self.parts[0](tokens, keep)
