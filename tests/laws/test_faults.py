"""Proof that the laws can fail: each deliberate fault in the library breaks the law made for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from foveate.attach import faults
from tests.laws.laws import (
    Case,
    check_cache_rows,
    check_detach_restores,
    check_forward,
    check_generate,
    check_without_mask,
    shared_model,
)
from tests.laws.methods import DropAt, Every, First, TopNorm

CAUGHT_BY: dict[str, Callable[[], None]] = {
    "mask_not_gathered": lambda: check_forward(Case("llava", images=(2, 1)), DropAt()),
    "stale_position_shift": lambda: check_generate(Case("llava"), First(), positions="reindex"),
    "tables_not_reordered": lambda: check_cache_rows(Case("llava_next"), TopNorm(), "reorder"),
    "hook_left_behind": lambda: check_detach_restores(Case("llava"), Every()),
    "packed_positions": lambda: check_without_mask(Case("llava"), First(), "reindex"),
    "cache_not_cut": lambda: check_generate(
        Case("llava", images=(2, 1)), DropAt((2, 3), (0.6, 0.5), settle=1)
    ),
    "anchor_ignored": lambda: check_forward(Case("llava"), TopNorm()),
}


@pytest.fixture(autouse=True)
def _fresh_models() -> Iterator[None]:
    """A fault may leave something on a model: no other test shall share it."""
    shared_model.cache_clear()
    yield
    shared_model.cache_clear()


def test_every_fault_has_its_law() -> None:
    assert set(CAUGHT_BY) == set(faults.NAMES)


@pytest.mark.parametrize("fault", CAUGHT_BY)
@torch.no_grad()
def test_the_law_holds_and_its_fault_breaks_it(fault: str) -> None:
    CAUGHT_BY[fault]()
    with faults.switched_on(fault), pytest.raises(AssertionError):
        CAUGHT_BY[fault]()
