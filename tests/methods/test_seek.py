"""Seek: its net by hand, padding, and what it needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from foveate import ops, reference
from foveate.compressor import Grid
from foveate.errors import BudgetError, StageNotAvailable
from foveate.methods.seek import Seek, Seekers
from tests.methods.given import rows, tokens

GELU_2 = 1.0 + math.erf(math.sqrt(2.0))  # gelu(2)


def made(seekers: int = 1, **fields: Any) -> Seek:
    """Everything passes as it is, words are heard by all alike; no bias but against positions."""
    method = Seek(inner=4, small=4, seekers=seekers, rounds=1, kinds=("image",), **fields).drawn(4)
    assert isinstance(method, Seek) and isinstance(method.net, nn.ModuleDict)
    net = method.net["image"]
    assert isinstance(net, Seekers)
    one: Any = net.rounds[0]
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        for each in (net.token, net.shown, net.word, one.hear.out_proj, one.ask):
            each.weight.copy_(torch.eye(4))
        one.hear.in_proj_weight[8:].copy_(torch.eye(4))  # values; queries and keys are zero
        net.word.bias.copy_(-ops.sine_positions(1, 4)[0])
    return method


def picture(*words: int, **fields: Any) -> Any:
    """Five tokens, each along one of four directions, the last as the first but longer."""
    features = torch.eye(4)[[0, 1, 2, 3, 0]] * rows(1, 1, 1, 1, 7)[:, None]
    question = 5 * torch.eye(4)[list(words)]
    return tokens(features, question=question, **fields)


def test_what_the_word_means_is_found() -> None:
    # The word is 2 along its direction; its norm is sqrt(3) (1, -1/3, -1/3, -1/3). The one seeker
    # hears the mean of itself (zero) and that. A token is gelu(2) along its own direction, whatever
    # its length; their product is divided by sqrt(4).
    near = 0.5 * math.sqrt(3) * GELU_2 / 2
    far = -near / 3
    found = made().score(picture(2))
    torch.testing.assert_close(found, rows(far, far, near, far, far))
    alone = made(spread=False)
    assert alone(picture(2), 1).anchors.tolist() == [2]
    assert alone(picture(0), 2).anchors.tolist() == [0, 4]
    assert alone(picture(3), 5).anchors.tolist() == [0, 1, 2, 3, 4]


def test_relevant_ones_are_picked_sooner() -> None:
    """Tokens at 0, 1, 4, 10 and -4 on a line, mean 2.2; the second is relevant."""
    score = rows(-200, 0, -200, -200, -200)
    line = tokens(rows(0, 1, 4, 10, -4)[:, None])

    class Given(Seek):
        def score(self, tokens: Any) -> Any:
            return score

    # Every other token's distance counts a thousandth: from the mean 1.2 against .0078.
    assert Given(focus=1.0, merge=False)(line, 1).anchors.tolist() == [1]
    # Then the farthest from 1 is 10, then -4: they are 9 and 5 away.
    assert Given(focus=1.0, merge=False)(line, 3).anchors.tolist() == [1, 3, 4]
    found = Given(focus=1.0)(line, 3)
    assert found.anchors.tolist() == [1, 3, 4]
    assert found.apply(line.features).flatten().tolist() == pytest.approx([5 / 3, 10, -4])
    # Without focus it is cover: 10, which is 7.8 from the mean, then -4.
    assert Given(focus=0.0, merge=False)(line, 2).anchors.tolist() == [3, 4]
    assert Given(spread=False)(line, 2).anchors.tolist() == [0, 1]


def test_relevance_counts_at_every_pick() -> None:
    """Tokens at 0, 1, 4, 10 and -4 on a line, mean 2.2; the second and third are relevant."""

    class Given(Seek):
        def score(self, tokens: Any) -> Any:
            return rows(-200, 0, 0, -200, -200)

    line = tokens(rows(0, 1, 4, 10, -4)[:, None])
    # From the mean 1.8 against 1.2. Then 3 from that one, where -4 is 8 away and counts .008.
    assert Given(focus=1.0, merge=False)(line, 1).anchors.tolist() == [2]
    assert Given(focus=1.0, merge=False)(line, 2).anchors.tolist() == [1, 2]
    assert Given(focus=1.0, merge=False)(line, 3).anchors.tolist() == [1, 2, 3]


@pytest.mark.parametrize("constant", [0.0, -60.0, 90.0])
@pytest.mark.parametrize(("far", "first"), [(900.0, 0), (1100.0, 2)])
def test_a_thousandth_of_the_largest_is_the_least(far: float, first: int, constant: float) -> None:
    """R is known but for a constant; distances from the mean, 0, are 1 and `far`."""

    class Given(Seek):
        def score(self, tokens: Any) -> Any:
            return rows(0, -200, -200, -200) + constant

    # 1.001 for the relevant one, against 0.9 or 1.1.
    line = tokens(rows(1, -1, far, -far)[:, None])
    assert Given(focus=1.0, merge=False)(line, 1).anchors.tolist() == [first]


def test_seekers_are_added_up_with_their_gains_and_tokens_have_a_bias() -> None:
    """Two seekers hear no word: z is what they are, (2, 0, 0, 0) and (0, 4, 0, 0)."""
    method = made(seekers=2)
    assert isinstance(method.net, nn.ModuleDict)
    net: Any = method.net["image"]
    with torch.no_grad():
        net.rounds[0].hear.out_proj.weight.zero_()
        net.seekers.copy_(rows([2, 0, 0, 0], [0, 4, 0, 0]))
        net.gain.weight.copy_(rows([0, 0.25, 0, 0]))
        net.bias.weight.copy_(rows([0, 0, 0.5, 0]))
        net.bias.bias.fill_(3)
    # A token is gelu(2) along its own direction; products are divided by sqrt(4).
    first = torch.tensor([GELU_2, 0, 0, 0, GELU_2]).exp()  # u z = 0
    second = torch.tensor([0, 2 * GELU_2, 0, 0, 0]).add(1).exp()  # u z = 0.25 * 4
    expected = (first + second).log() + 3 + torch.tensor([0, 0, 0.5 * GELU_2, 0, 0])
    torch.testing.assert_close(method.score(picture(1)), expected)


def test_where_a_token_lies_is_part_of_it() -> None:
    """Waves of pi, 2 pi, 4 pi ... of time, row and column, sines first: one of each in h."""
    method = made()
    assert isinstance(method.net, nn.ModuleDict)
    net: Any = method.net["image"]
    with torch.no_grad():
        for each in (net.token, net.shown):
            each.weight.zero_()
        net.bias.weight.copy_(rows([1, 10, 100, 1000]))
        net.place.weight[0, 0] = 1  # sin(pi time): 1 in the middle of a still picture
        net.place.weight[1, 6 + 1] = 1  # sin(2 pi row): 1 at a quarter, -1 at three
        net.place.weight[2, 12] = 1  # sin(pi column): sqrt(1/2) at both
        net.place.weight[3, 18 + 12 + 2] = 1  # cos(4 pi column): -1 at both
    found = method.score(tokens(torch.eye(4), Grid(1, 2, 2), question=torch.eye(4)))
    up, down = (math.erf(x / math.sqrt(2)) * x / 2 + x / 2 for x in (1.0, -1.0))  # gelu
    half = nn.functional.gelu(torch.tensor(0.5).sqrt()).item()
    upper, lower = up + 100 * half + 1000 * down + torch.tensor([10 * up, 10 * down])
    torch.testing.assert_close(found, torch.stack([upper, upper, lower, lower]))


def test_what_a_word_finds_is_known_in_the_next_round() -> None:
    """With two rounds what the first one saw is added to what is looked for."""
    once, twice = made(), made()
    assert isinstance(twice.net, nn.ModuleDict)
    net: Any = twice.net["image"]
    net.rounds.append(net.rounds[0])
    with torch.no_grad():
        net.rounds[0].learn.weight.copy_(torch.eye(4))
    a = once.score(picture(1))
    seen = a.softmax(0) @ torch.eye(4)[[0, 1, 2, 3, 0]] * GELU_2
    first = 0.5 * math.sqrt(3) * (torch.eye(4)[1] - torch.eye(4)[[0, 2, 3]].sum(0) / 3)
    word = 2 * torch.eye(4)[1] + math.sqrt(3) * (torch.eye(4)[1] * 4 - 1) / 3 * 0.5
    word_a = word @ torch.eye(4)[[0, 1, 2, 3, 0]].T * GELU_2 / 2
    word = word + word_a.softmax(0) @ torch.eye(4)[[0, 1, 2, 3, 0]] * GELU_2
    seeker = first + seen
    norm = nn.LayerNorm(4, elementwise_affine=False)
    heard = (norm(seeker) + norm(word)) / 2
    expected = (seeker + heard) @ torch.eye(4)[[0, 1, 2, 3, 0]].T * GELU_2 / 2
    torch.testing.assert_close(twice.score(picture(1)), expected)


def test_shorter_ones_of_a_batch_are_as_alone() -> None:
    method = Seek(kinds=("image",)).drawn(6)
    assert isinstance(method, Seek) and isinstance(method.net, nn.ModuleDict)
    net = method.net["image"]
    assert isinstance(net, Seekers)
    x, places, words = torch.randn(2, 9, 6), torch.rand(2, 9, 3), torch.randn(2, 5, 6)
    real = torch.arange(9) < torch.tensor([[9], [4]])
    said = torch.arange(5) < torch.tensor([[5], [2]])
    found = net(x, places, words, real, said)
    alone = net(x[1:, :4], places[1:, :4], words[1:, :2], real[1:, :4], said[1:, :2])
    torch.testing.assert_close(found[1, :4], alone[0])
    assert found[1, 4:].eq(-torch.inf).all() and found[0].isfinite().all()
    found[real].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_places_are_fractions_of_the_whole_picture() -> None:
    grid = Grid(1, 1, 2, box=(0.5, 0.0, 1.0, 0.5))
    torch.testing.assert_close(ops.fractions_of(grid), rows([0.5, 0.25, 0.625], [0.5, 0.25, 0.875]))
    left = ops.fractions_of(Grid(1, 1, 1, box=(0.0, 0.0, 0.5, 1.0)))
    torch.testing.assert_close(left, rows([0.5, 0.5, 0.25]))
    clip = ops.fractions_of(Grid(2, 1, 1))
    torch.testing.assert_close(clip, rows([0.25, 0.5, 0.5], [0.75, 0.5, 0.5]))


def test_what_it_cannot_do_is_told() -> None:
    with pytest.raises(StageNotAvailable, match="trained on images, and this is a video"):
        made()(picture(1, is_video=True), 2)
    with pytest.raises(StageNotAvailable, match="first in the chain"):
        made()(tokens(torch.eye(4), Grid(1, 1, 3), question=torch.eye(4)), 2)
    for fields in ({"small": 6}, {"seekers": 0}, {"focus": -1.0}, {"focus": math.nan}):
        with pytest.raises(BudgetError, match="multiple of 4"):
            Seek(**fields)
    for kinds in ((), ("images",)):
        with pytest.raises(BudgetError, match=r"kinds of \('image', 'video'\)"):
            Seek(kinds=kinds)


def test_shipped_weights_are_used_as_asked() -> None:
    """The widths are the saved ones; what is no matter of training is the caller's."""
    model, _ = reference.load()
    found = Seek(focus=0.7, merge=False).fitted(model)
    assert found.net is not None and (found.inner, found.small) == (128, 64)
    assert (found.focus, found.merge, found.spread) == (0.7, False, True)
    assert found.fitted(model) == found
