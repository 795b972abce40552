"""What is left computes what the reference says, whatever was dropped where."""

from __future__ import annotations

import pytest
import torch

from foveate.compressor import Stage
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.laws.laws import (
    Case,
    check_batch_mates,
    check_counts,
    check_forward,
    check_generate,
    check_half_precision,
    check_without_mask,
)
from tests.laws.methods import DropAt, Every, First, MergePairs, TopNorm

MIXED = (2, 1, 0)  # two pictures, one, and a text-only row
SCHEDULES = {
    "0": DropAt((0,), (0.4,)),
    "2": DropAt((2,), (0.4,)),
    "0,1,3": DropAt((0, 1, 3), (0.7, 0.5, 0.4)),
}


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_uneven_rows_equal_the_reference(name: str, padding: str, positions: str) -> None:
    check_forward(Case(name, padding=padding, images=MIXED), TopNorm(), positions=positions)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_drops_between_decoder_layers_equal_the_reference(name: str, schedule: str) -> None:
    check_generate(Case(name, images=MIXED), SCHEDULES[schedule])


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "0"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_deeper_layers_may_number_their_tokens_anew(name: str, schedule: str) -> None:
    check_generate(Case(name, images=MIXED), SCHEDULES[schedule], positions="reindex")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_eager_attention_in_float32(name: str) -> None:
    check_generate(Case(name, "eager", torch.float32), DropAt((0, 2), (0.7, 0.5)))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_pruning_before_the_projector(name: str) -> None:
    check_forward(Case(name), TopNorm(Stage.VISION), keep=0.4)


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_merging_before_the_first_layer(name: str, positions: str) -> None:
    check_forward(Case(name, images=MIXED), MergePairs(), positions=positions)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_merging_between_layers(name: str) -> None:
    check_forward(Case(name, images=MIXED), MergePairs(Stage.DECODER, at=(1, 3)))


@pytest.mark.parametrize("method", [TopNorm(), First()], ids=["heaviest", "first"])
@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_step_of_a_generation(name: str, positions: str, method: TopNorm | First) -> None:
    check_generate(Case(name, images=MIXED), method, positions=positions)


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@torch.no_grad()
def test_videos_beside_images(name: str, positions: str) -> None:
    case = Case(name, images=(1, 0, 0), videos=(1, 1, 0))
    check_generate(case, TopNorm(), positions=positions)


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@torch.no_grad()
def test_videos_between_layers_and_before_the_projector(name: str) -> None:
    case = Case(name, images=(0, 0), videos=(1, 1))
    check_generate(case, DropAt((0, 2), (0.7, 0.5)))
    check_forward(case, TopNorm(Stage.VISION), keep=0.4)
    check_counts(case, Every(), 0.3)


@pytest.mark.parametrize("keep", [5, 0.3, 1])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_counts_are_exact(name: str, keep: int | float) -> None:
    check_counts(Case(name, images=MIXED), Every(), keep)
    check_counts(Case(name, images=MIXED), TopNorm(Stage.VISION), keep)


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_prompt_without_attention_mask(name: str, positions: str) -> None:
    check_without_mask(Case(name), First(), positions)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_batch_mates_and_order_do_not_matter(name: str) -> None:
    check_batch_mates(Case(name, images=MIXED), TopNorm(), keep=0.5)


@pytest.mark.parametrize("method", [TopNorm(), DropAt()], ids=["input", "decoder"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_half_precision_is_finite(name: str, method: TopNorm | DropAt) -> None:
    check_half_precision(Case(name, dtype=torch.bfloat16, images=MIXED), method)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 0.2, 0.9])
@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(("attn", "dtype"), [("sdpa", torch.float64), ("eager", torch.float32)])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_full_product(
    name: str, attn: str, dtype: torch.dtype, padding: str, positions: str, keep: int | float
) -> None:
    for seed in range(2):
        case = Case(name, attn, dtype, padding, MIXED, seed=seed)
        for method in (TopNorm(), Every()):
            check_forward(case, method, keep, positions)
