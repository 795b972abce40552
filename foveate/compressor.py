"""What a compression method is, what it may look at, and how a budget becomes a count.

A method is a frozen dataclass - its fields are its whole configuration - with one call:
`method(tokens, keep) -> Mapping`. It declares the stage at which P acts and what it reads; the
rest of the library serves those declarations and never asks which method it holds.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import itertools
import math
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveate.attention import LayerAttention
from foveate.errors import BudgetError, StageNotAvailable, UnknownName
from foveate.mapping import Mapping


class Stage(enum.StrEnum):
    """Where P acts."""

    IMAGE = "image"  # pixels, before the vision tower: fewer patches in
    ENCODER = "encoder"  # between the blocks of the vision tower
    VISION = "vision"  # encoder output, before the projector
    INPUT = "input"  # projected tokens, before decoder layer 0
    DECODER = "decoder"  # hidden states entering decoder layer k


class Reads(enum.StrEnum):
    """What a method may ask for beside `VisualTokens.features`. Anything not asked for is None."""

    ENCODER = "encoder"  # encoder output per slot, also when P acts later
    EMBEDDINGS = "embeddings"  # projected tokens per slot, also when P acts before the projector
    ATTENTION = "attention"  # what each slot receives in the tower's selected layer
    KEYS = "keys"  # the selected layer's keys, mean over heads
    WIDE = "wide"  # the last block's q and k, heads unsplit: wide_attention, wide_keys
    CLS = "cls"  # the tower's CLS outputs, as virtual sources
    QUESTION = "question"  # the user's text in the turn being answered
    QUESTION_TEXT = "question_text"  # the same as a string (needs attach(..., processor=))
    # Between decoder layers only:
    BEFORE = "before"  # attention of the layer that has just run
    AHEAD = "ahead"  # attention that the layer about to run would compute on all tokens
    START = "start"  # what entered decoder layer 0 on each of the picture's slots
    TEXT = "text"  # all text after the picture, template tokens included: input embeddings
    TEXT_STATES = "text_states"  # the states of that text
    NORMED = "normed"  # states through the language model's final norm, the text's as well


@dataclasses.dataclass(frozen=True)
class Grid:
    """One raster of slots: a whole image, a tile mosaic, or the frames of a video.

    Attributes:
        frames, height, width: its shape; slots run frame by frame, row by row.
        box: (left, top, right, bottom) of the part of the image it shows, as fractions.
    """

    frames: int
    height: int
    width: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @property
    def size(self) -> int:
        """Number of slots."""
        return self.frames * self.height * self.width


@dataclasses.dataclass(frozen=True, eq=False)
class VisualTokens:
    """One image or video, as a method may see it. Nothing here may be modified in place.

    n counts the visual slots of this image over all its tiles or frames; newline and separator
    tokens are not among them.

    Attributes:
        features: (n, d) the tokens that P will act on. At stage `vision` the encoder's output
            (the mean over a patch group where the projector merges groups), at `input` the
            projected tokens, at `decoder` the hidden states entering that layer.
        grids: the rasters that the slots form, in slot order; their sizes sum to n. LLaVA has
            one, LLaVA-NeXT a base view and a tile mosaic, a video one with several frames. Empty
            once tokens have been dropped or merged.
        is_video: whether this is a video.
        encoder: (n, c) encoder output per slot.
        embeddings: (n, e) projected tokens, as the language model would receive them.
        attention: (n,) attention each slot receives in the tower's selected layer (the layer
            whose output the projector reads), mean over heads: from the CLS query where the
            tower has one, else the mean over all queries of the tile, frame or image.
        keys: (n, h) keys of that layer, mean over heads.
        wide_attention: (n,) in the tower's last block, softmax(q k^T / sqrt(c)) with the c-wide
            q and k not split into heads; q of the CLS, or the mean query where there is none;
            normalised over all the tile's tokens, CLS included.
        wide_keys: (n, c) those keys.
        cls: (v, d) the tower's CLS outputs, one a tile: the virtual sources n..n+v-1 of P where
            the projector takes them one by one; narrower than `features` where it joins patches.
        question: (l, e) input embeddings of the user's text in the turn being answered. Without
            the processor (`attach(..., processor=)`) all text behind the picture counts, earlier
            turns and template tokens included; never empty.
        question_ids: (l,) its token ids; None if the prompt came as embeddings.
        question_text: the same, as a string.
        tiles: (n,) which tile, frame or packed picture of the tower each slot was encoded in.
        cells: (n,) at stages `image` and `encoder`, which of the tower's fewer outputs stands
            behind each slot; slots with equal numbers hold equal features.
        layer: at stage `decoder`, the layer about to run; else None.
        total: the same, the n0 slots that the picture had before anything was dropped.
        entering: the same, how many of its tokens entered decoder layer 0.
        so_far: the same, the P from those n0 slots to these n tokens.
        start: (n0, e) embeddings that entered decoder layer 0, in slot order; where a merged
            token was written, that one, and what was dropped before keeps its own.
        text: (t, e) input embeddings of all text after the picture (of all text, if none
            follows it), template tokens included.
        asked: (t,) which of these tokens are the question; all, where it stands before the
            picture.
        text_states: (t, d) their states entering this layer.
        normed, text_normed: (n, d), (t, d) states through the model's final norm.
        before: attention of the layer that has just run, as it ran.
        ahead: attention of the layer about to run, if nothing were dropped before it.
    """

    features: Float[Tensor, "n d"]
    grids: tuple[Grid, ...]
    is_video: bool = False
    encoder: Float[Tensor, "n c"] | None = None
    embeddings: Float[Tensor, "n e"] | None = None
    attention: Float[Tensor, " n"] | None = None
    keys: Float[Tensor, "n h"] | None = None
    wide_attention: Float[Tensor, " n"] | None = None
    wide_keys: Float[Tensor, "n c2"] | None = None
    cls: Float[Tensor, "v c3"] | None = None
    question: Float[Tensor, "l e2"] | None = None
    question_ids: Int[Tensor, " l"] | None = None
    question_text: str | None = None
    tiles: Int[Tensor, " n"] | None = None
    cells: Int[Tensor, " n"] | None = None
    layer: int | None = None
    total: int | None = None
    entering: int | None = None
    so_far: Mapping | None = None
    start: Float[Tensor, "n0 e3"] | None = None
    text: Float[Tensor, "t e4"] | None = None
    asked: Bool[Tensor, " t"] | None = None
    text_states: Float[Tensor, "t d2"] | None = None
    normed: Float[Tensor, "n d3"] | None = None
    text_normed: Float[Tensor, "t d3"] | None = None
    before: LayerAttention | None = None
    ahead: LayerAttention | None = None

    @property
    def n(self) -> int:
        """Number of visual slots."""
        return self.features.shape[0]

    @property
    def rasters(self) -> tuple[Grid, ...]:
        """`grids`, for a method that cannot do without.

        Raises:
            StageNotAvailable: a method before it has dropped tokens; what is left forms none.
        """
        if sum(grid.size for grid in self.grids) != self.n:
            raise StageNotAvailable(
                "This method must know where in the picture each token lies, and another one has "
                "dropped or merged some.\nPut it first in the chain."
            )
        return self.grids

    def left(self, mapping: Mapping, features: Float[Tensor, "m d"]) -> VisualTokens:
        """What the next method sees after `mapping` acted: its tokens, the rest by their anchors.

        Args:
            mapping: P from these n tokens to m.
            features: (m, d) what P made of them.
        """
        carried: dict[str, Any] = {
            name: mapping.carry(values)
            for name in _PER_SLOT
            if (values := getattr(self, name)) is not None
        }
        grids = self.grids if mapping.is_identity else ()
        return dataclasses.replace(self, features=features, grids=grids, **carried)


_PROMPT = frozenset(
    {
        *(Reads.QUESTION, Reads.QUESTION_TEXT, Reads.TEXT, Reads.TEXT_STATES),
        *(Reads.BEFORE, Reads.AHEAD, Reads.NORMED),
    }
)
_PER_SLOT = (
    *("encoder", "embeddings", "attention", "keys", "wide_attention", "wide_keys"),
    *("tiles", "cells"),
)


def resolve_keep(keep: int | float, n: int) -> int:
    """The count m that `keep` asks for among n tokens.

    An int is the count itself; a float in (0, 1] a fraction: m = max(1, floor(keep * n + 1/2)).

    Raises:
        BudgetError: keep is 0, negative, NaN, above 1 as a float or above n as an int.
    """
    check_keep(keep)
    if isinstance(keep, int):
        if keep > n:
            raise BudgetError(
                f"keep={keep} asks for more tokens than this image has (n={n}).\n"
                f"Use keep<={n}, a fraction in (0, 1], or keep=1.0 for no compression."
            )
        return keep
    return max(1, math.floor(keep * n + 0.5))


def check_keep(keep: int | float) -> None:
    """Raise a BudgetError unless `keep` is an int >= 1 or a float in (0, 1]."""
    valid = isinstance(keep, int | float) and not isinstance(keep, bool)
    if valid:
        valid = keep >= 1 if isinstance(keep, int) else 0.0 < keep <= 1.0
    if not valid:
        raise BudgetError(
            f"keep must be a count (int >= 1) or a fraction (float in (0, 1]); got {keep!r}.\n"
            "keep=64 keeps 64 tokens of each image, keep=0.25 a quarter of them."
        )


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published setting of a method: its own count, order and positions.

    Attributes:
        source: where it is published.
        fields: the method's fields in this setting.
        keep: the budget; None if the method's own fields decide the count.
        positions: ``"original"`` or ``"reindex"``, as the authors do it.
    """

    source: str
    fields: Table[str, Any] = dataclasses.field(default_factory=dict)
    keep: int | float | None = None
    positions: str = "original"


