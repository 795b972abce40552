"""Which budgets a model can meet, known before it runs."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any

from foveate.adapters import adapter_for
from foveate.attach.decision import Decision
from foveate.compressor import Compressor, Stage, resolve_keep
from foveate.errors import BudgetError, SavedFileError, StageNotAvailable
from foveate.evaluation.settings import Setting


def refusal(model: Any, setting: Setting, sizes: Iterable[int]) -> tuple[str, int | None] | None:
    """Why a setting cannot be served on pictures of these sizes; None if nothing speaks against it.

    Args:
        model: as loaded; it is not run.
        setting: method and budget.
        sizes: visual tokens of the pictures.

    Returns:
        The reason, and the lowest count that could be met; None where no count would help.
    """
    method, keep = setting.resolved()
    if isinstance(keep, float) and keep == 1.0:
        return None  # the untouched model
    try:
        method = method.fitted(model)
    except SavedFileError as error:
        return str(error), None  # a learned one without weights for this model
    reason, lowest = "", None
    for n in sizes:
        try:
            _try(model, method, keep, n)
        except StageNotAvailable as error:
            return str(error), None
        except BudgetError as error:
            reason = reason or str(error)
            least = _lowest(model, method, keep, n)
            lowest = least if lowest is None else max(lowest, least or 0)
    return (reason, lowest) if reason else None


def in_last_layer(setting: Setting, n: int, total: int) -> int | None:
    """Tokens of a picture of `n` that reach the last of `total` decoder layers.

    Returns:
        None where the budget cannot be met, or where only a run shows it.
    """
    method, keep = setting.resolved()
    if keep is None or (isinstance(keep, float) and keep == 1.0):
        return None if keep is None else n
    *before, last = method.parts
    try:
        counts = method.budgets(n, resolve_keep(keep, n), total)
        if last.stage != Stage.DECODER:
            return counts[-1]
        if before and before[-1].at_least:
            return None
        left = counts[len(before) - 1] if before else n
        steps = last.steps(n if left is None else left, counts[-1], total)
    except BudgetError:
        return None
    return max(steps, key=lambda step: step.layer).keep if steps else left


def _try(model: Any, method: Compressor, keep: int | float | None, n: int) -> None:
    """Raise what attaching and running would, as far as it depends on counts and layers alone."""
    decision = Decision(adapter_for(model), method, keep=keep, positions="original", template=None)
    counts = decision.budgets(n)[: len(decision.outside)]
    # Where the first part leaves what the picture's looks decide, it may leave everything.
    left = counts[-1] if counts and not decision.outside[-1].at_least else n
    decision.steps(n, n if left is None else left)


def _lowest(model: Any, method: Compressor, keep: int | float | None, n: int) -> int | None:
    try:
        asked = None if keep is None else resolve_keep(keep, n)
    except BudgetError:
        asked = None  # more than there are
    if asked is None:
        return None

    def met(count: int) -> bool:
        try:
            _try(model, method, count, n)
        except BudgetError:
            return False
        return True

    counts = range(asked, n + 1)
    found = bisect.bisect_left(counts, True, key=met)
    return counts[found] if found < len(counts) else None
