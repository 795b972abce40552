"""How sure a difference is: the paired bootstrap over dialogues."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray
RESAMPLES = 10_000


def difference(
    right: Float[Array, " d"],
    base: Float[Array, " d"],
    asked: Float[Array, " d"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Accuracy of one setting minus that of another on the same dialogues.

    Args:
        right: right answers of each dialogue (a mean over draws need not be whole).
        base: those of what it is compared with.
        asked: questions of each dialogue.
        seed: of the resampling.
        resamples: bootstrap samples.
        level: of the interval.

    Returns:
        (difference, low, high): the percentile interval. Dialogues are resampled, not questions:
        the turns of one dialogue share a picture.
    """
    gain = right - base
    count = len(gain)
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    step = max(1, 2_000_000 // count)  # bounds the memory of a block
    for start in range(0, resamples, step):
        chosen = rng.integers(count, size=(min(step, resamples - start), count))
        found[start : start + step] = gain[chosen].sum(1) / asked[chosen].sum(1)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(gain.sum() / asked.sum()), float(low), float(high)