@dataclasses.dataclass(frozen=True)
class Compressor(abc.ABC):
    """Base of every method. Subclass as a frozen dataclass; see docs/adding-a-method.md.

    Class attributes:
        stage: where P acts.
        reads: what the call looks at beside `features`.
        presets: published settings by name.
        prompt_aware: whether P depends on the question (declared through `reads`).
        trainable: whether there are parameters to learn.
        at_least: whether the budget is the fewest rows that P may have, not their count.
    """

    stage: ClassVar[Stage]
    reads: ClassVar[frozenset[Reads]] = frozenset()
    presets: ClassVar[Table[str, Preset]] = {}
    trainable: ClassVar[bool] = False
    at_least: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P for one image.

        Args:
            tokens: what is asked for in `reads`.
            keep: rows that P must have, 1 <= keep <= n; None (in authors' presets) lets the
                method's own fields decide.
        """

    def fitted(self, model: nn.Module) -> Compressor:
        """The method as it acts on `model`; learned ones find or check their weights.

        Raises:
            SavedFileError: its weights belong to another model, or there are none.
        """
        return self

    @property
    def prompt_aware(self) -> bool:
        """Whether P depends on the prompt's text: any part reads it as such, or the decoder."""
        return any(part.reads & _PROMPT for part in self.parts)

    @property
    def parts(self) -> tuple[Compressor, ...]:
        """The methods that act one after the other; all but composed ones are one themselves."""
        return (self,)

    def budgets(self, n: int, keep: int | None, total: int) -> tuple[int | None, ...]:
        """The budget of each of `parts` for a picture of n tokens.

        Args:
            n: tokens before anything is dropped.
            keep: the budget of the whole; None if the parts' own fields decide.
            total: decoder layers.
        """
        return (keep,) * len(self.parts)

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which the method acts; empty for every other stage."""
        return ()

    def layers_in(self, total: int) -> tuple[int, ...]:
        """The same in a model of `total` decoder layers: every layer at which it ever may act."""
        return self.layers

    def steps(self, n: int, keep: int | None, total: int) -> tuple[Step, ...]:
        """Where the method acts on a picture of n tokens, and what it must leave there.

        Args:
            n: tokens before the first drop.
            keep: the wanted average over the `total` executed decoder layers; None leaves the
                counts to the method's own fields.

        Raises:
            BudgetError: the average cannot be reached with these layers.
        """
        layers = self.layers_in(total)
        counts = (None,) * len(layers) if keep is None else self.decoder_budget(n, keep, total)
        return tuple(Step(layer, count) for layer, count in zip(layers, counts, strict=True))

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        """Tokens kept from each of `layers_in(total)` on, so that their average is `keep`.

        One drop is solved here; methods with several override this, mostly by `solve_schedule`.

        Raises:
            BudgetError: the average cannot be reached with these layers.
        """
        return solve_schedule(self.layers_in(total), n, keep, total, lambda size: [size * n])

    def keep_from_fields(self, n: int) -> int | None:
        """Count that the method's own fields ask for when no keep is given; None: unknown."""
        return None

    @property
    def states_budget(self) -> bool:
        """Whether the method's own fields say how many tokens stay, so that no `keep` may."""
        return False

    def settles_from(self, total: int) -> int | None:
        """First of `total` decoder layers whose cache is cut when a prefill is over; None: none.

        From that layer on the caches then hold, of every picture, what is left of it at the end.
        """
        return None


@dataclasses.dataclass(frozen=True)
class DecoderMethod(Compressor):
    """A method that drops tokens between decoder layers.

    Attributes:
        schedule: tokens left after each drop, counts or shares of those before the first one;
            None: solved from `keep`, which is then the average over the executed layers.
    """

    schedule: tuple[int | float, ...] | None = dataclasses.field(default=None, kw_only=True)
    stage: ClassVar[Stage] = Stage.DECODER

    @property
    def states_budget(self) -> bool:
        """Whether there is a schedule."""
        return self.schedule is not None

    def steps(self, n: int, keep: int | None, total: int) -> tuple[Step, ...]:
        """The schedule, or the one that meets the average `keep`."""
        layers = self.layers_in(total)
        first = int(Reads.BEFORE in self.reads)
        if not layers or any(a >= b for a, b in itertools.pairwise((first - 1, *layers))):
            raise BudgetError(
                f"{type(self).__name__} drops at layers {layers}.\n"
                f"Give at least one, ascending, from {first} on."
            )
        if self.schedule is None:
            return super().steps(n, keep, total)
        if len(self.schedule) != len(layers):
            raise BudgetError(
                f"schedule={self.schedule} has {len(self.schedule)} entries; "
                f"{type(self).__name__} drops at layers {layers}.\nGive one count for each."
            )
        found, left = [], n
        for layer, count in zip(layers, self.schedule, strict=True):
            check_keep(count)
            left = min(left, count if isinstance(count, int) else resolve_keep(count, n))
            found.append(Step(layer, left))
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Step:
    """One drop between decoder layers.

    Attributes:
        layer: the decoder layer before which it happens.
        keep: visual tokens that are left; None if the method's own fields decide.
    """

    layer: int
    keep: int | None


def most_entering(method: Compressor, n: int, keep: int, total: int) -> int:
    """Tokens that may enter a decoder between whose layers `method` must meet an average.

    Args:
        method: what drops tokens between layers; by a schedule of its own, or not at all, n may.
        n: tokens of the picture.
        keep: the average over the `total` executed layers, of which each runs on a token at least.
    """
    layers = method.layers_in(total)
    if method.states_budget or not layers or not layers[0]:
        return n
    return max(keep, min(n, (total * keep - (total - layers[0])) // layers[0]))


def solve_schedule(
    layers: Sequence[int],
    n: int,
    keep: int,
    total: int,
    shape: Callable[[float], Sequence[float]],
) -> tuple[int, ...]:
    """Counts after each drop whose average over all layers is `keep`, up to rounding.

    Args:
        layers: layers before which tokens are dropped, ascending.
        n: tokens before the first drop.
        keep: the wanted average over the `total` executed layers.
        shape: counts for a size in (0, 1], not decreasing in the size; size 1 must leave n
            throughout or more. They are cut to 1..n and never grow from drop to drop.

    Returns:
        One count a layer; the average misses `keep` by at most half a token.

    Raises:
        BudgetError: even one token from the first drop on is too much.
    """
    lengths = [end - start for start, end in zip(layers, [*layers[1:], total], strict=True)]
    wanted = float(
        total * keep - layers[0] * n
    )  # token-layers left for what follows the first drop

    def counts(size: float) -> list[float]:
        found, most = [], float(n)
        for count in shape(size):
            most = min(most, max(1.0, count))
            found.append(most)
        return found

    def spent(found: Sequence[float]) -> float:
        return sum(count * length for count, length in zip(found, lengths, strict=True))

    if wanted < (least := sum(lengths)):
        raise BudgetError(
            f"keep={keep} cannot be reached: layers 0..{layers[0] - 1} of {total} already run on "
            f"all {n} tokens.\nThe lowest average with a first drop at layer {layers[0]} is "
            f"{math.ceil((layers[0] * n + least) / total)}; use that, or drop earlier."
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(counts(middle)) <= wanted else (low, middle)
    exact = counts(high if spent(counts(high)) <= wanted else low)
    return _whole(exact, lengths, wanted, n)


def _whole(
    exact: Sequence[float], lengths: Sequence[int], wanted: float, n: int
) -> tuple[int, ...]:
    """Each of `exact` rounded down or up, never growing, with about `wanted` token-layers."""
    found = [math.floor(count + 1e-9) for count in exact]
    left = wanted - sum(count * length for count, length in zip(found, lengths, strict=True))
    down = sorted(range(len(found)), key=lambda i: (-lengths[i], i))
    # What rounding down left goes to the longest stretch that it fills by more than half. One that
    # is as low as its predecessor waits for it: at least the first that is below n need not wait,
    # so that less than half of a stretch is left in the end.
    while True:
        most = [n, *found]
        fits = (i for i in down if left > lengths[i] / 2 and found[i] < most[i])
        if (index := next(fits, None)) is None:
            return tuple(found)
        found[index] += 1
        left -= lengths[index]
        down.remove(index)


def scaled_layers(layers: Sequence[int], of: int, total: int) -> tuple[int, ...]:
    """Published layers of a model with `of` layers, at the same depth of one with `total`.

    Kept as they are where the model is as deep; else rounded, at least 1, each at least one
    after the one before, the last at most `total` - 1.
    """
    if total == of:
        return tuple(layers)
    found: list[int] = []
    for layer in layers:
        floor = found[-1] + 1 if found else 1
        found.append(max(floor, math.floor(layer * total / of + 0.5)))
    return tuple(layer for layer in found if layer < total)


@dataclasses.dataclass(frozen=True)
class TowerMethod(Compressor):
    """A method that acts while the vision tower runs (stages `image` and `encoder`).

    The tower then emits fewer distinct tokens; `VisualTokens.cells` says which one stands behind
    each slot, and the call only has to keep one slot of each.
    """

    @abc.abstractmethod
    def tower_plan(self, height: int, width: int, target: int, blocks: int) -> TowerPlan:
        """How the tower gets from height x width patches (slots) of one tile to `target`.

        Args:
            height, width: the tile's raster of slots.
            target: distinct tokens wanted of this tile, at least 1.
            blocks: tower blocks whose output the projector can still see.
        """


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of slots that become one token each, after the tower's first block.

    Attributes:
        side: slots along a window's side; windows do not overlap, from the top left on.
        least: the mean cosine between a window's tokens from which on it is merged.
        most: windows merged in a tile, the most alike.
    """

    side: int
    least: float
    most: int


@dataclasses.dataclass(frozen=True)
class TowerPlan:
    """What to do to the tower.

    Attributes:
        size: (height, width) the pixels are resized to, in slots; None to leave them.
        merges: tokens merged away before block i + 1 by bipartite matching; empty for none.
        proportional: whether attention counts a merged token as often as its patches.
        windows: windows to merge before block 1; None for none.
    """

    size: tuple[int, int] | None = None
    merges: tuple[int, ...] = ()
    proportional: bool = True
    windows: Windows | None = None


def with_preset(
    method: type[Compressor], preset: str, **fields: Any
) -> tuple[Compressor, int | float | None, str]:
    """(method instance, keep, positions) of a published setting.

    Raises:
        UnknownName: the method has no such preset.
    """
    if preset not in method.presets:
        raise UnknownName("preset", preset, method.presets)
    p = method.presets[preset]
    return method(**{**p.fields, **fields}), p.keep, p.positions


def device_of(tokens: VisualTokens) -> torch.device:
    """The device that P should live on."""
    return tokens.features.device
