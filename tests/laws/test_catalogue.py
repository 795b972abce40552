"""Every catalogued method on every family: exact counts, the reference's logits, independence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import catalog
from foveate.attach import Item
from foveate.compressor import Compressor, Stage, resolve_keep
from foveate.errors import BudgetError, StageNotAvailable
from foveate.methods.vtw import VTW
from tests.families import reference
from tests.families.family import LAYERS
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.families.reference import Plan
from tests.laws.laws import (
    Case,
    assert_close,
    assert_same_state,
    assert_unchanged,
    check_batch_mates,
    copied,
    ready,
    snapshot,
)

# TRIM needs a CLIP checkpoint that the tower comes from: tests/methods/test_trim.py makes one.
METHODS = [name for name in catalog.names() if name != "trim"]
# Families whose tower a method cannot change; any other refusal is a failure.
REFUSED = {
    "resize": {"internvl", "idefics3", "smolvlm", "mistral3"},
    "tome": {
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        *("internvl", "idefics3", "smolvlm", "mistral3", "gemma3"),
    },
}
FEW = ["llava", "llava_next", "qwen3_vl"]
# Methods that act between decoder layers, whose budget is an average; and one stage of another.
INSIDE = {
    name: catalog.make(name)
    for name in METHODS
    if catalog.method_class(name).stage == Stage.DECODER
}
INSIDE["polymorphic's second stage"] = catalog.make("polymorphic", stages="prune")
INSIDE["sparsevlm v2"] = catalog.make("sparsevlm", recycle=False, gravity=True, heads=14 / 32)
OUTSIDE = [name for name in METHODS if name not in INSIDE]
# Of the former, those that drop before the first layer: no layer runs on everything.
AT_ONCE = [name for name, method in INSIDE.items() if 0 in method.layers_in(LAYERS)]
LATE = [name for name in INSIDE if name not in AT_ONCE]
# The first layers of a tiny model run on everything, so less than this cannot be reached.
AVERAGE = 0.7


def check_pruned_is_the_reference(
    case: Case, method: str | Compressor, keep: int | float | None, **options: Any
) -> list[Item]:
    """The asked count, and the logits of an independent recompute of what P says."""
    model, batch = case.model(), case.batch()
    method = ready(method, model)
    model(**batch.inputs)  # transformers installs its own hooks in a first run
    before, state = copied(batch.inputs), snapshot(model)
    with foveate.attach(model, method, keep=keep, **options) as run:
        out = model(**batch.inputs).logits
        items = run.items
    assert_unchanged(batch.inputs, before)
    assert_same_state(state, snapshot(model))
    assert out.isfinite().all()
    if keep is not None:
        check_budget(run.method, items, keep)
    if run.method.stage in (Stage.IMAGE, Stage.ENCODER):
        return items  # the tower itself is another one: tests/attach/test_tower.py
    for row, slots in enumerate(batch.slots):
        mine = [item for item in items if item.row == row]
        merged = any(not p.is_selection for item in mine for k, p in item.steps if k is None)
        if run.method.stage == Stage.VISION and merged:
            continue  # merged before the projector: tests/attach/test_projection.py
        first = int(batch.inputs["attention_mask"][row].argmax())
        plan = recorded(mine, [s - first for s in slots], run.positions)
        truth = reference.logits(model, case.alone(batch.rows[row]), plan)
        got = out[row, first : first + len(truth)]
        assert_close(got, truth, case.dtype, f"{run.method}, row {row}")
    return items


def check_budget(method: Compressor, items: list[Item], keep: int | float) -> None:
    """Exactly the count; between decoder layers the average, to what whole tokens allow."""
    for item in items:
        wanted = resolve_keep(keep, item.n)
        last = method.parts[-1]
        if last.stage == Stage.DECODER and 0 not in last.layers_in(LAYERS):
            # VTW withdraws everything at once: its layer is whole, less than one may be missing.
            under = item.n / LAYERS if isinstance(method, VTW) else 0.5
            assert -under - 1e-9 <= item.average(LAYERS) - wanted <= 0.5 + 1e-9
        else:
            assert item.entering == item.mapping.m == wanted


def recorded(items: list[Item], slots: list[Tensor], positions: str) -> Plan:
    """What was decided, for the reference to do again."""
    steps = [{0 if k is None else k: p for k, p in item.steps} for item in items]

    def decide(picture: int, layer: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        p = steps[picture].get(layer)
        if p is None:
            return reference.keep_all(picture, layer, x)
        return p.anchors, None if p.is_selection else p.to_matrix()

    layers = sorted({layer for each in steps for layer in each}) or (0,)
    inside = any(k is not None for item in items for k, _ in item.steps)
    return Plan(slots, decide, layers, positions, inside)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OUTSIDE)
@torch.no_grad()
def test_every_method_on_every_family(name: str, family: str) -> None:
    case = Case(family, images=(2, 1))
    if family in REFUSED.get(name, ()):
        with pytest.raises(StageNotAvailable):
            check_pruned_is_the_reference(case, name, 0.3)
        return
    check_pruned_is_the_reference(case, name, 0.3)


@pytest.mark.parametrize("images", [(2, 1), (1, 0, 2)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", INSIDE)
@torch.no_grad()
def test_every_method_between_layers_on_every_family(
    name: str, family: str, images: tuple[int, ...]
) -> None:
    padding = "left" if len(images) == 2 else "right"
    check_pruned_is_the_reference(
        Case(family, images=images, padding=padding), INSIDE[name], AVERAGE
    )


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("name", INSIDE)
@torch.no_grad()
def test_deeper_layers_number_their_tokens_anew(name: str, family: str) -> None:
    case = Case(family, images=(2, 1))
    check_pruned_is_the_reference(case, INSIDE[name], AVERAGE, positions="reindex")


SCHEDULES = {
    "pyramiddrop": (0.5, 0.25, 0.125),
    "sparsevlm": (0.6, 0.4, 0.2),
    "mustdrop": (0.9, 0.8, 0.5),
    "fastv": (0.3,),
    "dart": (12,),
}


@pytest.mark.parametrize("name", SCHEDULES)
@torch.no_grad()
def test_a_schedule_is_followed_outright(name: str) -> None:
    schedule = SCHEDULES[name]
    method = catalog.make(name, schedule=schedule)
    for item in check_pruned_is_the_reference(Case("llava_next", images=(2, 1)), method, None):
        wanted = [s if isinstance(s, int) else resolve_keep(s, item.n) for s in schedule]
        assert [p.m for _, p in item.steps] == wanted
    with pytest.raises(BudgetError, match="states its own budget"):
        foveate.attach(Case("llava").model(), method, keep=0.5)
    wrong = catalog.make(name, schedule=(*schedule, 1))
    with pytest.raises(BudgetError, match="one count for each"):
        check_pruned_is_the_reference(Case("llava_next"), wrong, None)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", INSIDE)
@torch.no_grad()
def test_the_kernel_does_not_change_what_is_decided(name: str, attn: str) -> None:
    case = Case("llava_next", attn, torch.float32, images=(2, 1))
    found = check_pruned_is_the_reference(case, INSIDE[name], AVERAGE)
    other = check_pruned_is_the_reference(Case("llava_next", images=(2, 1)), INSIDE[name], AVERAGE)
    assert [item.mapping.anchors.tolist() for item in found] == [
        item.mapping.anchors.tolist() for item in other
    ]


@pytest.mark.parametrize("keep", [1, 7])
@pytest.mark.parametrize("name", OUTSIDE + AT_ONCE)
@torch.no_grad()
def test_edge_budgets(name: str, keep: int) -> None:
    check_pruned_is_the_reference(Case("llava_next", padding="right"), name, keep)


@pytest.mark.parametrize("name", LATE)
@torch.no_grad()
def test_budgets_that_cannot_be_reached_say_what_can(name: str) -> None:
    case = Case("llava")
    model, batch = case.model(), case.batch()
    refused = pytest.raises(BudgetError, match="lowest")
    with refused as error, foveate.attach(model, INSIDE[name], keep=1):
        model(**batch.inputs)
    least = int(str(error.value).split(" is ")[-1].split(";")[0].rstrip("."))
    with foveate.attach(model, INSIDE[name], keep=least) as run:
        model(**batch.inputs)
    check_budget(run.method, run.items, least)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
@torch.no_grad()
def test_every_method_between_layers_on_videos(name: str, family: str) -> None:
    case = Case(family, images=(0, 0), videos=(1, 1))
    check_pruned_is_the_reference(case, INSIDE[name], AVERAGE)


@pytest.mark.parametrize("name", OUTSIDE)
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
        keep = AVERAGE if name in INSIDE else 0.3
        case = Case(family, images=(1, 2))
        check_batch_mates(case, ready(name, case.model()), keep=keep)


# PaliGemma 2's caches have sliding windows, which cannot be cut.
@pytest.mark.parametrize("family", sorted({*FAMILIES} - REFUSED["tome"] - {"paligemma2"}))
@torch.no_grad()
def test_windows_and_cut_caches_do_not_depend_on_batch_mates(family: str) -> None:
    """All of MustDrop: each tile of a batch is left with a number of tokens of its own."""
    # Between the likenesses of these pictures' windows: some merge, others do not.
    alike = {"llava": 0.245, "llava_gqa": 0.245, "paligemma": 0.1}.get(family, 0.2)
    method = catalog.make("mustdrop", alike=alike, settle=True)
    check_batch_mates(Case(family, images=(1, 2)), method, keep=0.4)
    stated = catalog.make("mustdrop", alike=alike, settle=True, together=0.05, single=0.05)
    case = Case(family, "eager", torch.float32, images=(1, 2))
    check_batch_mates(case, stated)
    model = case.model()
    with foveate.attach(model, stated) as run:
        model(**case.batch().inputs)
    assert len({item.entering / item.n for item in run.items}) > 1


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_half_precision_is_finite(name: str) -> None:
    case = Case("llava", dtype=torch.bfloat16)
    model, batch = case.model(), case.batch()
    with foveate.attach(model, ready(name, model), keep=AVERAGE if name in INSIDE else 0.3):
        assert model(**batch.inputs).logits.isfinite().all()
