"""Pictures encoded once and shared give what encoding them again gives."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.attach import encode
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.laws.laws import Case, generate
from tests.laws.methods import First, TopNorm


def check(case: Case, positions: str) -> None:
    model, batch = case.model(), case.batch()
    stock = generate(case, batch)
    shared = encode(model, batch.inputs)
    whole = {**batch.inputs}
    for method in (TopNorm(), First()):
        with foveate.attach(model, method, positions=positions, _force=True):
            plain = generate(case, batch)
        batch.inputs = shared.with_text(whole)
        with foveate.attach(model, method, positions=positions, encoded=shared, _force=True):
            again = generate(case, batch)
        assert torch.equal(plain.sequences, again.sequences)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, again.logits, strict=True))
        # With nothing attached they serve the full model as well.
        full = generate(case, batch)
        assert torch.equal(full.sequences, stock.sequences)
        batch.inputs = whole


@pytest.mark.parametrize("positions", ["original", "reindex"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_images(name: str, positions: str) -> None:
    check(Case(name, dtype=torch.float32, images=(2, 1)), positions)


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@torch.no_grad()
def test_videos(name: str) -> None:
    check(Case(name, dtype=torch.float32, images=(0, 0), videos=(1, 1)), "original")
