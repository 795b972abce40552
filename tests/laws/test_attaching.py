"""On and off again without a trace, and clear errors for what cannot be done."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import foveate
from foveate.errors import AttachError, BudgetError, UnknownName, UnsupportedModel
from tests.families.models import FAMILIES
from tests.laws.laws import Case, assert_same_state, check_detach_restores, generate, snapshot
from tests.laws.methods import DropAt, Every, TopNorm


@pytest.mark.parametrize("error", [False, True], ids=["", "by an exception"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_leaving_the_context_restores_everything(name: str, error: bool) -> None:
    check_detach_restores(Case(name, dtype=torch.float32), DropAt((0, 2), (0.7, 0.5)), error)


@torch.no_grad()
def test_an_exception_inside_a_layer_restores_everything() -> None:
    case = Case("llava", dtype=torch.float32)
    model, batch = case.model(), case.batch()
    stock = model(**batch.inputs).logits
    before = snapshot(model)

    def fail(*_: object) -> None:
        raise RuntimeError("inside a layer")

    with foveate.attach(model, Every(), _force=True):
        handle = model.model.language_model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="inside a layer"):
            model(**batch.inputs)
        handle.remove()
    assert_same_state(before, snapshot(model))
    assert torch.equal(model(**batch.inputs).logits, stock)


@torch.no_grad()
def test_detach_without_a_context_and_twice() -> None:
    case = Case("llava", dtype=torch.float32)
    model = case.model()
    generate(case, case.batch())
    before = snapshot(model)
    run = foveate.attach(model, Every(), keep=3)
    run.detach()
    run.detach()
    assert_same_state(before, snapshot(model))


def test_attaching_twice_is_an_error() -> None:
    model = Case("llava", dtype=torch.float32).model()
    with foveate.attach(model, Every(), keep=3), pytest.raises(AttachError, match="already"):
        foveate.attach(model, TopNorm(), keep=3)
    with foveate.attach(model, TopNorm(), keep=3):
        pass


def test_an_unsupported_model_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="Linear"):
        foveate.attach(nn.Linear(2, 2), Every(), keep=3)


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, float("nan"), True])
def test_a_budget_out_of_range(keep: float) -> None:
    with pytest.raises(BudgetError):
        foveate.attach(Case("llava", dtype=torch.float32).model(), Every(), keep=keep)


def test_a_budget_is_needed() -> None:
    with pytest.raises(BudgetError, match="keep"):
        foveate.attach(Case("llava", dtype=torch.float32).model(), Every())


def test_unknown_positions() -> None:
    model = Case("llava", dtype=torch.float32).model()
    with pytest.raises(UnknownName, match="positions"):
        foveate.attach(model, Every(), keep=3, positions="renumbered")


@torch.no_grad()
def test_more_tokens_than_there_are() -> None:
    case = Case("llava", dtype=torch.float32)
    with pytest.raises(BudgetError, match="n=25"), foveate.attach(case.model(), Every(), keep=26):
        case.model()(**case.batch().inputs)


@pytest.mark.parametrize("method", [TopNorm(), DropAt()], ids=["input", "decoder"])
@torch.no_grad()
def test_chunked_prefill_is_refused(method: TopNorm | DropAt) -> None:
    case = Case("llava", dtype=torch.float32)
    with (
        pytest.raises(AttachError, match=r"[Cc]hunk"),
        foveate.attach(case.model(), method, _force=True),
    ):
        generate(case, case.batch(), prefill_chunk_size=16)


@torch.no_grad()
def test_a_compressed_cache_does_not_outlive_its_compressor() -> None:
    case = Case("llava", dtype=torch.float32)
    model, batch = case.model(), case.batch()
    with foveate.attach(model, TopNorm(), keep=5):
        out = generate(case, batch)
    with pytest.raises(AttachError, match="compressed"):
        model(input_ids=out.sequences[:, -1:], past_key_values=out.past_key_values)
