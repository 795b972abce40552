"""SparseVLM by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveate.compressor import VisualTokens
from foveate.errors import BudgetError, StageNotAvailable
from foveate.methods.sparsevlm import SparseVLM, split
from tests.methods.given import average, look, preset_steps, rows, tokens

# Input embeddings: three pictures' worth of the tokens A, B, B, and three text tokens.
#   V T^T      T1    T2    T3        softmax over the text      T1     T2     T3
#   A          10     0     0        A                         1.000  0.000  0.000
#   B           0     1     0        B                         0.212  0.576  0.212
#                                    mean over V (1/3 is mean) 0.475  0.384  0.141
# T1 and T2 are raters. Scaled by 1 / sqrt(4) only T1 would be (0.512, 0.303, 0.185), and so by the
# largest instead of the mean (1, 0.576, 0.212); softmax over the picture makes all alike.
_A, _B = [5, 0, 0, 0], [0, 1, 0, 0]
START = rows(*[_A, _B, _B] * 3)
TEXT = rows([2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0])

# Four of the nine tokens are left; 0: system, 1..4: picture, 5..7: T1, T2, T3, by two heads:
#          v0    v1    v2    v3      mean of both:   v0    v1    v2     v3
#  T1  A  0.20  0.44  0.04  0.00                    0.10  0.42  0.22   0.10
#      B  0.00  0.40  0.40  0.20
#  T2  A  0.80  0.05  0.00  0.00                    0.40  0.05  0.295  0.10
#      B  0.00  0.05  0.59  0.20
#  T3     0.00  0.00  0.00  0.90                    0.00  0.00  0.00   0.90
#                             T1 + T2               0.50  0.47  0.515  0.20  -> v2, v0, v1, v3
# T1 alone: v1 first; T2 alone: v0; with T3: v3; larger of T1 and T2: v1; largest head: v0.
_T3 = {7: (0.1, 0.0, 0.0, 0.0, 0.9)}
_HEAD_A = {5: (0.32, 0.20, 0.44, 0.04, 0.0), 6: (0.15, 0.8, 0.05, 0.0, 0.0)} | _T3
_HEAD_B = {5: (0.0, 0.0, 0.4, 0.4, 0.2), 6: (0.16, 0.0, 0.05, 0.59, 0.2)} | _T3
SEEN = look(_HEAD_A, _HEAD_B, visual=(1, 2, 3, 4), text=(5, 6, 7), question=(7,))


def four(**fields: torch.Tensor) -> VisualTokens:
    return tokens(torch.zeros(4, 1), before=SEEN, **({"start": START, "text": TEXT} | fields))


def kept(keep: int | None, given: VisualTokens) -> list[int]:
    return SparseVLM(recycle=False)(given, keep).anchors.tolist()


def test_raters_vote_by_hand() -> None:
    assert [kept(keep, four()) for keep in (1, 2, 3)] == [[2], [0, 2], [0, 1, 2]]


def test_raters_are_found_among_all_tokens_that_entered_the_model() -> None:
    # Of B alone, T2 rates alone (0.576 to 0.212 and 0.212).
    assert kept(1, four(start=START[[1, 2, 4, 5]])) == [0]


def test_a_rater_is_above_the_mean_and_without_any_all_rate() -> None:
    # Every text token alike: no one is above the mean.
    assert kept(1, four(text=TEXT[[0, 0, 0]])) == [3]
    assert kept(1, four(start=torch.zeros(9, 4))) == [3]


def test_edge_budgets() -> None:
    for method in (SparseVLM(), SparseVLM(recycle=False)):
        assert method(four(), 4).is_identity
        assert method(four(), None).is_identity
    one = SparseVLM()(four(), 1)
    assert (one.m, one.anchors.tolist()) == (1, [2])


def test_ties_go_to_the_lower_slot() -> None:
    flat = look(visual=(1, 2, 3, 4), text=(5, 6, 7))
    made = tokens(torch.zeros(4, 1), before=flat, start=START, text=TEXT)
    assert SparseVLM(recycle=False)(made, 2).anchors.tolist() == [0, 1]


# 36 tokens, the one in slot j of weight j + 1. Of 6, 4 are kept (32..35); of the 32 others the
# int(9.6) + 1 = 10 best (22..31) are candidates, in int(10 / 10) + 1 = 2 clusters, and a density
# is exp of -(distance to the nearest other)^2 / 2:
#   slot     22    23    24    25    26    27     28     29     30     31
#   value   0.0   1.0   1.25  2.0   4.0  -3.0   20.0   20.5   21.0   23.0
#   nearest 1.0   0.25  0.25  0.75  2.0   3.0    0.5    0.5    0.5    2.0
# 23 and 24 are densest, and the lower slot counts as denser: delta of 23 is the greatest distance,
# 26. Of 28, 29, 30 the lowest again: from it to the nearest denser token, 24, it is 18.75.
VALUES = dict(
    zip(range(22, 32), (0.0, 1.0, 1.25, 2.0, 4.0, -3.0, 20.0, 20.5, 21.0, 23.0), strict=True)
)


def thirty_six() -> VisualTokens:
    values = torch.tensor([[VALUES.get(j, 500.0 + j)] for j in range(36)])
    weight = {39: [0.0] + [j + 1.0 for j in range(36)]}
    seen = look(weight, visual=range(1, 37), text=(37, 38, 39))
    text = rows([0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0])  # the last one is the rater
    return tokens(values, before=seen, start=START, text=text)


def test_the_best_of_the_others_are_merged() -> None:
    found = SparseVLM()(thirty_six(), 6).in_raster_order()
    assert found.anchors.tolist() == [23, 28, 32, 33, 34, 35]
    matrix = torch.zeros(6, 36)
    matrix[0, 22:28] = 1 / 6
    matrix[1, 28:32] = 1 / 4
    matrix[2:, 32:] = torch.eye(4)
    torch.testing.assert_close(found.to_matrix(), matrix)


def test_without_recycling_all_are_kept_ones() -> None:
    assert SparseVLM(recycle=False)(thirty_six(), 6).anchors.tolist() == list(range(30, 36))


# Kept counts of the released tables, merged tokens and so the counts after each drop.
TABLES = {
    "authors-192": ((300, 200, 110), (309, 204, 113), 192, 206.5),
    "authors-128": ((303, 110, 36), (312, 117, 39), 128, 145.4),
    "authors-96": ((238, 48, 26), (249, 55, 27), 96, 114.1),
    "authors-64": ((66, 30, 17), (82, 32, 18), 64, 82.2),
}


@pytest.mark.parametrize("name", TABLES)
def test_presets_are_kept_and_merged_tokens_of_the_released_tables(name: str) -> None:
    kept, counts, _, _ = TABLES[name]
    assert preset_steps(SparseVLM, name) == list(zip((3, 7, 16), counts, strict=True))
    n = 576
    for of_them, count in zip(kept, counts, strict=True):
        assert split(n, count) == (of_them, count - of_them)
        # int(0.3 r) + 1 candidates, int(candidates / 10) + 1 clusters
        assert count - of_them == int((int(0.3 * (n - of_them)) + 1) / 10) + 1
        n = count


@pytest.mark.parametrize("name", TABLES)
def test_both_ways_of_counting(name: str) -> None:
    _, (a, b, c), nominal, ran = TABLES[name]
    steps = SparseVLM(**SparseVLM.presets[name].fields).steps(576, None, 32)
    assert average(steps, 576, 32) == pytest.approx(ran, abs=0.05)
    # The authors count the layers that decide (2, 6, 15) as if they had run on the fewer tokens,
    # and name a preset after the whole tokens: 192.0, 128.6, 96.9, 64.8.
    assert int((2 * 576 + 4 * a + 9 * b + 17 * c) / 32) == nominal


def test_an_average_falls_as_the_released_counts_do() -> None:
    steps = SparseVLM().steps(576, 206, 32)
    assert [step.layer for step in steps] == [3, 7, 16]
    for step, count in zip(steps, (309, 204, 113), strict=True):
        assert step.keep == pytest.approx(count, abs=2)
    first = [step.keep / 576 for step in SparseVLM().steps(576, 100, 32)]
    assert first[0] / first[1] == pytest.approx(309 / 204, rel=0.05)
    assert first[1] / first[2] == pytest.approx(204 / 113, rel=0.05)


def test_split_is_exact_and_keeps_as_many_as_it_can() -> None:
    def clusters(k: int, n: int) -> int:
        return int((int(0.3 * (n - k)) + 1) / 10) + 1

    for n in (1, 2, 10, 40, 117, 576):
        assert split(n, n) == (n, 0)
        for m in range(1, n):
            k, merged = split(n, m)
            assert k + merged == m
            fitting = [j for j in range(1, m) if j + clusters(j, n) == m]
            assert (k, merged) == ((max(fitting), m - max(fitting)) if fitting else (m, 0))
            # Only a budget smaller than the clusters alone would be has none.
            assert fitting or m <= clusters(1, n)


def test_layers_lie_at_the_same_depth() -> None:
    assert SparseVLM().layers_in(32) == (3, 7, 16)
    assert SparseVLM().layers_in(40) == (4, 9, 20)
    assert SparseVLM(at=(2, 4)).layers_in(40) == (2, 4)
    assert len(SparseVLM(at=(2, 4, 6, 8, 10)).steps(576, 192, 32)) == 5


# ---------------------------------------------------------------- v2

# Position encodings as angles in a plane, of any length: cosines of 0: system, 1..4: v0 .. v3,
# 5, 6: raters T1, T2.
#            v0     v1     v2     v3
#  T1        1     0.5    0.25   -0.2 -> 0.1
#  T2       0.5     1     0.964   0.748
_COSINES = torch.tensor([1.0, 1.0, 0.5, 0.25, -0.2, 1.0, 0.5])
_LENGTHS = torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 4.0, 1.0])
ONES = torch.stack([_COSINES, (1 - _COSINES**2).sqrt()], 1) * _LENGTHS[:, None]
_T1 = {5: (0.41, 0.30, 0.12, 0.12, 0.05)}


def placed(*heads: dict[int, tuple[float, ...]], text: tuple[int, ...] = (5,)) -> VisualTokens:
    seen = look(*heads, visual=(1, 2, 3, 4), text=text, ones=ONES)
    embeddings = torch.zeros(len(text), 4)  # all alike: all rate
    return tokens(torch.zeros(4, 1), before=seen, start=torch.zeros(4, 4), text=embeddings)


def order(given: VisualTokens, **fields: Any) -> list[int]:
    """Slots from the best on."""
    found: list[int] = []
    for keep in range(1, given.n + 1):
        now = SparseVLM(recycle=False, **fields)(given, keep).anchors.tolist()
        (new,) = set(now) - set(found)
        found.append(new)
    return found


def test_attention_is_divided_by_what_position_alone_gives() -> None:
    # T1: 0.30 / 1, 0.12 / 0.5, 0.12 / 0.25, 0.05 / 0.1 = 0.30, 0.24, 0.48, 0.50. Divided by what is
    # there, v3 would be last (-0.25).
    assert order(placed(_T1)) == [0, 1, 2, 3]
    assert order(placed(_T1), gravity=True) == [3, 2, 0, 1]


def test_every_rater_stands_at_a_place_of_its_own() -> None:
    # T2 adds 0.15 / 0.5 = 0.30 to v0, which is first then: 0.60. By T1's place it would add 0.15.
    both = _T1 | {6: (0.85, 0.15, 0.0, 0.0, 0.0)}
    assert order(placed(both, text=(5, 6)), gravity=True) == [0, 3, 2, 1]


def test_attention_without_places_is_refused_where_they_matter() -> None:
    assert order(four()) == [2, 0, 1, 3]
    with pytest.raises(StageNotAvailable, match="without its position encoding"):
        order(four(), gravity=True)


#         v0    v1    v2    v3    sum    sum of what is divided by 1, 0.5, 0.25, 0.1
#  A     0.30  0.30  0.05  0.00  0.65   0.30 + 0.60 + 0.20        = 1.10
#  B     0.00  0.10  0.45  0.00  0.55   0.20 + 1.80               = 2.00
#  C     0.50  0.00  0.00  0.00  0.50   0.50
#  D     0.40  0.00  0.00  0.01  0.41   0.40 + 0.10               = 0.50
HEADS = (
    {5: (0.35, 0.30, 0.30, 0.05, 0.00)},
    {5: (0.45, 0.00, 0.10, 0.45, 0.00)},
    {5: (0.50, 0.50, 0.00, 0.00, 0.00)},
    {5: (0.59, 0.40, 0.00, 0.00, 0.01)},
)


def test_heads_that_look_at_the_picture_most_are_averaged() -> None:
    assert order(placed(*HEADS)) == [0, 2, 1, 3]  # 1.2, 0.4, 0.5, 0.01 together
    assert order(placed(*HEADS), heads=0.5) == [2, 1, 0, 3]  # A and B: 0.3, 0.4, 0.5
    assert order(placed(*HEADS), heads=0.25) == [0, 1, 2, 3]  # A; the lower of two alike
    assert order(placed(*HEADS), heads=0.01) == [0, 1, 2, 3]  # one at least
    assert order(placed(*HEADS), heads=0.3) == [0, 1, 2, 3]  # 1.2 are one
    assert order(placed(*HEADS), heads=0.4) == [2, 1, 0, 3]  # 1.6 are two


def test_heads_are_chosen_by_what_was_corrected() -> None:
    assert order(placed(*HEADS), heads=0.25, gravity=True)[:2] == [2, 1]  # B


def test_raters_are_corrected_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    both = placed(_T1 | {6: (0.85, 0.15, 0.0, 0.0, 0.0)}, text=(5, 6))
    whole = order(both, gravity=True, heads=0.5)
    monkeypatch.setattr("foveate.attention.BLOCK", 1)  # one rater at a time
    assert order(both, gravity=True, heads=0.5) == whole == [0, 3, 2, 1]


def test_the_floor_is_out_of_reach_of_the_published_settings() -> None:
    """LLaVA-1.5: 128 dimensions, base 10000, a prompt of at most 650 tokens."""
    frequency = 10000.0 ** (-torch.arange(64, dtype=torch.float64) / 64)
    weight = torch.cos(torch.arange(2000)[:, None] * frequency).mean(1)
    assert weight[:651].min() > 0.1
    assert weight[0] * 128**0.5 == pytest.approx(11.3, abs=0.02)
    assert weight.min() < 0


V2 = {
    "authors-v2-192": ((300, 200, 118), 206.75),
    "authors-v2-128": ((238, 108, 60), 144.1),
    "authors-v2-96": ((246, 54, 28), 113.9),
    "authors-v2-64": ((66, 34, 20), 81.8),
}


@pytest.mark.parametrize("name", V2)
def test_v2_presets_are_the_released_tables(name: str) -> None:
    counts, ran = V2[name]
    preset = SparseVLM.presets[name]
    assert preset_steps(SparseVLM, name) == list(zip((3, 7, 16), counts, strict=True))
    method = SparseVLM(**preset.fields)
    assert average(method.steps(576, None, 32), 576, 32) == pytest.approx(ran, abs=0.05)
    assert (method.recycle, method.gravity, round(method.heads * 32)) == (False, True, 14)
    assert preset.positions == "original"


@pytest.mark.parametrize("heads", [0.0, -1.0, 1.5])
def test_a_share_of_heads_is_a_share(heads: float) -> None:
    with pytest.raises(BudgetError, match="share of the heads"):
        SparseVLM(heads=heads)
