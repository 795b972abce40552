"""Differences between settings over models and dialogues, and the correction for many of them."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.evaluation import stats


def test_the_difference_by_hand() -> None:
    gain, asked = np.array([2.0, 1.0]) - np.array([3.0, 0.0]), np.array([3.0, 3.0])
    # Gains -1 and +1 of three questions each. Resampling two dialogues gives both the first
    # (1/4: -2/6), one of each (1/2: 0) or both the second (1/4: +2/6).
    value, low, high = stats.difference(gain, asked)
    assert value == 0
    assert (round(low, 4), round(high, 4)) == (-0.3333, 0.3333)
    # A level that cuts off more than a quarter on either side leaves nothing but 0.
    assert stats.difference(gain, asked, level=0.4) == (0, 0, 0)


def test_no_difference_has_no_interval() -> None:
    assert stats.difference(np.zeros(5), np.ones(5)) == (0, 0, 0)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        asked = np.full(80, 3.0)
        base = rng.binomial(3, 0.6, 80).astype(float)
        right = rng.binomial(3, 0.5, 80).astype(float)
        _, low, high = stats.difference(right - base, asked, seed=trial, resamples=400)
        covered += low <= -0.1 <= high
    # Binomial(200, 0.95) lies in 178..199 with probability 0.999.
    assert 178 <= covered <= 199


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


def test_equal_spreads_are_one_spread() -> None:
    """Nothing tells them apart: all of them have the degrees of freedom of all together."""
    found = stats.spreads([stats.Spread(0.25, 2)] * 10)
    assert {each.degrees for each in found} == {20}
    # Chance would spread them; that they are equal is their logarithms' mean, below their own.
    assert 0.25 < found[0].variance < 0.25 * np.exp(np.euler_gamma)
    assert len({each.variance for each in found}) == 1


def test_spreads_that_differ_keep_apart() -> None:
    rng = np.random.default_rng(0)
    far = [
        stats.Spread(10.0**power * rng.chisquare(2) / 2, 2) for power in (-8, 8) for _ in range(9)
    ]
    found = stats.spreads(far)
    assert all(2 < each.degrees < 3 for each in found)
    assert all(each.variance < 1e-3 for each in found[:9])
    assert all(each.variance > 1e3 for each in found[9:])


def test_few_spreads_are_left_as_they_are() -> None:
    assert stats.spreads([]) == []
    assert stats.spreads([stats.Spread(0.5, 2)]) == [(0.5, 2)]
    assert stats.spreads([stats.Spread(0.0, 2)] * 3) == [(0.0, 2)] * 3


@pytest.mark.parametrize("alike", [4.0, 30.0])
def test_shared_spreads_are_as_sure_as_they_say(alike: float) -> None:
    """Sixty differences of three models that are nothing, their variances more or less alike."""
    rng = np.random.default_rng(1)
    sure = own_sure = 0
    for _ in range(100):
        variances = alike / rng.chisquare(alike, 60)
        values = rng.normal(0, variances[:, None] ** 0.5, (60, 3))
        own = [stats.Spread(float(each.var(ddof=1)), 2) for each in values]
        shared = stats.spreads(own)
        error = np.array([each.variance / 3 for each in shared]) ** 0.5
        bound = np.quantile(abs(rng.standard_t(shared[0].degrees, 20_000)), 0.95)
        sure += int((abs(values.mean(1)) > bound * error).sum())
        # Control: the normal distribution is too sure of three values.
        own_error = np.array([each.variance / 3 for each in own]) ** 0.5
        own_sure += int((abs(values.mean(1)) > 1.96 * own_error).sum())
    assert 0.035 < sure / 6000 < 0.065
    assert own_sure / 6000 > 0.15


def test_a_spread_that_is_given_takes_the_place_of_the_models_own() -> None:
    gains, asked = np.zeros((3, 50)), np.ones(50)
    gains[:, :25] = [[1.0], [0.8], [0.6]]
    wide, narrow = (
        stats.between_models(gains, asked, spread=each)[0]
        for each in (None, stats.Spread(0.01, 200.0))
    )
    assert wide[0] == narrow[0]
    assert wide[1] < narrow[1] and narrow[2] < wide[2]
    same = stats.between_models(gains, asked, spread=stats.own_spread(gains, asked))
    assert same == stats.between_models(gains, asked)


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .04: times 3, 2, 1; never smaller than the one before.
    assert stats.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert stats.holm([0.5, 0.4]) == pytest.approx([0.8, 0.8])
    assert stats.holm([]) == []
