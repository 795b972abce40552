"""Density-peak clustering and raters, by hand and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import ops

quick = settings(max_examples=40, deadline=None)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


# ---------------------------------------------------------------- density peaks

#   token     0    1    2    3    4    5
#   value     0    1    2   10   12   13
# Two nearest, itself among them: squares 0 + 1 over 2 for all but 3 (0 + 4): densities e^-0.5,
# but e^-2 for 3. Of equal ones the lower is denser: 0, 1, 2, 4, 5, 3.
#   delta    13    1    1    2   10    1    (0: the greatest distance; 3: to 4; 4: to 2)
#   times rho, so 0 and 4 are first, then 1, 2 and 5 (0.607 each) before 3 (2 e^-2 = 0.271).
LINE = column(0, 1, 2, 10, 12, 13)


@pytest.mark.parametrize(
    ("clusters", "centres", "owner"),
    [
        (1, [0], [0, 0, 0, 0, 0, 0]),
        (2, [0, 4], [0, 0, 0, 1, 1, 1]),
        (3, [0, 1, 4], [0, 1, 1, 2, 2, 2]),
        (4, [0, 1, 2, 4], [0, 1, 2, 3, 3, 3]),
        (5, [0, 1, 2, 4, 5], [0, 1, 2, 3, 3, 4]),
        (6, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_density_peaks_by_hand(clusters: int, centres: list[int], owner: list[int]) -> None:
    found = ops.density_peaks(LINE, clusters, 2)
    assert [x.tolist() for x in found] == [centres, owner]


def test_distances_are_per_root_of_a_dimension() -> None:
    # Value 1 in each of four dimensions is a distance of 2 / sqrt(4) = 1.
    for clusters in range(1, 7):
        wide = ops.density_peaks(LINE.expand(6, 4).contiguous(), clusters, 2)
        assert [x.tolist() for x in wide] == [
            x.tolist() for x in ops.density_peaks(LINE, clusters, 2)
        ]
    # Where it matters: 0 is as dense as can be, twice, and 4 tells 1 and 5 apart. Distances of
    #   token    0  1  2   3        two nearest: squares 0, 0, 0.5 * 2.25, 0.5 * 4
    #   value    0  0  1.5 3.5      densities 1, 1, 0.325, 0.135; deltas 3.5, 0, 1.5, 2
    # times: 0.487 for token 2 and 0.271 for 3. Twice as far: e^-4.5 * 3 = 0.033, e^-8 * 4 = 0.001;
    # half as far: e^-0.281 * 0.75 = 0.566, e^-0.5 * 1 = 0.607, and token 3 would be first.
    short = column(0, 0, 1.5, 3.5)
    assert ops.density_peaks(short, 2, 2)[0].tolist() == [0, 2]
    assert ops.density_peaks(short / 2, 2, 2)[0].tolist() == [0, 3]
    spread = short.expand(4, 4) / 2  # Euclidean distances as in `short`, divided by 2
    assert ops.density_peaks(spread.contiguous(), 2, 2)[0].tolist() == [0, 3]


def test_densities_that_float32_cannot_hold() -> None:
    # Twenty times as far apart: densities e^-200 (3: e^-800), deltas 260, 20, 20, 40, 200, 20.
    for clusters in range(1, 7):
        far = ops.density_peaks(LINE * 20, clusters, 2)
        assert far[0].tolist() == ops.density_peaks(LINE, clusters, 2)[0].tolist()


def test_a_centre_belongs_to_itself() -> None:
    # All equal: every distance is 0, the nearest centre of token 2 would be token 0.
    centres, owner = ops.density_peaks(torch.ones(4, 3), 3, 2)
    assert (centres.tolist(), owner.tolist()) == ([0, 1, 2], [0, 1, 2, 0])


def test_more_neighbours_than_tokens_are_all_of_them() -> None:
    few = [x.tolist() for x in ops.density_peaks(LINE, 3, 6)]
    assert [x.tolist() for x in ops.density_peaks(LINE, 3, 60)] == few
    assert [x.tolist() for x in ops.density_peaks(column(7), 1, 5)] == [[0], [0]]


def naive_peaks(x: list[list[float]], clusters: int, neighbours: int) -> list[list[int]]:
    """The docstring's four steps, one token at a time, in double precision."""
    n, d = len(x), len(x[0])
    distance = [[math.dist(a, b) / math.sqrt(d) for b in x] for a in x]
    density = []
    for i in range(n):
        nearest = sorted(distance[i])[:neighbours]
        density.append(math.exp(-sum(r * r for r in nearest) / len(nearest)))
    score = []
    for i in range(n):
        denser = [j for j in range(n) if (-density[j], j) < (-density[i], i)]
        delta = min(distance[i][j] for j in denser) if denser else max(map(max, distance))
        score.append(density[i] * delta)
    centres = sorted(sorted(range(n), key=lambda i: (-score[i], i))[:clusters])
    owner = []
    for i in range(n):
        nearest_centre = min(range(clusters), key=lambda c: distance[i][centres[c]])
        owner.append(centres.index(i) if i in centres else nearest_centre)
    return [centres, owner]


