"""Relevance: what it reads, its net by hand, and which of its nets it asks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foveate
from foveate import reference
from foveate.attach.prompt import placed
from foveate.errors import BudgetError, StageNotAvailable
from foveate.methods.relevance import Predictor, Relevance, observed, scaled
from foveate.training.pairs import observations
from tests.families.models import FAMILIES
from tests.methods.given import look, rows, tokens


def filled(predictor: Predictor, depthwise: list[float], pointwise: float, last: float) -> None:
    """Every layer the same numbers, and no bias."""
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
        for each in predictor.depthwise:
            each.weight.copy_(rows(depthwise).expand_as(each.weight))
        for each in predictor.pointwise:
            each.weight.fill_(pointwise)
        predictor.last.weight.fill_(last)


def made(image: float = 1.0, video: float = -1.0, **fields: Any) -> Relevance:
    """A method whose nets pass the attention on, times a number; for videos turned round."""
    method = Relevance(channels=(1,), **fields).drawn(8)
    assert isinstance(method, Relevance) and isinstance(method.net, nn.ModuleDict)
    for kind, factor in (("image", image), ("video", video)):
        if kind in method.net:
            net = method.net[kind]
            assert isinstance(net, Predictor)
            filled(net, [0, 1, 0], 1, factor)
    return method


def picture(**fields: Any) -> Any:
    """Four visual tokens (1..4), a template token (5), two of the question (6, 7), template (8)."""
    heads = (
        {6: [0, 4, 1, 1, 2, 1, 1], 7: [0, 1, 1, 4, 2, 0, 0, 2], 5: [0, 0, 9, 0, 0, 1]},
        {6: [4, 0, 0, 4, 0, 1, 1], 7: [2, 1, 1, 4, 1, 0, 0, 1], 8: [0, 0, 9, 0, 0, 0, 0, 0, 1]},
    )
    seen = look(*heads, visual=[1, 2, 3, 4], text=[5, 6, 7, 8], question=[6, 7])
    return tokens(torch.zeros(4, 8), ahead=seen, layer=0, **fields)


def test_it_reads_the_question_alone_mean_over_heads_and_words() -> None:
    # Sums: head 0: [.4 .1 .1 .2] + [.1 .1 .4 .2]; head 1: [0 0 .4 0] + [.1 .1 .4 .1].
    expected = rows(0.6, 0.3, 1.3, 0.5) / 4
    torch.testing.assert_close(observed(picture()), expected)


@pytest.mark.parametrize(
    ("is_video", "keep", "kept"),
    [
        (False, 1, [2]),
        (False, 2, [0, 2]),
        (False, 3, [0, 2, 3]),
        (True, 2, [1, 3]),
        (True, 4, None),
    ],
)
def test_the_net_of_its_kind_ranks(is_video: bool, keep: int, kept: list[int] | None) -> None:
    mapping = made()(picture(is_video=is_video), keep)
    assert mapping.is_selection
    assert mapping.anchors.tolist() == (kept or [0, 1, 2, 3])


def test_a_choice_leaves_nothing_to_a_backward_pass() -> None:
    """A checkpoint's recomputation takes the choice as it is, and counts what was kept for both."""
    method, stored = made(), []

    def note(x: Tensor) -> Tensor:
        stored.append(x)
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        method(picture(), 2)
        assert not stored
        # Control: what training asks of the net.
        assert isinstance(method.net, nn.ModuleDict)
        seen = {name: x[None] for name, x in method.observe(picture()).items()}
        there = {name: torch.ones(x.shape[:2], dtype=torch.bool) for name, x in seen.items()}
        method.logits(method.net["image"], seen, there)
        assert stored


def test_the_net_is_given_the_scaled_attention() -> None:
    """As in its training: times four, or divided by the mean."""
    received = rows(0.6, 0.3, 1.3, 0.5) / 4
    torch.testing.assert_close(made(scaling="count").score(picture()), 4 * received)
    share = made(scaling="share").score(picture())
    torch.testing.assert_close(share, received / (2.7 / 16))


def test_the_net_by_hand() -> None:
    net = Predictor((2, 1), 3)
    filled(net, [1, 0, 0], 1, 2)  # each layer moves everything one place to the right
    # Two channels hold the same, so the second pointwise adds them; the last doubles.
    assert net(rows([1, 2, 3, 4])).tolist() == [[0, 0, 4, 8]]
    with torch.no_grad():
        net.pointwise[0].bias.copy_(rows(-2, -1))
    # [0 1 2 3] - 2 and - 1, below zero cut: [0 0 0 1] + [0 0 1 2], moved on, doubled.
    assert net(rows([1, 2, 3, 4])).tolist() == [[0, 0, 0, 2]]


