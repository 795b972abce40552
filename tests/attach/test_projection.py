"""Adapters: where the slots are, what is read there, and the model's own projection of it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch

import foveate
from foveate.compressor import Compressor, Reads, Stage, VisualTokens
from foveate.mapping import Mapping
from tests.families.models import FAMILIES, VIDEO_FAMILIES

SEEN: list[VisualTokens] = []


@dataclasses.dataclass(frozen=True)
class Reader(Compressor):
    """Reads everything; P is the identity, written as a merge so that slots are projected anew."""

    stage: ClassVar[Stage] = Stage.VISION
    reads: ClassVar[frozenset[Reads]] = frozenset(set(Reads) - {Reads.QUESTION_TEXT})

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        SEEN.append(tokens)
        every = torch.arange(tokens.n)
        return Mapping.sparse(every, every, torch.ones(tokens.n), n=tokens.n, anchors=every)


@torch.no_grad()
def read(family: str, attn: str, **pictures: Any) -> list[VisualTokens]:
    """What a method sees; asserts that projecting slot by slot changes no logit."""
    # Stock eager attention gives NaN for padding in float64: the lowest value overflows.
    dtype, allowed = (torch.float64, 1e-5) if attn == "sdpa" else (torch.float32, 1e-4)
    model = FAMILIES[family].build(attn, dtype)
    inputs = FAMILIES[family].inputs(seed=1, dtype=dtype, **pictures)
    stock = model(**inputs).logits
    SEEN.clear()
    with foveate.attach(model, Reader(), _force=True):
        out = model(**inputs).logits
    torch.testing.assert_close(out, stock, rtol=0, atol=allowed)
    return list(SEEN)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_slots_are_projected_as_the_model_does(family: str, attn: str) -> None:
    seen = read(family, attn, images_per_row=[2, 1])
    assert len(seen) == 3
    for tokens in seen:
        n = tokens.n
        assert sum(grid.size for grid in tokens.grids) == n
        for part in (tokens.attention, tokens.keys, tokens.wide_attention, tokens.wide_keys):
            assert part is not None
            assert len(part) == n
            assert part.isfinite().all()
        assert tokens.question is not None
        assert len(tokens.question) > 0


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_video_slots_are_projected_as_the_model_does(family: str) -> None:
    for tokens in read(family, "sdpa", images_per_row=[0, 0], videos_per_row=[1, 1]):
        assert tokens.is_video
        assert tokens.grids[0].frames > 1
        assert sum(grid.size for grid in tokens.grids) == tokens.n


def eager_maps(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """(images, heads, tokens, tokens) attention of every tower block, by eager attention."""
    model.set_attn_implementation("eager")
    tower = model.model.vision_tower
    return list(tower(inputs["pixel_values"], output_attentions=True).attentions)


@torch.no_grad()
def test_cls_attention_is_the_eager_maps_row() -> None:
    """On sdpa, which returns no maps, against the same tower's eager maps."""
    (first,) = read("llava", "sdpa", images_per_row=[1])
    model = FAMILIES["llava"].build("sdpa", torch.float64)
    inputs = FAMILIES["llava"].inputs(seed=1, dtype=torch.float64, images_per_row=[1])
    truth = eager_maps(model, inputs)[-2][0].mean(0)[0, 1:]  # vision_feature_layer is -2
    assert first.attention is not None
    torch.testing.assert_close(first.attention, truth.float(), rtol=0, atol=2e-6)


@torch.no_grad()
def test_without_a_cls_attention_is_what_eager_maps_give_on_average() -> None:
    (first,) = read("paligemma", "sdpa", images_per_row=[1])
    model = FAMILIES["paligemma"].build("sdpa", torch.float64)
    inputs = FAMILIES["paligemma"].inputs(seed=1, dtype=torch.float64, images_per_row=[1])
    truth = eager_maps(model, inputs)[-1][0].mean(0).mean(0)
    assert first.attention is not None
    torch.testing.assert_close(first.attention, truth.float(), rtol=0, atol=2e-6)
