"""Shared tensor maths against plain loops, on whatever hypothesis comes up with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate import ops
from foveate.compressor import Grid

# Few different values, so that ties are common.
COARSE = st.integers(-3, 3).map(float)
scores = st.lists(COARSE | st.just(math.nan), min_size=1, max_size=12)
quick = settings(max_examples=80, deadline=None)


@quick
@given(scores, st.data())
def test_top(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    last = [math.isnan(value) for value in values]
    order = sorted(range(len(values)), key=lambda i: (last[i], 0 if last[i] else -values[i], i))
    found = ops.top(torch.tensor(values, dtype=torch.float32), k)
    assert found.tolist() == order[:k]


def test_top_tells_doubles_apart() -> None:
    score = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert ops.top(score, 1).tolist() == [1]


def test_sine_positions() -> None:
    found = ops.sine_positions(3, 4)
    for place in range(3):
        slow = place / 100
        wanted = [f(angle) for f in (math.sin, math.cos) for angle in (place, slow)]
        assert found[place].tolist() == pytest.approx(wanted)
    # An odd width leaves the slowest cosine out: two rates, three numbers.
    assert torch.equal(ops.sine_positions(3, 3), found[:, :3])


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_fractional_windows(n: int, m: int, kernel: int) -> None:
    m = min(m, n)
    for row, window in enumerate(ops.fractional_windows(n, m, kernel).tolist()):
        middle = (2 * row + 1) * n // (2 * m)
        before = (kernel - 1) // 2
        inside = [i for i in range(middle - before, middle - before + kernel) if 0 <= i < n]
        wanted = [1 / len(inside) if i in inside else 0.0 for i in range(n)]
        assert window == pytest.approx(wanted)


@quick
@given(st.sets(st.integers(0, 9)), st.integers(10, 12))
def test_others(index: set[int], n: int) -> None:
    expected = [i for i in range(n) if i not in index]
    assert ops.others(torch.tensor(sorted(index), dtype=torch.long), n).tolist() == expected


@quick
@given(st.integers(1, 40), st.data())
def test_equidistant(n: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(0, n))
    expected = [math.floor((i + 0.5) * n / m) for i in range(m)]
    assert ops.equidistant(m, n).tolist() == expected
    assert len(set(expected)) == m


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_share_out(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes)))
    found = ops.share_out(total, sizes)
    assert sum(found) == total
    for given_here, size in zip(found, sizes, strict=True):
        assert 0 <= given_here <= size
        # Largest remainders: nobody is a whole item away from a fair share.
        assert abs(given_here - total * size / sum(sizes)) < 1


def test_share_out_by_hand() -> None:
    # 5 over 2 : 3 : 3 of 8 is 1.25, 1.875, 1.875: rounded down 1 1 1, the remainders add 0 1 1.
    assert ops.share_out(5, [2, 3, 3]) == [1, 2, 2]
    assert ops.share_out(1, [3, 3]) == [1, 0]  # a tie goes to the earlier
    with pytest.raises(ValueError, match="7 items do not fit"):
        ops.share_out(7, [3, 3])


@quick
@given(st.lists(COARSE, min_size=1, max_size=30))
def test_outlier_share(values: list[float]) -> None:
    ordered = sorted(values)

    def quartile(q: float) -> float:
        place = q * (len(ordered) - 1)
        low, part = int(place), place - int(place)
        high = ordered[min(low + 1, len(ordered) - 1)]
        return ordered[low] + part * (high - ordered[low])

    limit = quartile(0.75) + 1.5 * (quartile(0.75) - quartile(0.25))
    count = sum(value > limit for value in values)
    share = ops.outlier_share(torch.tensor(values))
    assert share == count / len(values)
    assert int(len(values) * share) == count


def test_a_share_of_outliers_turns_back_into_their_count() -> None:
    for count in range(1, 100):
        score = torch.zeros(576)
        score[:count] = 1
        assert int(576 * ops.outlier_share(score)) == count


@quick
@given(st.lists(st.tuples(COARSE, COARSE), min_size=1, max_size=6))
def test_cosine(values: list[tuple[float, float]]) -> None:
    x = torch.tensor(values)
    found = ops.cosine(x, x)
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            length = math.hypot(*a) * math.hypot(*b)
            expected = (a[0] * b[0] + a[1] * b[1]) / length if length else 0.0
            assert found[i, j].item() == pytest.approx(expected, abs=1e-6)


@quick
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.data())
def test_one_slot_per_cell(cells: list[int], data: st.DataObject) -> None:
    m = data.draw(st.integers(1, len(cells)))
    index, cover = ops.one_slot_per_cell(torch.tensor(cells), m)
    kept = index.tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == m
    shown = {cells[slot] for slot in kept}
    assert len(shown) == min(m, len(set(cells)))  # as many different ones as possible
    for slot, row in enumerate(cover.tolist()):
        if cells[slot] in shown:
            assert cells[kept[row]] == cells[slot]
        else:
            assert row == -1
    assert cover[index].tolist() == list(range(m))


@quick
@given(st.lists(st.tuples(COARSE, COARSE), min_size=2, max_size=12), st.data())
def test_bipartite_matching(values: list[tuple[float, float]], data: st.DataObject) -> None:
    n = len(values)
    protected = data.draw(st.integers(0, 1))
    r = data.draw(st.integers(0, (n - protected) // 2))
    metric = torch.tensor(values)
    found = ops.bipartite_matching(metric, r, protected).tolist()
    even = [i for i in range(0, n, 2) if i >= protected]
    odd = [i for i in range(1, n, 2) if i >= protected]
    # The very same product: how a cosine of zero is rounded depends on the shape it is part of.
    like = torch.zeros(n, n)
    if even and odd:
        like[torch.tensor(even)[:, None], torch.tensor(odd)] = ops.cosine(metric[even], metric[odd])
    best = {a: max(odd, key=lambda b: (like[a, b].item(), -b)) for a in even} if odd else {}
    gone = sorted(best, key=lambda a: (-like[a, best[a]].item(), a))[:r]
    survivors = [i for i in range(n) if i not in gone]
    expected = [survivors.index(best[i] if i in gone else i) for i in range(n)]
    assert found == expected


@quick
@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.integers(0, 99))
def test_merge_weighted(raw: list[int], seed: int) -> None:
    names = sorted(set(raw))
    owner = [names.index(each) for each in raw]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(owner), 3, generator=generator)
    size = torch.randint(1, 5, (len(owner),), generator=generator).float()
    merged, total = ops.merge_weighted(x, torch.tensor(owner), size)
    for row in range(len(names)):
        mine = [i for i, each in enumerate(owner) if each == row]
        expected = sum(x[i] * size[i] for i in mine) / sum(size[i] for i in mine)
        torch.testing.assert_close(merged[row], expected)
        assert total[row] == sum(size[i] for i in mine)
        if len(mine) == 1:
            assert merged[row].equal(x[mine[0]])


@quick
@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_cells_are_rectangles_of_like_size(height: int, width: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, height * width))
    cells = ops.cells_of(Grid(1, height, width), m).reshape(height, width)
    assert sorted(set(cells.flatten().tolist())) == list(range(m))
    for cell in range(m):
        where = (cells == cell).nonzero()
        spans = where.amax(0) - where.amin(0) + 1
        assert int(spans.prod()) == len(where)  # no holes


grids = st.lists(
    st.builds(Grid, st.integers(1, 2), st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3
)


@quick
@given(grids, st.data())
def test_a_lattice_numbers_its_cells_grid_by_grid(each: list[Grid], data: st.DataObject) -> None:
    n = sum(grid.size for grid in each)
    m = data.draw(st.integers(1, n))
    cells = ops.lattice(each, m)
    start, used = 0, 0
    for grid, count in zip(each, ops.share_out(m, [grid.size for grid in each]), strict=True):
        here = cells[start : start + grid.size]
        assert sorted(set(here.tolist()) - {-1}) == list(range(used, used + count))
        start, used = start + grid.size, used + count
    assert (start, used) == (n, m)


@quick
@given(grids, st.data())
def test_centres_of(each: list[Grid], data: st.DataObject) -> None:
    m = data.draw(st.integers(1, sum(grid.size for grid in each)))
    cells = ops.lattice(each, m)
    places = [
        (t, y, x)
        for grid in each
        for t in range(grid.frames)
        for y in range(grid.height)
        for x in range(grid.width)
    ]
    found = ops.centres_of(cells, each, m).tolist()
    for cell in range(m):
        mine = [slot for slot, its in enumerate(cells.tolist()) if its == cell]
        # Cells are rectangles: their centres are halves, so equal distances are equal floats.
        centre = [sum(places[slot][axis] for slot in mine) / len(mine) for axis in range(3)]
        assert found[cell] == min(mine, key=lambda slot: (math.dist(places[slot], centre), slot))


@quick
@given(st.integers(2, 7), st.integers(1, 8), st.booleans(), st.data())
def test_enriched(n: int, neighbours: int, extra: bool, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 1, unique=True))
    weight = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    keys = torch.tensor(data.draw(st.lists(st.tuples(COARSE, COARSE), min_size=n, max_size=n)))
    found = ops.enriched(
        torch.tensor(kept), torch.tensor(weight).float(), keys, neighbours, extra=extra
    )
    like = ops.cosine(keys[kept], keys)
    expected = []
    for row, i in enumerate(kept):
        near = [j for j in range(n) if j != i]
        near.sort(key=lambda j, row=row: (-like[row, j].item(), j))
        expected.append([0.0] * n)
        for j in near[:neighbours]:
            expected[row][j] = float(weight[j])
        expected[row][i] = 1.0
    anchors, rest = list(kept), [j for j in range(n) if j not in kept]
    if extra:
        expected.append([float(weight[j]) if j in rest else 0.0 for j in range(n)])
        anchors.append(min(rest, key=lambda j: (-weight[j], j)))
    assert found.to_matrix().tolist() == expected
    assert found.anchors.tolist() == anchors
