"""What cannot work is refused in at most four lines; a prompt without pictures is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import foveate
from foveate.attach import encode
from foveate.errors import (
    AttachError,
    BudgetError,
    FoveateError,
    StageNotAvailable,
    UnknownName,
    UnsupportedModel,
)
from tests.families.family import IMAGE
from tests.families.models import FAMILIES


def refused(kind: type[FoveateError], call: Callable[[], Any]) -> str:
    """The message, which is short and is no bare repr."""
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert 1 <= len(message.splitlines()) <= 4
    assert all(len(line) <= 160 for line in message.splitlines())
    return message


@pytest.mark.parametrize("keep", [0, -4, 0.0, -0.5, 1.5, float("nan"), float("inf"), True])
def test_a_budget_out_of_range(keep: float) -> None:
    model = FAMILIES["llava"].build()
    message = refused(BudgetError, lambda: foveate.attach(model, "pool", keep=keep))
    assert repr(keep) in message
    assert "keep=64" in message


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("keep", ["64", [64], torch.tensor(3)])
def test_a_budget_of_another_type(keep: Any) -> None:
    model = FAMILIES["llava"].build()
    assert "keep must be" in refused(BudgetError, lambda: foveate.attach(model, "pool", keep=keep))


@torch.no_grad()
def test_a_budget_that_one_image_of_the_batch_cannot_meet() -> None:
    model, batch = (
        FAMILIES["llava_next"].build(),
        FAMILIES["llava_next"].batch(images_per_row=[1, 2]),
    )
    sizes = sorted({len(slots) for row in batch.slots for slots in row})
    assert len(sizes) > 1
    with foveate.attach(model, "pool", keep=sizes[0] + 1):
        message = refused(BudgetError, lambda: model(**batch.inputs))
    assert f"n={sizes[0]}" in message
    with foveate.attach(model, "pool", keep=sizes[0]) as run:
        model(**batch.inputs)
    assert {item.mapping.m for item in run.items} == {sizes[0]}


def test_names_that_do_not_exist() -> None:
    model = FAMILIES["llava"].build()

    def attach(name: str, **fields: Any) -> str:
        return refused(UnknownName, lambda: foveate.attach(model, name, **fields))

    assert "'visionzip'" in attach("vision-zip", keep=4)
    assert "'authors-64'" in attach("visionzip", preset="authors-63")
    assert "'seed'" in attach("random", keep=4, sed=1)
    assert "original, reindex" in attach("pool", keep=4, positions="both")


def test_a_preset_has_its_own_budget() -> None:
    model = FAMILIES["llava"].build()
    message = refused(
        BudgetError, lambda: foveate.attach(model, "divprune", preset="authors-64", keep=4)
    )
    assert "states its own budget" in message


@pytest.mark.parametrize(("method", "family"), [("tome", "qwen2_vl"), ("resize", "idefics3")])
@torch.no_grad()
def test_a_stage_that_the_model_cannot_serve(method: str, family: str) -> None:
    model, inputs = FAMILIES[family].build(), FAMILIES[family].inputs()

    def call() -> None:
        with foveate.attach(model, method, keep=3):
            model(**inputs)

    message = refused(StageNotAvailable, call)
    assert "not available" in message


@torch.no_grad()
def test_placeholders_without_pictures() -> None:
    """The prompt speaks of an image, and none came with it, or one that was encoded before."""
    model, inputs = FAMILIES["llava"].build(), dict(FAMILIES["llava"].inputs())
    del inputs["pixel_values"]
    with foveate.attach(model, "pool", keep=3):
        message = refused(AttachError, lambda: model(**inputs))
    assert "no image was encoded while attached" in message
    encoded = encode(model, FAMILIES["llava"].inputs())
    with foveate.attach(model, "pool", keep=3):
        refused(AttachError, lambda: model.generate(**encoded.inputs, max_new_tokens=2))
    with foveate.attach(model, "pool", keep=3, encoded=encoded) as run:
        model.generate(**encoded.inputs, max_new_tokens=2)
    assert run.report().entering == 3 * run.report().images


@torch.no_grad()
def test_pictures_without_placeholders() -> None:
    """Transformers refuses this itself; attached or not, the same error comes out."""
    model, inputs = FAMILIES["llava"].build(), dict(FAMILIES["llava"].inputs())
    inputs["input_ids"] = inputs["input_ids"].where(inputs["input_ids"] != IMAGE, 20)
    with pytest.raises(Exception, match=r"[Ii]mage") as stock:
        model(**inputs)
    with foveate.attach(model, "pool", keep=3), pytest.raises(type(stock.value)) as attached:
        model(**inputs)
    assert str(attached.value) == str(stock.value)


@pytest.mark.parametrize("method", ["visionzip", "mmtok", "tome"])
@torch.no_grad()
def test_a_prompt_without_pictures(method: str) -> None:
    """Whatever the method reads, and wherever it acts, there is nothing to do."""
    model, inputs = FAMILIES["llava"].build(), FAMILIES["llava"].inputs(images_per_row=[0, 0])
    stock = model(**inputs).logits
    with foveate.attach(model, method, keep=3) as run:
        assert model(**inputs).logits.equal(stock)
    assert not run.items


def test_a_model_without_an_adapter() -> None:
    message = refused(UnsupportedModel, lambda: foveate.attach(nn.Linear(2, 2), "pool", keep=3))
    assert all(name in message for name in ("Linear", "llava", "qwen3_vl"))
    assert "docs/adding-a-model.md" in message
