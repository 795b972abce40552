"""Relevance of visual tokens to an answer, against the matrix recursion on stock eager models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate import reference, relevance
from foveate.attention import Logits
from foveate.errors import InputError, UnknownName
from foveate.evaluation import from_reference
from foveate.prompting import conversation, model_inputs
from foveate.relevance import Rule, _Maps
from tests.families.models import FAMILIES, VIDEO_FAMILIES
from tests.laws.laws import Case, answered, assert_same_state, snapshot

RULES = [
    Rule(),
    Rule(relu=True),
    Rule(explained="logit"),
    Rule(weighting="mean"),
]
ANSWERS = ([31, 17, 120], [66])


def truth(case: Case, row: Any, answer: Sequence[int], rule: Rule) -> Tensor:
    """(s,) mean over the answer's tokens of the rows of R, by Eq. 1 as it is printed."""
    model = case.model()
    inputs = answered(case, row, torch.tensor(answer))
    out = model(**inputs, output_attentions=True, use_cache=False)
    length, rows = len(row.ids), []
    for t, token in enumerate(answer):
        place = length + t - 1
        logits = out.logits[0, place].double()
        scalar = (logits if rule.explained == "logit" else logits.log_softmax(-1))[token]
        grads = torch.autograd.grad(scalar, out.attentions, retain_graph=True)
        r = torch.eye(inputs["input_ids"].shape[1], dtype=torch.float64)
        for a, grad in zip(out.attentions, grads, strict=True):
            weighted = (a * grad if rule.weighting == "gradient" else a)[0].double()
            r = r + (weighted.relu() if rule.relu else weighted).mean(0) @ r
        rows.append(r[place])
    return torch.stack(rows).mean(0).detach()


def check(case: Case, rule: Rule, attn: str = "sdpa") -> None:
    """The library on the padded batch, against the recursion on each prompt alone."""
    batch = case.batch()
    model = case.family.build(attn, case.dtype)
    found = relevance.explain(model, batch.inputs, ANSWERS[: len(batch.rows)], rule=rule)
    expected = []
    for number, row in enumerate(batch.rows):
        whole = truth(case, row, ANSWERS[number], rule)
        first = int(batch.inputs["attention_mask"][number].argmax())
        expected += [whole[slots - first] for slots in batch.slots[number]]
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        off = (got.double() - wanted).abs().max() / wanted.abs().max()
        assert float(off) < 1e-3, f"off by {float(off):.2g} of the largest"


def eager(family: str, **options: Any) -> Case:
    """float32: the stock eager models turn padding into NaN in float64."""
    return Case(family, "eager", torch.float32, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_matrix_recursion_on_every_family(family: str) -> None:
    check(eager(family, images=(2, 1)), Rule())


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_videos(family: str) -> None:
    check(eager(family, images=(0, 0), videos=(1, 1), padding="right"), Rule())


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("family", ["llava_gqa", "gemma3"])
def test_every_rule(family: str, rule: Rule) -> None:
    check(eager(family, images=(1, 1), padding="right"), rule)


def test_an_eager_model_says_the_same_as_an_sdpa_one() -> None:
    check(eager("qwen3_vl", images=(1, 1)), Rule(), attn="eager")


def test_small_blocks_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relevance, "BLOCK", 1)  # one query row at a time
    check(eager("llava_gqa", images=(1, 1)), Rule())


def test_rows_together_and_alone() -> None:
    """What is in a batch beside a prompt does not matter, nor on which side it is padded."""
    case = Case("qwen2_vl", images=(1, 0, 2))
    model, batch = case.model(), case.batch()
    answers = [[31, 17, 120], [66], [44, 45]]
    together = relevance.explain(model, batch.inputs, answers)
    right = Case("qwen2_vl", images=(1, 0, 2), padding="right").batch()
    other = relevance.explain(model, right.inputs, answers)
    alone: list[Tensor] = []
    for row, answer in zip(batch.rows, answers, strict=True):
        alone += relevance.explain(model, case.alone(row), [answer])
    assert len(together) == 3
    for a, b, c in zip(together, other, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


def test_a_window_where_there_is_no_mask() -> None:
    """Two tokens long: a token sees itself and the one before it, both alike."""
    maps = _Maps(None, Logits(1.0, window=2))
    ((which, found),) = maps.blocks(0, torch.zeros(1, 4, 1), torch.zeros(1, 4, 1))
    assert which.tolist() == [0, 1, 2, 3]
    expected = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]
    assert found.tolist() == [expected]


