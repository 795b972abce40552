"""Labels of the original length train the right thing through any mapping."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.compressor import Stage
from tests.families.models import FAMILIES
from tests.laws.laws import Case, check_loss_and_gradients
from tests.laws.methods import DropAt, MergePairs, TopNorm

METHODS: dict[str, Any] = {
    "select": TopNorm(),
    "merge": MergePairs(),
    "between layers": DropAt((0, 2), (0.7, 0.5)),
    "merge between layers": MergePairs(Stage.DECODER),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients(name: str, method: str) -> None:
    check_loss_and_gradients(Case(name), METHODS[method])


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_with_reindexed_positions(name: str) -> None:
    check_loss_and_gradients(Case(name), TopNorm(), positions="reindex")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing(name: str, method: str) -> None:
    check_loss_and_gradients(Case(name), METHODS[method], checkpointing=True)
