"""Labels of the original length train the right thing through any mapping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

import foveate
from foveate.adapters import adapter_for
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoints_around_the_hooks(name: str, method: str) -> None:
    """FSDP's wrapper of a layer, and transformers' own up to 5.20, run its hooks once more."""
    case = Case(name)
    model, inputs = case.family.build(case.attn, case.dtype).train(), dict(case.batch().inputs)

    def gradients() -> tuple[Any, ...]:
        model.zero_grad()
        outputs = model(**inputs, use_cache=False).logits.float()
        outputs.log_softmax(-1)[..., 0].mean().backward()
        return outputs.detach(), *[p.grad for p in model.parameters() if p.grad is not None]

    with foveate.attach(model, METHODS[method], _force=True):
        expected = gradients()
        layers = list(adapter_for(model).decoder_layers)
        entered: list[int] = []
        layers[0].register_forward_pre_hook(lambda module, args: entered.append(0))
        apply_activation_checkpointing(model, check_fn=lambda module: module in layers)
        found = gradients()
    assert len(entered) == 2, "the layer's hooks ran in the forward pass alone"
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
