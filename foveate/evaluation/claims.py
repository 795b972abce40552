"""A paper's claims as data: what is said of which methods, and what has to be run for it.

`foveate.evaluation.verdicts` judges them.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Table
from fractions import Fraction
from pathlib import Path
from typing import Any

from foveate.errors import BudgetError, InputError, UnknownName
from foveate.evaluation import oracle, variants
from foveate.evaluation.answering import BLIND, FULL, WRONG
from foveate.evaluation.optimum import NAME as OPTIMUM
from foveate.evaluation.optimum import Optimum
from foveate.evaluation.settings import EACH, FIRST, Keep, Setting, expand
from foveate.evaluation.variants import PREFIX, Bounds, Variant

# What claims about the vision tower are judged on: nothing is attached for their sides.
ATTENTION = "attention"
# What claims about the best P of each picture are judged on: the tokens that it keeps.
KEPT = "kept"
# Sides that are no method: the model as it is, and what it says without its picture.
_CONDITIONS = (FULL, BLIND, WRONG)
_MEASURED = 64  # of 576 tokens, where times are measured unless a page says otherwise


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a claim.

    Attributes:
        method: as `parse_method` reads it, chains, presets and fields included; or ``"full"``,
            ``"blind"`` (a grey picture), ``"wrong image"``, ``"oracle"``, ``"optimum"``,
            ``"variant:NAME"``.
        keep: the budget, for those that do not state one themselves.
        turns: where a method that reads the prompt chooses, at ``"each"`` or the ``"first"`` turn.
        prepared: what has to be made for each model before it can be asked: the variant of that
            name, or the optimum; None for all else.
    """

    method: str
    keep: Keep | None = None
    turns: str = EACH
    prepared: Variant | Optimum | None = None

    @functools.cached_property
    def settings(self) -> tuple[Setting, ...]:
        """What is attached: the draws that are averaged; none for the model as it is.

        Raises:
            UnknownName, InputError, BudgetError: the method or its budget does not exist.
        """
        if self.method in _CONDITIONS:
            return ()
        if self.method == oracle.NAME:
            return (oracle.Oracle(keep=self.keep),)
        if self.prepared is not None and self.keep is not None:
            return self.prepared.settings(self.keep, self.turns)
        budgets = [] if self.keep is None else [self.keep]
        groups = [] if self.prepared else expand([self.method], budgets, turns=self.turns)
        if not groups:
            raise BudgetError(f"The side {self.method!r} of a claim needs a budget.")
        return tuple(groups[0])

    @property
    def keys(self) -> tuple[str, ...]:
        """What its stored answers go by."""
        return tuple(each.key for each in self.settings) or (self.method,)

    @property
    def label(self) -> str:
        """The method with what was set, without the budget."""
        return f"{self.settings[0].label}{self._chosen}" if self.settings else self.method

    @property
    def curve(self) -> str:
        """The curve over budgets that it is a point of; of something attached only.

        What states its budgets itself, in presets or schedules, has one for its method.
        """
        one = self.settings[0]
        name = f"{one.method}, own schedule" if one.keep is None else one.label
        return f"{name}{self._chosen}"

    @property
    def _chosen(self) -> str:
        return ", chosen at the first turn" if self.settings[0].turns == FIRST else ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence of a paper.

    Attributes:
        source: where it stands: "Table 1, 128 tokens".
        says: what it says, in a sentence.
        better, worse: the sides.
        paper: the paper's own numbers, as it prints them.
        least: by how much `better` is said to lie above `worse`; negative for "at most so much
            below".
        of: the share of `worse` that `better` is said to reach.
        kinds: the kinds of question that it is about; all if empty.
    """

    source: str
    says: str
    better: Side
    worse: Side
    paper: str = ""
    least: float = 0.0
    of: float = 1.0
    kinds: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
    """Claims that belong together.

    Attributes:
        title: a heading.
        data: what they are judged on.
        text: what a reader should know before them.
        claims: in their order.
    """

    title: str
    data: str
    text: str
    claims: tuple[Claim, ...]


@dataclasses.dataclass(frozen=True)
class Prefill:
    """What a paper says about the time of a prefill.

    Attributes:
        title, text: a heading, and what a reader should know.
        paper: how many times as fast as the full model each method is there, as it prints it.
        faster: pairs of methods, the first said to be faster; ``"full"`` is the full model.
        alike: pairs said to be equally fast: less than a twentieth of the full model's time apart.
        answers: pairs, the first said to be faster to the end of an answer.
        light: pairs, the first said to take FLOPs of its own, beside those of the second, that
            are less than a hundredth of the full model's.
        keep: of 576 visual tokens, what methods leave that do not state it themselves.
    """

    title: str
    text: str
    paper: Table[str, str]
    faster: Sequence[Sequence[str]]
    alike: Sequence[Sequence[str]] = ()
    answers: Sequence[Sequence[str]] = ()
    light: Sequence[Sequence[str]] = ()
    keep: int = _MEASURED

    @property
    def file(self) -> str:
        """Where stored times of this budget are, among the results of benchmarks."""
        return "cpu-deep.json" if self.keep == _MEASURED else f"cpu-deep-{self.keep}.json"


@dataclasses.dataclass(frozen=True)
class Mappings:
    """Pictures of P.

    Attributes:
        title, text: a heading, and what a reader should know.
        sides: whose P is drawn, of some scenes.
    """

    title: str
    text: str
    sides: tuple[Side, ...]


@dataclasses.dataclass(frozen=True)
class Relevances:
    """Pictures of relevance, of what methods predict of it, and of what is kept.

    Attributes:
        title, text: a heading, and what a reader should know.
        data: what the pictures and questions are.
        sides: each at several budgets: relevance itself, methods that predict it, and others, of
            which there is only what they keep.
    """

    title: str
    text: str
    data: str
    sides: tuple[tuple[Side, ...], ...]


@dataclasses.dataclass(frozen=True)
class Page:
    """A paper.

    Attributes:
        title, text: how its page begins.
        parts: its claims.
        prefill: those about time, if there are any.
        mappings: pictures of P, if there are any.
        relevances: pictures of relevance.
        left_out: (what cannot be put, why).
        variants: what has to be trained for it, by name.
    """

    title: str
    text: str
    parts: tuple[Part, ...]
    prefill: Prefill | None = None
    mappings: Mappings | None = None
    relevances: tuple[Relevances, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    variants: Table[str, Variant] = dataclasses.field(default_factory=dict)

    def sides(self, data: str) -> tuple[Side, ...]:
        """Every side of the claims that are judged on this data, once each."""
        claims = (claim for part in self.parts if part.data == data for claim in part.claims)
        return tuple(dict.fromkeys(side for each in claims for side in (each.better, each.worse)))


def read(path: Path, bounds: Bounds = Bounds()) -> Page:  # noqa: B008  (frozen)
    """A page's claims from a TOML file.

    Sides are strings, with the claim's own `keep` as their budget, or tables with the fields of
    `Side`; a budget is a count, a share, or a fraction as text ("192/576"). What has to be trained
    is under `variants`, see there.

    Args:
        path: the file.
        bounds: the most that is trained.

    Raises:
        InputError: a field that does not exist, or one that is missing.
        UnknownName: a side about a variant that is not there.
    """
    record = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {
        name: each.bounded(bounds)
        for name, each in variants.read(record.pop("variants", {})).items()
    }
    best = Optimum() if bounds.steps is None else Optimum(steps=min(bounds.steps, Optimum.steps))
    prepared = {PREFIX + name: each for name, each in known.items()} | {OPTIMUM: best}
    try:
        parts = tuple(
            Part(**{**part, "claims": tuple(_claim(prepared, **each) for each in part["claims"])})
            for part in record.pop("parts")
        )
        left_out = tuple((each["what"], each["why"]) for each in record.pop("left_out", ()))
        prefill = Prefill(**record.pop("prefill")) if "prefill" in record else None
        drawn = dict(record.pop("mappings", {}))
        keep = drawn.pop("keep", None)
        sides = tuple(_side(each, keep, prepared) for each in drawn.pop("sides", ()))
        relevances = tuple(
            _relevances(known=prepared, **each) for each in record.pop("relevances", ())
        )
        page = Page(
            parts=parts,
            relevances=relevances,
            prefill=prefill,
            mappings=Mappings(sides=sides, **drawn) if drawn else None,
            left_out=left_out,
            variants=known,
            **record,
        )
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, (InputError, BudgetError, UnknownName)):
            raise
        raise InputError(f"{path} has no such form: {str(error).splitlines()[0]}.") from error
    # What does not exist is told now, not after an hour.
    for side in (side for each in page.relevances for sides in each.sides for side in sides):
        _ = side.keys
    for part in page.parts:
        if part.data not in (ATTENTION, KEPT):
            for claim in part.claims:
                _ = claim.better.keys, claim.worse.keys
    return page


def _relevances(
    known: Table[str, Variant | Optimum], sides: Sequence[Any], keeps: Sequence[Any], **more: Any
) -> Relevances:
    drawn = tuple(tuple(_side(each, keep, known) for keep in keeps) for each in sides)
    return Relevances(sides=drawn, **more)


def _claim(
    prepared: Table[str, Variant | Optimum],
    better: Any,
    worse: Any,
    keep: Any = None,
    kinds: Sequence[str] = (),
    **more: Any,
) -> Claim:
    return Claim(
        better=_side(better, keep, prepared),
        worse=_side(worse, keep, prepared),
        kinds=tuple(kinds),
        **more,
    )


def _side(given: Any, keep: Any, prepared: Table[str, Variant | Optimum]) -> Side:
    """A side as a page states it, with `keep` unless it has its own."""
    fields = {"method": given} if isinstance(given, str) else dict(given)
    stated = fields.pop("keep", keep)
    budget = float(Fraction(stated)) if isinstance(stated, str) else stated
    method = fields["method"]
    if method.startswith(PREFIX) and method not in prepared:
        raise UnknownName("side of a claim", method, prepared)
    return Side(keep=budget, prepared=prepared.get(method), **fields)


def groups_of(sides: Iterable[Side]) -> list[tuple[Setting, ...]]:
    """What has to be asked for these sides, once each."""
    return list(dict.fromkeys(each.settings for each in sides if each.settings))
