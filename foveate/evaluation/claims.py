"""A paper's claims as data, and a verdict on each by a stated rule, from stored answers alone.

The rule: a claim says that one side's accuracy lies above another's, by more than `least`, or above
the share `of` of it. The difference is taken question by question on the same dialogues with every
model. Dialogues are resampled, a won and a lost one that are made up among them, so that a few are
sure of nothing; of several models (training seeds) the doubt about them is added
(`stats.between_models`). The two-sided p-values of all claims of a page are corrected together by
Holm. A claim *holds* if its difference lies on the claimed side with a corrected p below 0.05, is
*reversed* if it lies on the other side as surely, and is *open* otherwise. What a model cannot do
is *out of reach*. Nothing here is typed: a page changes when its runs do.
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

import numpy as np
from jaxtyping import Bool, Float

from foveate.errors import BudgetError, InputError, UnknownName
from foveate.evaluation import oracle, stats, variants
from foveate.evaluation.answering import BLIND, FULL, WRONG
from foveate.evaluation.data import Dialogue
from foveate.evaluation.optimum import NAME as OPTIMUM
from foveate.evaluation.optimum import Optimum
from foveate.evaluation.settings import EACH, Keep, Setting, expand
from foveate.evaluation.stats import Interval
from foveate.evaluation.store import Store
from foveate.evaluation.variants import PREFIX, Bounds, Variant

SURE = 0.05
MADE_UP = 1  # a won and a lost dialogue beside the others, see `stats.between_models`
HOLDS, REVERSED, OPEN, OUT_OF_REACH = "holds", "reversed", "open", "out of reach"
# What claims about the vision tower are judged on: nothing is attached for their sides.
ATTENTION = "attention"
# What claims about the best P of each picture are judged on: the tokens that it keeps.
KEPT = "kept"
WORDS = (HOLDS, REVERSED, OPEN, OUT_OF_REACH)
# Sides that are no method: the model as it is, and what it says without its picture.
_CONDITIONS = (FULL, BLIND, WRONG)
# A kind counts as answered if it is that far above what needs no picture, as in
# `foveate.reference.measure.learned`.
_LEARNED = 0.10
_MEASURED = 64  # of 576 tokens, where times are measured unless a page says otherwise
_Array = np.ndarray


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
        return self.settings[0].label if self.settings else self.method


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


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What speaks for or against a claim.

    Attributes:
        better, worse: right answers of each model to each dialogue.
        asked: questions of each dialogue, at least one.
        kinds: by kind of question the difference, in accuracy; of all models together.
    """

    better: Float[_Array, "m d"]
    worse: Float[_Array, "m d"]
    asked: Float[_Array, " d"]
    kinds: Table[str, float] = dataclasses.field(default_factory=dict)


