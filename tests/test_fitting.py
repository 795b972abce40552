"""VTW's layer and FitPrune's quotas, found on tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foveate
from foveate import fitting
from foveate.errors import InputError
from foveate.methods.fitprune import FitPrune
from tests.families.family import LAYERS
from tests.families.models import FAMILIES
from tests.laws.laws import Case


def prompts(case: Case, count: int = 3) -> list[dict[str, Any]]:
    return [case.alone(case.family.batch(seed=i, images_per_row=[1]).rows[0]) for i in range(count)]


def kl_of(case: Case, layer: int, given: list[dict[str, Any]]) -> float:
    """Sum p_K (log p_K - log p), written out."""
    model, costs = case.model(), []
    for inputs in given:
        full = model(**inputs).logits[0, -1].float().softmax(-1)
        with foveate.attach(model, foveate.VTW(layer=layer)):
            found = model(**inputs).logits[0, -1].float().softmax(-1)
        costs.append(float((found * (found.log() - full.log())).sum()))
    return sum(costs) / len(costs)


@torch.no_grad()
def test_the_layer_is_the_first_whose_withdrawal_costs_little() -> None:
    case = Case("llava", dtype=torch.float32)
    given = prompts(case)
    costs = [kl_of(case, layer, given) for layer in range(1, LAYERS)]
    assert costs[0] > 0.01  # the random model does look at its picture
    for place, cost in enumerate(costs, start=1):
        expected = next((k for k, c in enumerate(costs, 1) if c <= cost * 1.001), LAYERS)
        found = fitting.withdrawal_layer(case.model(), given, eta=cost * 1.001, first=1)
        assert found == expected <= place
    assert fitting.withdrawal_layer(case.model(), given, eta=0.0, first=1) == LAYERS


@torch.no_grad()
def test_what_the_search_finds_can_be_attached() -> None:
    case = Case("llava", dtype=torch.float32)
    model, (first, *_) = case.model(), prompts(case)
    for eta, ran in ((1e9, 2), (0.0, LAYERS)):
        layer = fitting.withdrawal_layer(model, [first], eta=eta, first=2)
        with foveate.attach(model, "vtw", layer=layer) as run:
            model(**first)
        (item,) = run.items
        assert item.average(LAYERS) == item.n * ran / LAYERS


@torch.no_grad()
def test_the_side_of_the_padding_does_not_matter() -> None:
    left, right = (Case("llava", dtype=torch.float32, padding=side) for side in ("left", "right"))
    batches = [case.family.batch(seed=0, padding=case.padding).inputs for case in (left, right)]
    assert not batches[0]["attention_mask"].bool().all()
    found = [fitting._next_token(left.model(), inputs) for inputs in batches]
    torch.testing.assert_close(*found)


def test_a_prefix_is_the_longest_that_leaves_enough() -> None:
    score = torch.tensor([0.4, 0.1, 0.3, 0.2])
    # In order 0.1, 0.2, 0.3, 0.4: without the first 0.9 is left, without two 0.7, three 0.4.
    assert fitting._prefix(score, 0.65).tolist() == [False, True, False, True]
    assert fitting._prefix(score, 0.95).tolist() == [False] * 4
    assert fitting._prefix(score, 0.0).tolist() == [True] * 4


@torch.no_grad()
def test_quotas_save_what_was_asked() -> None:
    case = Case("llava", dtype=torch.float32)
    given, model = prompts(case), case.model()
    found = fitting.quotas(model, given, reduction=0.4)
    assert len(found) == LAYERS and found[-1] == 0 and all(0 <= share < 1 for share in found)
    assert sum(found) < 1
    with foveate.attach(model, FitPrune(quotas=found)) as run:
        model(**given[0])
    (item,) = run.items
    # By the count entering each layer: attention and MLP of 64 and 96 wide layers.
    n, config = item.n, model.config.get_text_config()
    d, inner = config.hidden_size, config.intermediate_size
    steps = {layer: p.m for layer, p in item.steps}
    now, left = n, 0
    for layer in range(LAYERS):
        now = steps.get(layer, now)
        left += 4 * now * d * d + 2 * now * now * d + 3 * now * d * inner
    saved = 1 - left / (LAYERS * (4 * n * d * d + 2 * n * n * d + 3 * n * d * inner))
    assert 0.4 <= saved < 0.6
    assert fitting.quotas(model, given, reduction=0.1) != found


@torch.no_grad()
def test_what_cannot_be_fitted_on_is_refused() -> None:
    model = FAMILIES["llava"].build()
    with pytest.raises(InputError, match="at least one prompt"):
        fitting.withdrawal_layer(model, [])
    with pytest.raises(InputError, match="between 0 and 1"):
        fitting.quotas(model, prompts(Case("llava", dtype=torch.float32)), reduction=1.5)
    two = Case("llava", dtype=torch.float32)
    row = two.family.batch(images_per_row=[2]).rows[0]
    with pytest.raises(InputError, match="one picture each"):
        fitting.quotas(two.model(), [two.alone(row)], reduction=0.5)
