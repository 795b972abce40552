"""How sure a difference is: the paired bootstrap over dialogues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Array = np.ndarray
Interval = tuple[float, float, float]  # difference, low, high
RESAMPLES = 10_000


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
    count = len(gain)
    value = float(gain.sum() / asked.sum())
    if not gain.any():
        return value, value, value
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    step = max(1, 2_000_000 // count)  # bounds the memory of a block
    for start in range(0, resamples, step):
        chosen = rng.integers(count, size=(min(step, resamples - start), count))
        found[start : start + step] = gain[chosen].sum(1) / asked[chosen].sum(1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def between_models(
    gains: Float[Array, "m d"],
    asked: Float[Array, " d"],
    *,
    least: float = 0.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[Interval, float]:
    """The same on several models that answered the same dialogues, and how sure its sign is.

    Both are resampled: the models, so that a difference between trainings is not taken for one
    between settings, and the dialogues. With one model only the dialogues are.

    Args:
        gains: right answers of each model to each dialogue, fewer those of what it is compared
            with.
        asked: questions of each dialogue, at least one.
        least: the difference whose sign is asked for is `gains` less this.
        seed, resamples, level: as `difference` takes them.

    Returns:
        The interval of the difference, and the two-sided p-value of its being `least`: twice the
        smaller share of resamples on either side, at least 1 / resamples.
    """
    models, count = gains.shape
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    for index in range(resamples):
        chosen = rng.integers(count, size=count)
        which = rng.integers(models, size=models) if models > 1 else np.zeros(1, int)
        found[index] = gains[which][:, chosen].sum() / (models * asked[chosen].sum())
    value = float(gains.sum() / (models * asked.sum()))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    below, above = float((found <= least).mean()), float((found >= least).mean())
    return (value, float(low), float(high)), max(1 / resamples, min(1.0, 2 * min(below, above)))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for being several, by Holm's step-down rule; in their own order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = largest
    return found
