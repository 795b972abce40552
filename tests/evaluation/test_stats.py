"""Differences between settings over models and dialogues, and the correction for many of them."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.evaluation import stats


def test_one_model_is_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    gains = rng.integers(-1, 2, (1, 200)).astype(float) + 0.1
    asked = np.full(200, 3.0)
    (value, low, high), p = stats.between_models(gains, asked, resamples=4000)
    plain = stats.difference(gains[0], asked)
    assert value == pytest.approx(plain[0])
    assert (low, high) == pytest.approx(plain[1:], abs=0.005)
    assert 0 < p <= 1


def test_rounding_puts_no_value_outside_its_interval() -> None:
    """Every question is missed by one draw of three: bars of a plot must not be negative."""
    asked = np.array([1.0, 1.0, 2.0, 3.0, 4.0])
    gain = np.array([sum([-1 / 3] * int(count)) for count in asked])
    value, low, high = stats.difference(gain, asked, resamples=100)
    assert low <= value <= high and value == pytest.approx(-1 / 3)


def test_a_difference_that_models_do_not_share_is_not_sure() -> None:
    """Two models gain on every dialogue, one loses as much: the dialogues alone would be sure."""
    asked = np.ones(400)
    shared = np.ones((3, 400)) * 0.2
    mixed = shared.copy()
    mixed[2] *= -1.5
    (_, low, _), sure = stats.between_models(shared, asked, resamples=2000)
    (value, wide, high), unsure = stats.between_models(mixed, asked, resamples=2000)
    assert low > 0 and sure == 2 / 2001
    assert value == pytest.approx(0.2 * (1 + 1 - 1.5) / 3)
    assert wide < 0 < high and unsure > 0.05


def test_the_sign_is_asked_against_what_was_claimed() -> None:
    gains = np.random.default_rng(1).normal(0.1, 0.3, (1, 500))
    asked = np.ones(500)
    _, zero = stats.between_models(gains, asked, resamples=2000)
    _, near = stats.between_models(gains, asked, least=0.1, resamples=2000)
    _, far = stats.between_models(gains, asked, least=0.2, resamples=2000)
    assert zero < 0.01 and far < 0.01 and near > 0.2


def test_a_spread_between_models_by_hand() -> None:
    """Gains of 0.1 and 0.3 whatever the dialogue: 0.2 -+ 0.1 t, with t of one degree of freedom."""
    gains = np.outer([0.1, 0.3], np.ones(50))
    (value, low, high), p = stats.between_models(gains, np.ones(50), resamples=200_000)
    assert value == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706), rel=0.05)  # t = 12.706
    assert p == pytest.approx(2 * (0.5 - np.arctan(2) / np.pi), abs=0.005)  # Cauchy's tail beyond 2


def test_three_models_are_rarely_sure_of_what_is_not_there() -> None:
    """Trainings that differ by chance alone: a bootstrap of them would find one in four."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        gains = rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 0.2, (3, 300))
        found.append(stats.between_models(gains, np.ones(300), resamples=400)[1] < 0.05)
    assert np.mean(found) < 0.08


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .04: times 3, 2, 1; never smaller than the one before.
    assert stats.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert stats.holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert stats.holm([]) == []
