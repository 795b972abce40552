"""What a compression method is, what it may look at, and how a budget becomes a count.

A method is a frozen dataclass - its fields are its whole configuration - with one call:
`method(tokens, keep) -> Mapping`. It declares the stage at which P acts and what it reads; the
rest of the library serves those declarations and never asks which method it holds.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
from collections.abc import Mapping as Table
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate.errors import BudgetError, UnknownName
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
            one, LLaVA-NeXT a base view and a tile mosaic, a video one with several frames.
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
        question: (l, e) input embeddings of the user's text in the turn being answered, without
            template tokens if the prompt's structure is known; never empty.
        question_ids: (l,) its token ids; None if the prompt came as embeddings.
        question_text: the same, as a string.
        tiles: (n,) which tile, frame or packed picture of the tower each slot was encoded in.
        cells: (n,) at stages `image` and `encoder`, which of the tower's fewer outputs stands
            behind each slot; slots with equal numbers hold equal features.
        layer: at stage `decoder`, the layer about to run; else None.
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

    @property
    def n(self) -> int:
        """Number of visual slots."""
        return self.features.shape[0]


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
    """

    stage: ClassVar[Stage]
    reads: ClassVar[frozenset[Reads]] = frozenset()
    presets: ClassVar[Table[str, Preset]] = {}
    trainable: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        """P for one image.

        Args:
            tokens: what is asked for in `reads`.
            keep: rows that P must have, 1 <= keep <= n; None (in authors' presets) lets the
                method's own fields decide.
        """

    @property
    def prompt_aware(self) -> bool:
        """Whether P depends on the question."""
        return bool(self.reads & {Reads.QUESTION, Reads.QUESTION_TEXT})

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which the method acts; empty for every other stage."""
        return ()

    def decoder_budget(self, n: int, keep: int, total: int) -> tuple[int, ...]:
        """Tokens kept from each of `layers` on, so that the average over layers is `keep`.

        Args:
            n: tokens before the first drop.
            keep: the wanted average over the `total` executed decoder layers.

        One drop is solved here; methods with several override this.

        Raises:
            BudgetError: the average cannot be reached with these layers.
        """
        if len(self.layers) != 1:
            raise NotImplementedError("methods that drop at several layers state their schedule")
        (k,) = self.layers
        after = math.floor((total * keep - k * n) / (total - k) + 0.5)
        if after < 1:
            raise BudgetError(
                f"keep={keep} cannot be reached: layers 0..{k - 1} already run on all {n} tokens.\n"
                f"The lowest average with a first drop at layer {k} of {total} is "
                f"{math.ceil((k * n + total - k) / total)}."
            )
        return (min(after, n),)

    def keep_from_fields(self, n: int) -> int | None:
        """Count that the method's own fields ask for when no keep is given; None: unknown."""
        return None


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
class TowerPlan:
    """What to do to the tower.

    Attributes:
        size: (height, width) the pixels are resized to, in slots; None to leave them.
        merges: tokens merged away before block i + 1 by bipartite matching; empty for none.
        proportional: whether attention counts a merged token as often as its patches.
    """

    size: tuple[int, int] | None = None
    merges: tuple[int, ...] = ()
    proportional: bool = True


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
