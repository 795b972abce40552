"""Features that were stored one by one serve a batch as if it had been encoded in one call."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.adapters import adapter_for
from foveate.attach import encode
from foveate.compressor import Reads
from foveate.training.features import Packed, join, pack
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.laws.laws import Case
from tests.laws.methods import TopNorm
from tests.training import needs_features

pytestmark = needs_features

READS = frozenset({Reads.ATTENTION, Reads.KEYS, Reads.CLS})


def check(case: Case, before: bool = False) -> None:
    model, batch = case.model(), case.batch()
    project = adapter_for(model).project if before else None
    parts: list[Packed] = []
    for row in batch.rows:
        if row.pictures:
            encoded = encode(model, case.alone(row))
            parts.append(pack(encoded, rows=not before, project=project))
    if before and case.name in SMALLER:
        modality = "video" if case.videos else "image"
        assert all(f"{modality}.specials" in p.tensors for p in parts)
        assert not any(name.startswith(f"{modality}.pooled") for p in parts for name in p.tensors)
    shared = join(parts, project=project)
    again = join(parts, project=project)  # reading changes nothing of what is stored
    assert shared.inputs.keys() == again.inputs.keys()
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


# Towers narrower than the language model, and one row of the tower for each token.
SMALLER = {"llava", "llava_gqa", "llava_next", "paligemma", "video_llava"}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_images(name: str, before: bool) -> None:
    check(Case(name, images=(2, 1)), before)


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
@torch.no_grad()
def test_videos(name: str) -> None:
    check(Case(name, images=(0, 0), videos=(1, 1)))
    check(Case(name, images=(0, 0), videos=(1, 1)), before=True)


@torch.no_grad()
def test_what_is_stored_before_the_projector_gives_the_same() -> None:
    case = Case("llava_next", images=(2, 1))
    model, row = case.model(), case.batch().rows[0]
    encoded, project = encode(model, case.alone(row)), adapter_for(model).project
    behind, before = pack(encoded), pack(encoded, project=project)
    assert before.nbytes < 0.8 * behind.nbytes
    a, b = join([behind]), join([before], project=project)
    for one, other in zip(
        a.inputs["mm_encoder_outputs"]["image"].pooler_output,
        b.inputs["mm_encoder_outputs"]["image"].pooler_output,
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    # What is not the model's own projection is not relied on.
    off = pack(encoded, project=lambda rows: project(rows) * (1 + 1e-12))
    assert off.tensors.keys() == behind.tensors.keys()


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
