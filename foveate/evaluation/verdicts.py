"""A verdict on each claim by a stated rule, from stored answers alone.

The rule: a claim says that one side's accuracy lies above another's, by more than `least`, or above
the share `of` of it. The difference is taken question by question on the same dialogues with every
model. Dialogues are resampled, a won and a lost one that are made up among them, so that a few are
sure of nothing; of several models (training seeds) the doubt about them is added
(`stats.between_models`), where all claims of a page together tell how much models differ
(`stats.spreads`). The two-sided p-values of all claims of a page are corrected together by
Holm. A claim *holds* if its difference lies on the claimed side with a corrected p below 0.05, is
*reversed* if it lies on the other side as surely, and is *open* otherwise. What a model cannot do
is *out of reach*. Nothing here is typed: a page changes when its runs do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Table
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from foveate.errors import InputError
from foveate.evaluation import stats
from foveate.evaluation.answering import BLIND, FULL
from foveate.evaluation.claims import Claim, Side
from foveate.evaluation.data import Dialogue
from foveate.evaluation.stats import Interval
from foveate.evaluation.store import Store

SURE = 0.05
MADE_UP = 1  # a won and a lost dialogue beside the others, see `stats.between_models`
HOLDS, REVERSED, OPEN, OUT_OF_REACH = "holds", "reversed", "open", "out of reach"
WORDS = (HOLDS, REVERSED, OPEN, OUT_OF_REACH)
# A kind counts as answered if it is that far above what needs no picture, as in
# `foveate.reference.measure.learned`.
_LEARNED = 0.10
_Array = np.ndarray


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
        alone: the word as if these models were all there are, from the doubt about the dialogues.
        better, worse: accuracy of both sides, means over the models.
        difference: (`better` minus `of` times `worse`, low, high), 95 %.
        p: two-sided, corrected for all claims of the page.
        models: the difference with each model.
        why: where it does not hold, what is known about it.
    """

    claim: Claim
    word: str
    alone: str = OUT_OF_REACH
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

    spreads = shared_spreads(gains)

    def tested(together: bool) -> tuple[list[Interval], list[float]]:
        results = [
            stats.between_models(
                each[0].mean(0, keepdims=True) if together else each[0],
                each[1],
                spread=spread,
                least=claim.least,
                made_up=MADE_UP,
                resamples=resamples,
            )
            for claim, each, spread in zip(claims, gains, spreads, strict=True)
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


def shared_spreads(gains: Sequence[tuple[_Array, _Array] | None]) -> list[stats.Spread | None]:
    """How much models differ in each of several comparisons, told by all on as many models.

    Args:
        gains: of each comparison, what `stats.between_models` takes first: each model's gain in
            each dialogue, and the questions of each; None for one that was not made.

    Returns:
        None for a comparison that was not made or of one model, which differs from nothing.
    """
    found: list[stats.Spread | None] = [None] * len(gains)
    counts = {len(each[0]) for each in gains if each is not None}
    for models in counts - {1}:
        places = [i for i, each in enumerate(gains) if each is not None and len(each[0]) == models]
        own = [stats.own_spread(*each) for i in places if (each := gains[i]) is not None]
        for place, spread in zip(places, stats.spreads(own), strict=True):
            found[place] = spread
    return found


def _verdict(claim: Claim, seen: Evidence, interval: Interval, p: float, here: float) -> Verdict:
    asked, models = seen.asked.sum(), len(seen.better)
    side = HOLDS if interval[0] > claim.least else REVERSED
    word = side if p < SURE else OPEN
    alone = word if models == 1 else side if here < SURE else OPEN
    why = ""
    if word == OPEN:
        why = f"too little for {len(seen.asked)} dialogue{'s' * (len(seen.asked) > 1)}"
        if alone != word:
            way = "as claimed" if side == HOLDS else "the other way"
            why = f"{way} with these {models} models surely, but they differ too much"
    elif word == REVERSED and len(seen.kinds) > 1:
        worst = sorted(seen.kinds.items(), key=lambda each: each[1])[:3]
        why = "lost most in " + ", ".join(f"{kind} ({gain:+.3f})" for kind, gain in worst)
    by_model = (seen.better - claim.of * seen.worse).sum(1) / asked
    return Verdict(
        claim,
        word,
        alone,
        float(seen.better.sum() / (models * asked)),
        float(seen.worse.sum() / (models * asked)),
        interval,
        p,
        tuple(by_model.tolist()),
        why,
    )


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table."""
    several = any(len(each.models) > 1 for each in verdicts)
    head = ["where", "it says", "the paper's numbers", "here", "difference [95 %]", "p"]
    head += ["by model", "these alone"] * several + ["verdict"]
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
        cells += [", ".join(f"{one:+.3f}" for one in each.models), each.alone] * several
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
        f"- *{word}*, {why.rstrip('.')}: {' / '.join(dict.fromkeys(sources))}."
        for (word, why), sources in found.items()
    )
