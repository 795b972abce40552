"""The losses, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.training.losses import Distribution, collapse, entropy, prediction


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log() + 3.0  # any shift is the same


def test_divergence_of_two_tokens_by_hand() -> None:
    full = Distribution.of(logits([0.5, 0.5], [0.9, 0.1]))
    found = prediction(full, logits([0.25, 0.75], [0.9, 0.1]))
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.tolist() == pytest.approx([expected, 0.0], abs=1e-12)


def test_it_is_the_full_models_mean_not_the_compressed_ones() -> None:
    one, two = logits([0.9, 0.1]), logits([0.5, 0.5])
    forward = prediction(Distribution.of(one), two)
    backward = prediction(Distribution.of(two), one)
    assert float(forward) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert float(forward) != pytest.approx(float(backward))


def test_the_likeliest_tokens_and_the_rest_by_hand() -> None:
    full = Distribution.of(logits([0.6, 0.1, 0.3, 0.0]), top=1)
    assert full.tokens is not None and full.rest is not None
    assert full.tokens.tolist() == [[0]] and float(full.rest.exp()) == pytest.approx(0.4)
    found = prediction(full, logits([0.2, 0.5, 0.2, 0.1]))
    assert float(found) == pytest.approx(0.6 * math.log(3) + 0.4 * math.log(0.5))


def test_what_summing_the_rest_up_leaves_out_is_the_divergence_within_it() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 50).double(), torch.randn(5, 50).double()
    whole = prediction(Distribution.of(a), b)
    p, q = a.softmax(-1), b.softmax(-1)
    for top in (1, 10, 49):
        short = Distribution.of(a, top)
        assert short.tokens is not None
        inside = torch.ones_like(p).scatter(1, short.tokens, 0.0)
        mass = (p * inside).sum(1)
        within_p, within_q = p * inside / mass[:, None], q * inside / (q * inside).sum(1)[:, None]
        within = torch.where(inside > 0, within_p * (within_p / within_q).log(), 0.0)
        torch.testing.assert_close(whole - prediction(short, b), mass * within.nansum(1))
    assert torch.equal(prediction(Distribution.of(a, 50), b), whole)
    assert torch.equal(prediction(Distribution.of(a, 1000), b), whole)


def test_a_token_without_any_mass_is_no_nan() -> None:
    a = torch.tensor([[0.0, -torch.inf, 1.0]], requires_grad=True)
    b = torch.tensor([[1.0, 0.0, -2.0]], requires_grad=True)
    loss = prediction(Distribution.of(a.detach(), 2), b).sum()
    loss.backward()
    assert loss.isfinite() and b.grad is not None and b.grad.isfinite().all()


def test_entropy_and_collapse_by_hand() -> None:
    matrix = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert float(entropy(matrix)) == pytest.approx(math.log(2) / 2)
    assert float(collapse(matrix)) == pytest.approx(1.5)


def test_rows_that_softmax_sharpened_to_zeros_have_finite_slopes() -> None:
    raw = torch.tensor([[0.0, 200.0, -300.0], [1.0, 0.0, 2.0]], requires_grad=True)
    matrix = raw.softmax(-1)
    assert bool((matrix == 0).any())
    (entropy(matrix) + collapse(matrix)).backward()
    assert raw.grad is not None and raw.grad.isfinite().all() and raw.grad[1].abs().sum() > 0