class Answered:
    """Stored answers of several models to the same dialogues.

    Args:
        stores: of each model.
        data: the dialogues.
        left_out: why a setting was not asked, by its key.

    Raises:
        InputError: there are none.
    """

    def __init__(
        self, stores: Sequence[Store], data: Sequence[Dialogue], left_out: Table[str, str]
    ) -> None:
        if not stores or not data:
            raise InputError("Claims are judged on stored answers; there are none.")
        self.stores, self.data, self.left_out = stores, data, left_out
        self._right: dict[str, Float[_Array, "m q"] | None] = {}
        turns = [(i, turn) for i, each in enumerate(data) for turn in each.turns]
        self.dialogue = np.array([i for i, _ in turns])
        self.kind = np.array([turn.kind for _, turn in turns])

    def right(self, side: Side) -> Float[_Array, "m q"] | str:
        """Which questions each model answers right, as shares of a side's draws; or why not."""
        found = []
        for key in side.keys:
            if key not in self._right:
                self._right[key] = self._of(key)
            one = self._right[key]
            if one is None:
                return self.left_out.get(key, f"{side.label}: not asked")
            found.append(one)
        return np.mean(found, 0)

    def _of(self, key: str) -> Float[_Array, "m q"] | None:
        if any((key, each.name) not in store for store in self.stores for each in self.data):
            return None
        return np.array(
            [
                [
                    float(turn.right(said))
                    for each in self.data
                    for turn, said in zip(each.turns, store[key, each.name]["answers"], strict=True)
                ]
                for store in self.stores
            ]
        )

    def records(self, side: Side) -> list[dict[str, Any]]:
        """What is stored of a side, of all models and dialogues."""
        return [
            store[key, each.name]
            for store in self.stores
            for key in side.keys
            for each in self.data
        ]

    @functools.cached_property
    def learned(self) -> frozenset[str]:
        """Kinds that the full models answer from the picture; only they carry a claim."""
        full, blind = self.right(Side(FULL)), self.right(Side(BLIND))
        kinds = frozenset(self.kind.tolist())
        if isinstance(full, str) or isinstance(blind, str):
            return kinds
        guess = self._guess()
        return frozenset(
            kind
            for kind in kinds
            if not kind
            or full[:, self.kind == kind].mean()
            - max(blind[:, self.kind == kind].mean(), guess[kind])
            >= _LEARNED
        )

    def _guess(self) -> dict[str, float]:
        """Each kind's share of its most frequent answer."""
        said: dict[str, list[str]] = {}
        for turn in (turn for each in self.data for turn in each.turns):
            said.setdefault(turn.kind, []).append(turn.answers[0])
        return {kind: max(map(each.count, each)) / len(each) for kind, each in said.items()}

    def counted(self, kinds: Iterable[str] = ()) -> Bool[_Array, " q"]:
        """Which questions count: those of learned kinds, and of these kinds if there are any."""
        wanted = frozenset(kinds) or self.learned
        found: _Array = np.isin(self.kind, sorted(wanted & self.learned))
        return found

    def evidence(self, claim: Claim) -> Evidence | str:
        """What was answered on both sides; or why there is nothing."""
        sides = [self.right(side) for side in (claim.better, claim.worse)]
        for side in sides:
            if isinstance(side, str):
                return side
        counted = self.counted(claim.kinds)
        if not counted.any():
            return f"the full model did not learn {', '.join(claim.kinds) or 'any kind'}"
        better, worse = (np.asarray(side) for side in sides)
        gains = better - claim.of * worse
        kinds = {
            kind: float(gains[:, counted & (self.kind == kind)].mean())
            for kind in sorted(set(self.kind[counted].tolist()))
            if kind
        }
        right, other, asked = (
            np.array([np.bincount(self.dialogue[counted], weights=one) for one in each])
            for each in (better[:, counted], worse[:, counted], np.ones((1, counted.sum())))
        )
        some = asked[0] > 0
        return Evidence(right[:, some], other[:, some], asked[0, some], kinds)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found about a claim.

    Attributes:
        claim: the claim.
        word: "holds", "reversed", "open" or "out of reach".
        better, worse: accuracy of both sides, means over the models.
        difference: (`better` minus `of` times `worse`, low, high), 95 %.
        p: two-sided, corrected for all claims of the page.
        models: the difference with each model.
        why: where it does not hold, what is known about it.
    """

    claim: Claim
    word: str
    better: float = 0.0
    worse: float = 0.0
    difference: Interval | None = None
    p: float | None = None
    models: tuple[float, ...] = ()
    why: str = ""


def judge(
    claims: Sequence[Claim],
    found: Sequence[Evidence | str],
    *,
    resamples: int = stats.RESAMPLES,
) -> list[Verdict]:
    """A verdict on each claim.

    Args:
        claims: those of one page; they are corrected for together.
        found: what there is about each, or why there is nothing.
        resamples: of the bootstrap.
    """
    gains = [
        None if isinstance(each, str) else (each.better - claim.of * each.worse, each.asked)
        for claim, each in zip(claims, found, strict=True)
    ]

    def tested(together: bool) -> tuple[list[Interval], list[float]]:
        results = [
            stats.between_models(
                each[0].mean(0, keepdims=True) if together else each[0],
                each[1],
                least=claim.least,
                made_up=MADE_UP,
                resamples=resamples,
            )
            for claim, each in zip(claims, gains, strict=True)
            if each is not None
        ]
        return [each[0] for each in results], stats.holm([each[1] for each in results])

    intervals, corrected = tested(together=False)
    # As if these models were all there are: the dialogues' doubt alone.
    several = any(each is not None and len(each[0]) > 1 for each in gains)
    here = tested(together=True)[1] if several else corrected
    numbers = iter(zip(intervals, corrected, here, strict=True))
    return [
        Verdict(claim, OUT_OF_REACH, why=each)
        if isinstance(each, str)
        else _verdict(claim, each, *next(numbers))
        for claim, each in zip(claims, found, strict=True)
    ]


def _verdict(claim: Claim, seen: Evidence, interval: Interval, p: float, here: float) -> Verdict:
    asked, models = seen.asked.sum(), len(seen.better)
    side = HOLDS if interval[0] > claim.least else REVERSED
    word = side if p < SURE else OPEN
    why = ""
    if word == OPEN:
        why = f"too little for {len(seen.asked)} dialogue{'s' * (len(seen.asked) > 1)}"
        if models > 1 and here < SURE:
            way = "as claimed" if side == HOLDS else "the other way"
            why = f"{way} with these {models} models surely, but they differ too much"
    elif word == REVERSED and len(seen.kinds) > 1:
        worst = sorted(seen.kinds.items(), key=lambda each: each[1])[:3]
        why = "lost most in " + ", ".join(f"{kind} ({gain:+.3f})" for kind, gain in worst)
    alone = (seen.better - claim.of * seen.worse).sum(1) / asked
    return Verdict(
        claim,
        word,
        float(seen.better.sum() / (models * asked)),
        float(seen.worse.sum() / (models * asked)),
        interval,
        p,
        tuple(alone.tolist()),
        why,
    )


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table."""
    several = any(len(each.models) > 1 for each in verdicts)
    head = ["where", "it says", "the paper's numbers", "here", "difference [95 %]", "p"]
    head += ["by model"] * several + ["verdict"]
    lines = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for each in verdicts:
        claim, cells = each.claim, [""] * 3
        if each.difference is not None and each.p is not None:
            value, low, high = each.difference
            cells = [
                f"{each.better:.3f} / {each.worse:.3f}",
                f"{value:+.3f} [{low:+.3f}, {high:+.3f}]",
                f"{each.p:.2g}",
            ]
        cells += [", ".join(f"{one:+.3f}" for one in each.models)] * several
        row = [claim.source, claim.says, claim.paper, *cells, f"**{each.word}**"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def reasons(verdicts: Sequence[Verdict]) -> str:
    """What is known about the claims that do not hold, as a list; equal reasons are told once."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in verdicts:
        if each.word != HOLDS and each.why:
            found.setdefault((each.word, each.why), []).append(each.claim.source)
    return "\n".join(
        f"- *{word}*, {why}: {' / '.join(dict.fromkeys(sources))}."
        for (word, why), sources in found.items()
    )


def groups_of(sides: Iterable[Side]) -> list[tuple[Setting, ...]]:
    """What has to be asked for these sides, once each."""
    return list(dict.fromkeys(each.settings for each in sides if each.settings))
