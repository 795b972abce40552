"""Where nothing is dropped nothing changes, to the last bit."""

from __future__ import annotations

import pytest
import torch

from foveate.compressor import Stage
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.laws.laws import (
    Case,
    check_keep_all_is_untouched,
    check_select_all_is_exact,
    check_text_only_is_untouched,
)
from tests.laws.methods import Every, SelectAll, TopNorm

STAGES = {
    "vision": SelectAll(Stage.VISION),
    "input": SelectAll(Stage.INPUT),
    "decoder": SelectAll(Stage.DECODER, at=(0, 2)),
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_keep_1_leaves_model_and_cache_untouched(name: str) -> None:
    check_keep_all_is_untouched(Case(name, dtype=torch.float32), Every())


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_select_all_through_every_gather_changes_no_bit(name: str, stage: str, attn: str) -> None:
    check_select_all_is_exact(Case(name, attn, torch.float32), STAGES[stage])


@pytest.mark.slow
@pytest.mark.parametrize("images", [(1,), (2, 1, 0)])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_select_all_with_one_or_many_pictures(
    name: str, stage: str, attn: str, images: tuple[int, ...]
) -> None:
    check_select_all_is_exact(Case(name, attn, torch.float32, images=images), STAGES[stage])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@torch.no_grad()
def test_select_all_of_videos_changes_no_bit(name: str, stage: str) -> None:
    case = Case(name, dtype=torch.float32, images=(0, 1), videos=(1, 1))
    check_select_all_is_exact(case, STAGES[stage])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_text_without_pictures_is_untouched(name: str) -> None:
    check_text_only_is_untouched(Case(name, images=(0, 0)), TopNorm())
