"""Features that were stored one by one serve a batch as if it had been encoded in one call."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.attach import encode
from foveate.compressor import Reads
from foveate.training.features import Packed, join, pack
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.laws.laws import Case
from tests.laws.methods import TopNorm
from tests.training import needs_features

pytestmark = needs_features

READS = frozenset({Reads.ATTENTION, Reads.KEYS, Reads.CLS})


def check(case: Case) -> None:
    model, batch = case.model(), case.batch()
    parts: list[Packed] = []
    for row in batch.rows:
        if row.pictures:
            parts.append(pack(encode(model, case.alone(row)), rows=True))
    shared = join(parts)
    inputs = {k: v for k, v in batch.inputs.items() if not k.startswith("pixel")}
    inputs |= shared.inputs
    for k, v in shared.inputs.items():
        if isinstance(v, torch.Tensor):
            assert torch.equal(v, batch.inputs[k])
    expected = model(**batch.inputs, use_cache=False).logits
    torch.testing.assert_close(model(**inputs, use_cache=False).logits, expected)
    with foveate.attach(model, TopNorm(), keep=3):
        expected = model(**batch.inputs, use_cache=False).logits
    with foveate.attach(model, TopNorm(), keep=3, encoded=shared) as run:
        found = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(found, expected)
    assert len(run.items) == sum(len(row.pictures) for row in batch.rows)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_images(name: str) -> None:
    check(Case(name, images=(2, 1)))


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@torch.no_grad()
def test_videos(name: str) -> None:
    check(Case(name, images=(0, 0), videos=(1, 1)))


@torch.no_grad()
def test_what_was_read_of_the_tower_follows_its_picture() -> None:
    case = Case("llava_next", images=(1, 2))
    model, batch = case.model(), case.batch()
    whole = encode(model, batch.inputs, READS).captures[0]
    shared = join([pack(encode(model, case.alone(r), READS), rows=True) for r in batch.rows])
    (found,) = shared.captures
    assert found.rows is not None and whole.rows is not None
    for a, b in zip(found.layouts, whole.layouts, strict=True):
        assert a.grids == b.grids and a.side == b.side and a.n == b.n
        for name in ("attention", "keys"):
            torch.testing.assert_close(a.pool(getattr(found, name)), b.pool(getattr(whole, name)))
        assert a.rows is not None and b.rows is not None
        torch.testing.assert_close(found.rows[a.rows], whole.rows[b.rows])
        assert found.cls is not None and whole.cls is not None
        torch.testing.assert_close(found.cls[a.tile], whole.cls[b.tile])