@quick
@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), st.data())
def test_density_peaks_with_ties(values: list[float], data: st.DataObject) -> None:
    clusters = data.draw(st.integers(1, len(values)))
    neighbours = data.draw(st.integers(1, len(values)))
    found = ops.density_peaks(column(*values), clusters, neighbours)
    expected = naive_peaks([[value] for value in values], clusters, neighbours)
    assert [x.tolist() for x in found] == expected


@quick
@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 5), st.data())
def test_density_peaks_without_ties(seed: int, n: int, d: int, data: st.DataObject) -> None:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    clusters, neighbours = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    found = ops.density_peaks(x, clusters, neighbours)
    assert [t.tolist() for t in found] == naive_peaks(x.tolist(), clusters, neighbours)


# ---------------------------------------------------------------- raters

# Tokens A, B, B of the picture and T1, T2, T3 of the text:
#   V T^T   T1   T2   T3    softmax over the text                 times 1 / 2
#   A       10    0    0    1.000  0.000  0.000                   0.987  0.007  0.007
#   B        0    1    0    0.212  0.576  0.212   (e = 2.718)     0.274  0.452  0.274
#   mean                    0.475  0.384  0.141   (mean 1/3)      0.512  0.303  0.185
VISUAL = torch.tensor([[5.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
TEXT = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])


def test_raters_by_hand() -> None:
    chosen, match = ops.raters(VISUAL, TEXT)
    assert chosen.tolist() == [True, True, False]
    b = torch.tensor([1.0, math.e, 1.0]) / (2 + math.e)
    torch.testing.assert_close(match[1:], b.expand(2, 3))
    torch.testing.assert_close(match[0], torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)
    chosen, match = ops.raters(VISUAL, TEXT, 0.5)
    assert chosen.tolist() == [True, False, False]
    assert match[0, 0] == pytest.approx(0.987, abs=0.001)


@pytest.mark.parametrize("text", [TEXT[:1], TEXT[[1, 1, 1, 1]], torch.zeros(2, 4)])
def test_where_none_is_above_the_mean_all_rate(text: torch.Tensor) -> None:
    assert ops.raters(VISUAL, text)[0].tolist() == [True] * len(text)


def test_half_precision_is_rated_in_float32() -> None:
    assert ops.raters(VISUAL.half(), TEXT.half())[1].dtype == torch.float32


three = st.lists(st.integers(-2, 2).map(float), min_size=3, max_size=3)
coarse = st.lists(three, min_size=1, max_size=6)


@quick
@given(coarse, coarse, st.sampled_from([1.0, 3**-0.5]))
def test_raters(visual: list[list[float]], text: list[list[float]], scale: float) -> None:
    rows = []
    for v in visual:
        weights = [math.exp(scale * sum(a * b for a, b in zip(v, t, strict=True))) for t in text]
        rows.append([w / sum(weights) for w in weights])
    score = [sum(row[j] for row in rows) / len(rows) for j in range(len(text))]
    mean = sum(score) / len(score)
    chosen, match = ops.raters(torch.tensor(visual), torch.tensor(text), scale)
    torch.testing.assert_close(match, torch.tensor(rows))
    expected = [s > mean + 1e-5 for s in score]
    doubtful = [abs(s - mean) <= 1e-5 for s in score]  # rounding decides
    if not any(expected) and all(doubtful):
        assert chosen.any()
        return
    for found, wanted, either in zip(chosen.tolist(), expected, doubtful, strict=True):
        assert either or found == wanted


# ---------------------------------------------------------------- alike windows

# 2 x 5 tokens, windows of 2 x 2: A of four alike ones, B of two and two at right angles (2 of its 6
# pairs are alike: 1/3), and a column that fills no window. Lengths do not matter.
#   A A B B .      slots 0 1 2 3 4
#   A A B B .            5 6 7 8 9
A, B1, B2 = [3.0, 4.0], [1.0, 0.0], [0.0, 2.0]
RASTER = torch.tensor([A, [6.0, 8.0], B1, B2, A, A, A, [0.0, 1.0], [5.0, 0.0], A])


@pytest.mark.parametrize(
    ("least", "most", "owner"),
    [
        (0.3, 2, [0, 0, 1, 1, 2, 0, 0, 1, 1, 3]),
        (0.34, 2, [0, 0, 1, 2, 3, 0, 0, 4, 5, 6]),  # B is not alike enough
        (0.3, 1, [0, 0, 1, 2, 3, 0, 0, 4, 5, 6]),  # the more alike one
        (0.3, 0, list(range(10))),
        (1.1, 2, list(range(10))),
    ],
)
def test_alike_windows_by_hand(least: float, most: int, owner: list[int]) -> None:
    assert ops.alike_windows(RASTER, 2, 5, 2, least, most).tolist() == owner


def test_windows_larger_than_the_raster_or_of_one_token_merge_nothing() -> None:
    for side in (1, 3):
        assert ops.alike_windows(RASTER, 2, 5, side, -1.0, 9).tolist() == list(range(10))


def test_of_equally_alike_windows_the_first_merge() -> None:
    owner = ops.alike_windows(torch.ones(8, 3), 2, 4, 2, 0.8, 1)
    assert owner.tolist() == [0, 0, 1, 2, 0, 0, 3, 4]
