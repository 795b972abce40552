"""The reference itself is proven before anything is measured by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.families import reference
from tests.families.family import Batch, Family
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.families.reference import Plan, keep_all

ATTENTION = ("sdpa", "eager")


def single(family: Family, images: int = 1, videos: int = 0, seed: int = 3) -> Batch:
    return family.pad([family.prompt(seed, 0, images, videos)], dtype=torch.float64)


def every_third(picture: int, layer: int, features: Tensor) -> tuple[Tensor, None]:
    return torch.arange(0, len(features), 3), None


def first_three(picture: int, layer: int, features: Tensor) -> tuple[Tensor, None]:
    """Few enough that M-RoPE ids have a gap, which a dense rank closes."""
    return torch.arange(3), None


def off(a: Tensor, b: Tensor) -> float:
    """Largest difference, in standard deviations of logits (tied heads make them large)."""
    known = ~a.isnan()
    return float(((a - b)[known].abs().max() / b[known].std().clamp(min=1)).detach())


@pytest.mark.parametrize("attn", ATTENTION)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_with_nothing_dropped_the_reference_is_the_stock_model(name: str, attn: str) -> None:
    family = FAMILIES[name]
    model = family.build(attn, torch.float64)
    for batch in [single(family), single(family, 2)] + (
        [single(family, 0, 1), single(family, 1, 1)] if family.video else []
    ):
        stock = reference.stock_logits(model, batch.inputs)
        for layers, positions in [((0, 2), "original"), ((0,), "reindex")]:
            plan = Plan(batch.slots[0], keep_all, layers, positions)
            if positions == "reindex" and "video_grid_thw" in batch.inputs:
                # Frames may be several ids apart; a dense rank closes even these gaps.
                continue
            out = reference.logits(model, batch.inputs, plan)
            assert off(out, stock) < 1e-6


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_everything_that_can_go_wrong_shows_in_the_logits(name: str) -> None:
    family = FAMILIES[name]
    model = family.build("sdpa", torch.float64)
    batch = single(family)
    slots = batch.slots[0]
    stock = reference.stock_logits(model, batch.inputs)
    at_0 = reference.logits(model, batch.inputs, Plan(slots, first_three))
    at_2 = reference.logits(model, batch.inputs, Plan(slots, first_three, (2,)))
    moved = reference.logits(model, batch.inputs, Plan(slots, first_three, positions="reindex"))
    shifted = reference.logits(
        model, batch.inputs, Plan(slots, lambda p, k, x: (torch.arange(1, 4), None))
    )
    last = [out[-1] for out in (stock, at_0, at_2, moved, shifted)]
    for i, a in enumerate(last):
        for b in last[:i]:
            assert off(a, b) > 1e-3


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_holds_the_same_prompts(name: str, padding: str) -> None:
    family = FAMILIES[name]
    model = family.build("sdpa", torch.float64)
    batch = family.batch(seed=3, padding=padding, images_per_row=[2, 1, 0], dtype=torch.float64)
    out = model(**batch.inputs).logits
    for row, prompt in enumerate(batch.rows):
        alone = model(**family.pad([prompt], dtype=torch.float64).inputs).logits[0]
        real = batch.inputs["attention_mask"][row].bool()
        assert (
            off(out[row, real], alone) < 1e-5
        )  # cos and sin are float32: a shift by padding shows


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_greedy_recomputation_is_stock_generation(name: str) -> None:
    family = FAMILIES[name]
    model = family.build("sdpa", torch.float64)
    batch = single(family)
    out = model.generate(
        **batch.inputs, max_new_tokens=4, output_logits=True, return_dict_in_generate=True
    )
    tokens, scores = reference.greedy(
        model,
        batch.inputs,
        Plan(batch.slots[0], keep_all),
        4,
        banned=model.generation_config.suppress_tokens,
        suffix_type=family.suffix_type,
    )
    assert out.sequences[0, -4:].tolist() == tokens
    assert off(torch.cat(out.logits), scores) < 1e-5  # generate returns float32


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@torch.no_grad()
def test_videos_are_seen(name: str) -> None:
    family = VIDEO_FAMILIES[name]
    model = family.build("sdpa", torch.float64)
    batch = single(family, 0, 1)
    stock = reference.stock_logits(model, batch.inputs)
    out = reference.logits(model, batch.inputs, Plan(batch.slots[0], every_third))
    assert off(out[-1], stock[-1]) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_matters(name: str) -> None:
    """No weight is left at zero, which would hide whatever flows through it."""
    model = FAMILIES[name].build()
    for key, parameter in model.named_parameters():
        assert float(parameter.detach().abs().mean()) > 1e-3, key
