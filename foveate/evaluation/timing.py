"""Timing two things side by side, so that a busy machine slows both."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Ratio:
    """B's time over A's, alternated.

    Attributes:
        median, low, high: of the ratios of all pairs: median and quartiles.
        base_seconds: A's median time.
    """

    median: float
    low: float
    high: float
    base_seconds: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def seconds(call: Callable[[], Any], device: str) -> float:
    """Wall time of one call, the device's work included.

    Args:
        call: what is timed.
        device: its type; "cuda" is waited for before and after.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    a: Callable[[], Any],
    b: Callable[[], Any],
    device: str,
    repeats: int = 7,
    warm_up: int = 2,
) -> Ratio:
    """B over A: both warmed up, then timed in turns (A B A B ...).

    Args:
        a, b: the two sides.
        device: type of the device that they run on.
        repeats: pairs that are timed, at least 2.
        warm_up: pairs that are not.
    """
    for _ in range(warm_up):
        a()
        b()
    pairs = [(seconds(a, device), seconds(b, device)) for _ in range(repeats)]
    low, _, high = statistics.quantiles([y / x for x, y in pairs], n=4)
    return Ratio(
        statistics.median(y / x for x, y in pairs),
        low,
        high,
        statistics.median(x for x, _ in pairs),
    )
