"""How sure a difference is: the paired bootstrap over dialogues."""

from __future__ import annotations

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
