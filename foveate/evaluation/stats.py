"""How sure a difference is: the paired bootstrap over dialogues, and the spread between models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

Array = np.ndarray
Interval = tuple[float, float, float]  # difference, low, high
RESAMPLES = 10_000


class Spread(NamedTuple):
    """How much the models' differences vary: their variance, and its degrees of freedom."""

    variance: float
    degrees: float


def difference(
    gain: Float[Array, " d"],
    asked: Float[Array, " d"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Interval:
    """Accuracy of one setting minus that of another on the same dialogues.

    Args:
        gain: right answers of each dialogue, fewer those of what it is compared with (a mean over
            draws need not be whole).
        asked: questions of each dialogue, at least one.
        seed: of the resampling.
        resamples: bootstrap samples.
        level: of the interval.

    Returns:
        (difference, low, high): the percentile interval. Dialogues are resampled, not questions:
        the turns of one dialogue share a picture.
    """
    value = float(gain.sum() / asked.sum())
    if not gain.any():
        return value, value, value
    found = _resampled(gain, asked, np.random.default_rng(seed), resamples)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    # Where all dialogues lose alike, sums in other orders may end a bit beside the value.
    return value, min(value, float(low)), max(value, float(high))


def _resampled(
    gain: Float[Array, " d"], asked: Float[Array, " d"], rng: np.random.Generator, resamples: int
) -> Float[Array, " r"]:
    """What the difference is of as many dialogues, drawn with replacement."""
    count = len(gain)
    found = np.empty(resamples)
    step = max(1, 2_000_000 // count)  # bounds the memory of a block
    for start in range(0, resamples, step):
        chosen = rng.integers(count, size=(min(step, resamples - start), count))
        found[start : start + step] = gain[chosen].sum(1) / asked[chosen].sum(1)
    return found


def between_models(
    gains: Float[Array, "m d"],
    asked: Float[Array, " d"],
    *,
    spread: Spread | None = None,
    least: float = 0.0,
    made_up: int = 0,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[Interval, float]:
    """The same on several models that answered the same dialogues, and how sure its sign is.

    Dialogues are resampled as in `difference`, with the gain's mean over the models. To each
    resample the doubt about the models is added: their standard error times a draw of Student's t
    with one degree of freedom fewer than there are models, or as `spread` says. (To resample the
    models as well would be too sure: where three models differ more than dialogues do, all three
    lie on one side of nothing in one case of four, and every resample of them does then.) With one
    model only the dialogues are drawn: what is sure is sure of that model.

    Args:
        gains: right answers of each model to each dialogue, fewer those of what it is compared
            with.
        asked: questions of each dialogue, at least one.
        spread: of the models' differences, where `spreads` found it; their own if None.
        least: the difference whose sign is asked for is `gains` less this.
        made_up: dialogues of one question that are won, and as many that are lost, to draw from
            beside the others. Few differences among few dialogues are not resampled into certainty
            then: twenty dialogues without any would say that there never is one.
        seed, resamples, level: as `difference` takes them.

    Returns:
        The interval of the difference, and the two-sided p-value of its being `least`: twice the
        smaller share of draws on either side of it, `least` itself counted on both.
    """
    models = len(gains)
    rng = np.random.default_rng(seed)
    added = np.repeat([1.0, -1.0], made_up)
    together = np.concatenate([gains.mean(0), added])
    found = _resampled(together, np.concatenate([asked, abs(added)]), rng, resamples)
    if models > 1:
        variance, degrees = spread or own_spread(gains, asked)
        found += (variance / models) ** 0.5 * rng.standard_t(degrees, resamples)
    value = float(gains.sum() / (models * asked.sum()))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    fewer = min(int((found <= least).sum()), int((found >= least).sum()))
    return (value, float(low), float(high)), min(1.0, 2 * (fewer + 1) / (resamples + 1))


def own_spread(gains: Float[Array, "m d"], asked: Float[Array, " d"]) -> Spread:
    """How much several models differ in one difference, told by these models alone."""
    alone = gains.sum(1) / asked.sum()
    return Spread(float(alone.var(ddof=1)), len(gains) - 1)


def spreads(own: Sequence[Spread]) -> list[Spread]:
    """How much models differ in each of many differences, told by all of them together.

    Three models alone hardly tell how much any others would differ. Of many differences the
    variances have a distribution, which is fitted as an inverse chi-square one (Smyth 2004,
    doi:10.2202/1544-6115.1027, section 6: by the mean and the variance of their logarithms); each
    variance is then drawn towards its centre, as far as they are alike, and has as many degrees of
    freedom more.

    Args:
        own: of each difference, with equal degrees of freedom.

    Returns:
        Of each difference; never more degrees of freedom than all of them have together.
    """
    degrees = own[0].degrees if own else 0.0
    logarithms = np.log([each.variance for each in own if each.variance > 0])
    if len(logarithms) < 2:
        return list(own)
    # Of a chi-square variable's logarithm the mean is a digamma, the variance a trigamma function.
    centred = logarithms - _digamma(degrees / 2) + math.log(degrees / 2)
    excess = float(centred.var(ddof=1)) - _trigamma(degrees / 2)
    before = 2 * _inverse_trigamma(excess) if excess > 0 else math.inf
    most = degrees * len(own)
    if before + degrees > most:
        before = most - degrees
    centre = math.exp(centred.mean() + _digamma(before / 2) - math.log(before / 2))
    total = before + degrees
    return [Spread((before * centre + degrees * each.variance) / total, total) for each in own]


def _digamma(x: float) -> float:
    return float(torch.special.digamma(torch.tensor(x, dtype=torch.float64)))


def _trigamma(x: float) -> float:
    return float(torch.special.polygamma(1, torch.tensor(x, dtype=torch.float64)))


def _inverse_trigamma(value: float) -> float:
    """The function falls from infinity to nothing, so halving finds it."""
    low, high = 1e-6, 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _trigamma(middle) > value else (low, middle)
    return math.sqrt(low * high)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, by Holm's step-down rule; in their own order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = largest
    return found
