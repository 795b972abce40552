"""Every catalogued method on every family: exact counts, the reference's logits, independence."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import catalog
from foveate.compressor import Stage, resolve_keep
from foveate.errors import StageNotAvailable
from tests.families import reference
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.families.reference import Plan
from tests.laws.laws import (
    Case,
    assert_close,
    assert_same_state,
    assert_unchanged,
    check_batch_mates,
    copied,
    snapshot,
)

# TRIM needs a CLIP checkpoint that the tower comes from: tests/methods/test_trim.py makes one.
METHODS = [name for name in catalog.names() if name != "trim"]
ALL = [(method, family) for family in FAMILIES for method in METHODS]
# Families whose tower a method cannot change; any other refusal is a failure.
REFUSED = {
    "resize": {"internvl", "idefics3", "smolvlm", "mistral3"},
    "tome": {
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        *("internvl", "idefics3", "smolvlm", "mistral3", "gemma3"),
    },
}
FEW = ["llava", "llava_next", "qwen3_vl"]


def check_pruned_is_the_reference(case: Case, name: str, keep: int | float) -> None:
    """Exactly the asked count, and the logits of an independent recompute of what P says."""
    model, batch = case.model(), case.batch()
    model(**batch.inputs)  # transformers installs its own hooks in a first run
    before, state = copied(batch.inputs), snapshot(model)
    with foveate.attach(model, name, keep=keep) as run:
        out = model(**batch.inputs).logits
        items = run.items
    assert_unchanged(batch.inputs, before)
    assert_same_state(state, snapshot(model))
    assert [item.mapping.m for item in items] == [resolve_keep(keep, item.n) for item in items]
    assert out.isfinite().all()
    if run.method.stage in (Stage.IMAGE, Stage.ENCODER):
        return  # the tower itself is another one: tests/attach/test_tower.py
    for row, slots in enumerate(batch.slots):
        mine = [item.mapping for item in items if item.row == row]
        merges = [None if p.is_selection else p.to_matrix() for p in mine]
        if run.method.stage == Stage.VISION and any(m is not None for m in merges):
            continue  # merged before the projector: tests/attach/test_projection.py
        first = int(batch.inputs["attention_mask"][row].argmax())
        plan = Plan(
            [s - first for s in slots],
            lambda picture, layer, x, p=mine, m=merges: (p[picture].anchors, m[picture]),
        )
        truth = reference.logits(model, case.alone(batch.rows[row]), plan)
        got = out[row, first : first + len(truth)]
        assert_close(got, truth, case.dtype, f"{name}, row {row}")


@pytest.mark.parametrize(("name", "family"), ALL)
@torch.no_grad()
def test_every_method_on_every_family(name: str, family: str) -> None:
    case = Case(family, images=(2, 1))
    if family in REFUSED.get(name, ()):
        with pytest.raises(StageNotAvailable):
            check_pruned_is_the_reference(case, name, 0.3)
        return
    check_pruned_is_the_reference(case, name, 0.3)


@pytest.mark.parametrize("keep", [1, 7])
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_edge_budgets(name: str, keep: int) -> None:
    check_pruned_is_the_reference(Case("llava_next", padding="right"), name, keep)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
@torch.no_grad()
def test_every_method_on_videos(name: str, family: str) -> None:
    case = Case(family, images=(0, 0), videos=(1, 1))
    refused = name in ("resize", "tome") and family == "llava_onevision"  # pooled frames
    if refused or family in REFUSED.get(name, ()):
        with pytest.raises(StageNotAvailable):
            check_pruned_is_the_reference(case, name, 0.3)
        return
    check_pruned_is_the_reference(case, name, 0.3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FEW)
@torch.no_grad()
def test_no_method_depends_on_batch_mates(name: str, family: str) -> None:
    if family not in REFUSED.get(name, ()):
        check_batch_mates(Case(family, images=(1, 2)), catalog.make(name), keep=0.3)


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_half_precision_is_finite(name: str) -> None:
    case = Case("llava", dtype=torch.bfloat16)
    model, batch = case.model(), case.batch()
    with foveate.attach(model, name, keep=0.3):
        assert model(**batch.inputs).logits.isfinite().all()
