"""What kernels are told that take no mask of queries and keys."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import foveate
from foveate.adapters import adapter_for
from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.mapping import Mapping
from tests.attach.backends import flash_like
from tests.families.models import FAMILIES


@dataclasses.dataclass(frozen=True)
class Above(Compressor):
    """Keeps the tokens that are longer than their mean: of every picture another number."""

    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        length = tokens.features.norm(dim=-1)
        return Mapping.select((length > length.mean()).nonzero().flatten(), tokens.n)


@dataclasses.dataclass(frozen=True)
class AboveInside(Above):
    """The same before a deeper layer."""

    stage: ClassVar[Stage] = Stage.DECODER
    layers: ClassVar[tuple[int, ...]] = (2,)  # type: ignore[assignment]


def two_rows(family: str) -> dict[str, Any]:
    """One prompt about two pictures, a row for each: of one length, so without padding."""
    batch = FAMILIES[family].batch(seed=2, images_per_row=(1,), dtype=torch.float32)
    rows = {k: torch.cat([v, v]) for k, v in batch.inputs.items() if isinstance(v, Tensor)}
    pixels = batch.inputs["pixel_values"]
    other = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(11))
    return rows | {"pixel_values": torch.cat([pixels, other])}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("method", [Above(), AboveInside()])
@pytest.mark.parametrize("family", ["llava", "internvl"])
@torch.no_grad()
def test_rows_that_get_uneven_say_which_keys_there_are(
    family: str, method: Compressor, masked: bool
) -> None:
    """No mask was needed before: what the kernel is told then is of the form that it takes."""
    inputs = two_rows(family)
    if not masked:
        del inputs["attention_mask"]
    model = FAMILIES[family].build("sdpa", torch.float32)
    asked = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}

    def logits() -> Tensor:
        with foveate.attach(model, method, _force=True) as run:
            out = model.generate(**inputs, **asked, do_sample=False)
        assert len({item.mapping.m for item in run.items}) == 2
        return torch.stack(out.logits)

    truth = logits()
    with flash_like(adapter_for(model).language) as called:
        torch.testing.assert_close(logits(), truth, atol=1e-5, rtol=1e-4)
    assert called