def test_the_models_own_answer_is_what_it_generates() -> None:
    case = Case("llava")
    model, batch = case.model(), case.batch()
    out = model.generate(**batch.inputs, max_new_tokens=3)[:, batch.inputs["input_ids"].shape[1] :]
    assert relevance.own_answers(model, batch.inputs, 3) == out.tolist()
    found = relevance.explain(model, batch.inputs, max_new_tokens=3)
    given = relevance.explain(model, batch.inputs, out.tolist())
    assert all(torch.equal(a, b) for a, b in zip(found, given, strict=True))
    ends = int(out[0, 1])
    model.generation_config.eos_token_id = ends
    try:
        assert relevance.own_answers(model, batch.inputs, 3)[0] == out[0, :1].tolist()
        model.generation_config.eos_token_id = [int(out[0, 0])]
        assert relevance.own_answers(model, batch.inputs, 3)[0] == out[0, :1].tolist()
    finally:
        model.generation_config.eos_token_id = None


def test_an_own_answer_does_not_depend_on_the_side_of_padding() -> None:
    found = []
    for padding in ("left", "right"):
        case = Case("qwen2_vl", images=(1, 0, 2), padding=padding)
        model, inputs = case.model(), case.batch().inputs
        answers = relevance.own_answers(model, inputs, 3)
        found.append((answers, relevance.explain(model, inputs, max_new_tokens=3)))
    (left, a), (right, b) = found
    assert left == right
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    case = Case("llava")
    model, inputs = case.model(), case.batch().inputs
    model(**inputs)  # transformers installs its own hooks in a first run
    before = snapshot(model)
    learns = [each.requires_grad for each in model.parameters()]
    answers = [[10**6], [3]] if fails else [[31], [3]]  # no such token: the gather fails
    try:
        with torch.no_grad():
            relevance.explain(model, inputs, answers)
        assert not fails
    except IndexError:
        assert fails
    assert_same_state(before, snapshot(model))
    assert [each.requires_grad for each in model.parameters()] == learns
    assert all(each.grad is None for each in model.parameters())


def test_half_precision_is_finite() -> None:
    case = Case("llava_next", dtype=torch.bfloat16)
    found = relevance.explain(case.model(), case.batch().inputs, ANSWERS)
    assert all(each.isfinite().all() and each.abs().max() > 0 for each in found)


def test_a_sure_answer_does_not_vanish_in_float16() -> None:
    """The gradients of its log-probability are about as small as what is left to one."""
    model, processor = reference.load()
    (scene,) = from_reference(1)
    text = conversation(processor, [scene.turns[0].question])
    inputs = model_inputs(processor, model, [text], [scene.load()])
    answer = relevance.own_answers(model, inputs)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight *= 3  # surer
    (truth,) = relevance.explain(model, inputs, answer)
    assert float(truth.abs().max()) < 1e-6
    inputs = {k: v.half() if v.is_floating_point() else v for k, v in inputs.items()}
    (found,) = relevance.explain(model.half(), inputs, answer)
    assert float((found - truth).norm() / truth.norm()) < 0.05


def test_what_cannot_be_explained_says_why() -> None:
    case = Case("llava")
    model, inputs = case.model(), case.batch().inputs
    for answers in ([[3]], [[3], []]):
        with pytest.raises(InputError, match="at least one token for each of the 2 prompts"):
            relevance.explain(model, inputs, answers)
    with foveate.attach(model, "uniform", keep=3), pytest.raises(InputError, match="detach"):
        relevance.explain(model, inputs, [[3], [4]])
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        relevance.explain(model, inputs, [[3], [4]])
    with pytest.raises(UnknownName, match="weighting"):
        Rule(weighting="gradients")
    with pytest.raises(UnknownName, match="logit"):
        Rule(explained="logits")


def test_the_strongest_are_kept_in_raster_order() -> None:
    found = torch.tensor([0.1, -0.5, 0.7, 0.1, 0.9])
    assert relevance.strongest(found, 3).anchors.tolist() == [0, 2, 4]  # ties: the lower slot
    assert relevance.strongest(found, 0.4).anchors.tolist() == [2, 4]