def test_its_size_is_that_of_the_paper() -> None:
    net = Predictor((32, 64, 128, 256, 512), 3)
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    pairs = [(1, 32), (32, 64), (64, 128), (128, 256), (256, 512)]
    assert sum(p.numel() for p in weights) == sum(3 * a + a * b for a, b in pairs) + 512


def test_shorter_rows_of_a_batch_are_as_alone() -> None:
    torch.manual_seed(0)
    net, x = Predictor((32, 64, 128, 256, 512), 3), torch.rand(2, 9)
    real = torch.arange(9) < torch.tensor([[9], [4]])
    found = net(x, real)
    torch.testing.assert_close(found[0], net(x[:1])[0])
    torch.testing.assert_close(found[1, :4], net(x[1:, :4])[0])
    assert found[1, 4:].eq(-torch.inf).all()


def test_scalings() -> None:
    seen = rows(0.1, 0.3, 0.0, 0.1)
    torch.testing.assert_close(scaled(seen, "count"), rows(0.4, 1.2, 0.0, 0.4))
    torch.testing.assert_close(scaled(seen, "share"), rows(0.8, 2.4, 0.0, 0.8))
    logs = scaled(seen, "log")
    torch.testing.assert_close(logs[:2], rows(0.8, 2.4).log())
    assert logs[2] < -9 and scaled(torch.zeros(3), "log").isfinite().all()


def test_what_it_cannot_do_is_told() -> None:
    with pytest.raises(StageNotAvailable, match="trained on images, and this is a video"):
        made(kinds=("image",))(picture(is_video=True), 2)
    for fields in ({"kernel": 2}, {"channels": ()}, {"scaling": "none"}):
        with pytest.raises(BudgetError, match="odd kernel"):
            Relevance(**fields)
    with pytest.raises(BudgetError, match="kinds"):
        Relevance(kinds=("sound",))


@torch.no_grad()
def test_the_layers_output_projection_has_nothing_to_do() -> None:
    """Queries and keys are made once more before layer 0; what follows them is not."""
    family = FAMILIES["llava_gqa"]
    model, inputs = family.build(), family.inputs(rows=1)
    lengths: dict[str, list[int]] = {"q_proj": [], "o_proj": []}
    attention = model.model.language_model.layers[0].self_attn
    for name, seen in lengths.items():
        attention.get_submodule(name).register_forward_hook(
            lambda module, given, out, seen=seen: seen.append(out.shape[1])
        )
    method = Relevance().initialised(model)
    with foveate.attach(model, method, keep=5) as run:
        model(**inputs)
    whole = inputs["input_ids"].shape[1]
    assert lengths == {"q_proj": [whole, whole - 20], "o_proj": [0, whole - 20]}
    assert run.report().entering == 5 and run.report().average == 5.0


@torch.no_grad()
def test_the_attention_is_what_the_layer_would_give() -> None:
    """Against the eager maps of the stock model, on all tokens."""
    family = FAMILIES["qwen3_vl"]
    model, inputs = family.build("eager"), family.inputs(rows=1)
    truth = model(**inputs, output_attentions=True).attentions[0][0].mean(0)
    seen = [each["attention"] for each in observations(Relevance(), model, inputs)]
    slots = placed(model, inputs)[0].slots
    after = torch.arange(int(slots[-1]) + 1, inputs["input_ids"].shape[1])
    expected = truth[after][:, slots].mean(0)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-6)


def test_without_a_processor_it_says_what_it_is_told() -> None:
    model, processor = reference.load()
    with pytest.warns(UserWarning, match="learned from questions alone"):
        foveate.attach(model, "relevance", keep=5).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foveate.attach(model, "relevance", keep=5, processor=processor).detach()
        foveate.attach(model, "relevance", keep=1.0).detach()
        foveate.attach(model, "sparsevlm", keep=0.5).detach()  # nobody taught it


@torch.no_grad()
def test_a_question_before_the_picture_is_looked_for_in_the_text_behind_it() -> None:
    model, processor = reference.load()
    scene = next(reference.samples("test", 1))
    text = f"user: {scene.turns[0][0]} <image>\nassistant:"
    inputs = processor(images=scene.image, text=text, return_tensors="pt")
    (seen,) = observations(Relevance(), model, dict(inputs), processor)
    assert bool(seen["attention"].isfinite().all()) and float(seen["attention"].sum()) > 0
