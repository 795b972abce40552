"""P as data: every reader of P agrees with the matrix written out in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file

from foveate.errors import MappingError, SavedFileError
from foveate.mapping import FORMAT, Mapping, distinct_anchors, stack_counts

SEED = st.integers(0, 2**31 - 1)


@st.composite
def mappings(draw: st.DrawFn, n: int | None = None, virtual: bool = True) -> Mapping:
    """A mapping of any kind over `n` (or 1 to 9) slots."""
    n = n or draw(st.integers(1, 9))
    m = draw(st.integers(1, n))
    g = torch.Generator().manual_seed(draw(SEED))
    anchors = torch.randperm(n, generator=g)[:m]
    kind = draw(st.sampled_from(["select", "assign", "sparse", "dense"]))
    if kind == "select":
        return Mapping.select(anchors, n)
    if kind == "assign":
        owner = torch.randint(-1, m, (n,), generator=g)
        owner[anchors] = torch.arange(m)
        return Mapping.assign(owner, anchors, torch.rand(n, generator=g) + 0.1)
    extra = draw(st.integers(0, 2)) if virtual else 0
    matrix = torch.rand(m, n + extra, generator=g) + 0.01
    matrix /= matrix.sum(1, keepdim=True)
    if kind == "dense":
        return Mapping.dense(matrix, anchors, virtual=extra)
    rows, cols = torch.nonzero(matrix > 0.1, as_tuple=True)
    return Mapping.sparse(rows, cols, matrix[rows, cols], n=n, anchors=anchors, virtual=extra)


def same(a: Mapping, b: Mapping) -> bool:
    """Equal matrices, anchors and shapes."""
    return (
        (a.n, a.m, a.virtual) == (b.n, b.m, b.virtual)
        and torch.equal(a.anchors, b.anchors)
        and torch.allclose(a.to_matrix(), b.to_matrix(), atol=1e-6)
    )


# ---------------------------------------------------------------- one example worked by hand


def test_merging_four_tokens_into_two_by_hand() -> None:
    """Slots 0 and 2 merge with weights 1 and 3, slot 3 stays, slot 1 is dropped."""
    p = Mapping.assign(
        torch.tensor([0, -1, 0, 1]), torch.tensor([2, 3]), torch.tensor([1.0, 9.0, 3.0, 5.0])
    )
    assert p.to_matrix().tolist() == [[0.25, 0.0, 0.75, 0.0], [0.0, 0.0, 0.0, 1.0]]
    x = torch.tensor([[4.0, 0.0], [100.0, 100.0], [8.0, 4.0], [1.0, 2.0]])
    assert p.apply(x).tolist() == [[7.0, 3.0], [1.0, 2.0]]
    assert p.sizes().tolist() == [2.0, 1.0]
    assert p.owner().tolist() == [0, -1, 0, 1]
    assert p.carry(torch.tensor([10, 11, 12, 13])).tolist() == [12, 13]
    assert p.transpose(torch.tensor([4.0, 8.0])).tolist() == [1.0, 0.0, 3.0, 8.0]
    assert repr(p) == "Mapping(4 -> 2, merge)"
    assert not p.is_selection
    assert stack_counts([p, Mapping.identity(3)]) == (7, 5)


def test_equal_weights_are_a_mean() -> None:
    p = Mapping.assign(torch.tensor([0, 0, 0]), torch.tensor([1]))
    assert p.apply(torch.tensor([3.0, 6.0, 9.0])).tolist() == [6.0]


def test_a_virtual_source_is_a_column_after_the_slots() -> None:
    p = Mapping.sparse(
        torch.tensor([0, 1]),
        torch.tensor([3, 1]),
        torch.tensor([1.0, 1.0]),
        n=3,
        anchors=torch.tensor([0, 1]),
        virtual=1,
    )
    x = torch.tensor([1.0, 2.0, 3.0, 40.0])
    assert p.apply(x).tolist() == [40.0, 2.0]
    assert p.owner().tolist() == [-1, 1, -1]
    assert repr(p) == "Mapping(3 + 1 virtual -> 2, merge)"


def test_repr_names_the_three_kinds() -> None:
    assert repr(Mapping.select(torch.tensor([1]), 2)) == "Mapping(2 -> 1, select)"
    assert repr(Mapping.dense(torch.ones(1, 2) / 2)) == "Mapping(2 -> 1, dense)"


# ---------------------------------------------------------------- laws


@given(mappings(), SEED)
def test_apply_is_the_matrix_product(p: Mapping, seed: int) -> None:
    x = torch.randn(p.n + p.virtual, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(p.apply(x), p.to_matrix() @ x, atol=1e-5)
    assert p.apply(x[:, 0]).shape == (p.m,)


@given(mappings(), SEED)
def test_apply_leaves_its_argument_alone_and_keeps_its_dtype(p: Mapping, seed: int) -> None:
    x = torch.randn(p.n + p.virtual, 2, 2, generator=torch.Generator().manual_seed(seed))
    before = x.clone()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        out = p.apply(x.to(dtype))
        assert out.dtype == dtype
        assert out.shape == (p.m, 2, 2)
        assert torch.allclose(out.double(), p.apply(x.double()), atol=3e-2)
    assert torch.equal(x, before)


@given(st.data())
def test_composition_is_the_matrix_product(data: st.DataObject) -> None:
    first = data.draw(mappings())
    second = data.draw(mappings(n=first.m, virtual=False))
    both = second @ first
    assert torch.allclose(both.to_matrix(), second.to_matrix() @ first.to_matrix(), atol=1e-6)
    assert torch.equal(both.anchors, first.anchors[second.anchors])
    x = torch.randn(first.n + first.virtual, 2)
    assert torch.allclose(both.apply(x), second.apply(first.apply(x)), atol=1e-5)


@given(mappings())
def test_identity_composes_to_the_same_mapping(p: Mapping) -> None:
    assert same(Mapping.identity(p.m) @ p, p)


@given(mappings(), SEED)
def test_transpose_is_the_transposed_product(p: Mapping, seed: int) -> None:
    y = torch.randn(p.m, 2, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(p.transpose(y), p.to_matrix().T @ y, atol=1e-5)


@given(mappings())
def test_sizes_count_the_sources_of_each_row(p: Mapping) -> None:
    assert torch.equal(p.sizes(), (p.to_matrix() != 0).sum(1).float())


@given(mappings())
def test_an_owner_is_the_row_where_a_source_weighs_most(p: Mapping) -> None:
    matrix, owner = p.to_matrix()[:, : p.n], p.owner()
    for j in range(p.n):
        if owner[j] < 0:
            assert not matrix[:, j].any()
        else:
            assert matrix[owner[j], j] == matrix[:, j].max()


@given(mappings())
def test_carry_copies_the_anchors_value_or_applies_p(p: Mapping) -> None:
    values = torch.arange(p.n + p.virtual) * 7
    assert p.carry(values).tolist() == [7 * int(a) for a in p.anchors]
    x = torch.randn(p.n + p.virtual, 2)
    assert torch.equal(p.carry(x, "mean"), p.apply(x))


@given(mappings(), SEED)
def test_reordering_permutes_rows_anchors_and_owners(p: Mapping, seed: int) -> None:
    order = torch.randperm(p.m, generator=torch.Generator().manual_seed(seed))
    q = p.reorder(order)
    assert torch.allclose(q.to_matrix(), p.to_matrix()[order])
    assert torch.equal(q.anchors, p.anchors[order])
    assert same(q.reorder(torch.argsort(order)), p)


@given(mappings())
def test_raster_order_sorts_by_anchor(p: Mapping) -> None:
    q = p.in_raster_order()
    assert q.anchors.tolist() == sorted(p.anchors.tolist())
    assert q.in_raster_order() is q


@given(mappings())
def test_a_saved_mapping_comes_back(p: Mapping) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        p.save(Path(folder) / "p.safetensors")
        q = Mapping.load(Path(folder) / "p.safetensors")
    assert same(p, q)
    assert (q.is_selection, q.matrix is None) == (p.is_selection, p.matrix is None)


@given(mappings())
def test_moving_to_a_device_changes_nothing_else(p: Mapping) -> None:
    assert same(p.to("cpu"), p)


@given(st.integers(1, 9), SEED)
def test_distinct_anchors_are_distinct_and_the_heaviest_row_chooses_first(
    n: int, seed: int
) -> None:
    weights = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))[: n // 2 + 1]
    anchors = distinct_anchors(weights)
    assert len(set(anchors.tolist())) == len(weights)
    first = int(weights.max(1).values.argmax())
    assert anchors[first] == weights[first].argmax()


# ---------------------------------------------------------------- particulars


def test_a_selection_copies_bits() -> None:
    x = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    out = Mapping.select(torch.tensor([3, 2, 1]), 4).apply(x)
    assert torch.equal(out.view(torch.int32), x[[3, 2, 1]].view(torch.int32))


def test_identity_is_recognised() -> None:
    assert Mapping.identity(4).is_identity
    assert Mapping.identity(1).is_identity
    assert not Mapping.select(torch.tensor([1, 0]), 2).is_identity
    assert not Mapping.select(torch.tensor([0, 1]), 3).is_identity
    assert not Mapping.dense(torch.eye(3)).is_identity


def test_selecting_one_slot_twice_is_not_the_identity() -> None:
    assert not Mapping.select(torch.tensor([0, 0]), 2).is_identity


def test_entries_at_one_place_add_up() -> None:
    p = Mapping.sparse(
        torch.tensor([0, 0]),
        torch.tensor([1, 1]),
        torch.tensor([0.25, 0.75]),
        n=2,
        anchors=torch.tensor([1]),
    )
    assert p.to_matrix().tolist() == [[0.0, 1.0]]
    assert p.apply(torch.tensor([5.0, 3.0])).tolist() == [3.0]


def test_a_dense_mapping_passes_gradients() -> None:
    matrix = torch.full((2, 3), 1 / 3, requires_grad=True)
    p = Mapping.dense(matrix)
    p.apply(torch.arange(3.0)).sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.tolist() == [[0.0, 1.0, 2.0]] * 2
    assert not p.anchors.requires_grad


def test_dense_anchors_give_way_to_the_heavier_row() -> None:
    p = Mapping.dense(torch.tensor([[0.6, 0.4, 0.0], [0.8, 0.0, 0.2]]))
    assert p.anchors.tolist() == [1, 0]


def test_cover_overrides_the_owner_and_follows_a_reordering() -> None:
    cover = torch.tensor([0, 0, 1, -1])
    p = Mapping.select(torch.tensor([2, 0]), 4, cover=cover)
    assert p.owner().tolist() == [0, 0, 1, -1]
    assert p.reorder(torch.tensor([1, 0])).owner().tolist() == [1, 1, 0, -1]


# ---------------------------------------------------------------- what must be refused


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Mapping.select(torch.tensor([4]), 4),
            r"Anchors must be source slots 0\.\.3; got 4",
        ),
        (lambda: Mapping.select(torch.tensor([-1]), 4), r"Anchors must be source slots"),
        (
            lambda: Mapping.dense(torch.ones(2, 4), torch.tensor([1])),
            r"must be \(m, n \+ virtual\) = \(1, 4\); got \(2, 4\)",
        ),
        (lambda: Mapping(n=2, anchors=torch.tensor([0])), "needs rows and cols"),
        (
            lambda: Mapping(
                n=2,
                anchors=torch.tensor([0, 1]),
                rows=torch.tensor([0, 0]),
                cols=torch.tensor([0, 1]),
            ),
            "exactly one source for each row",
        ),
        (
            lambda: Mapping.sparse(
                torch.tensor([0]), torch.tensor([2]), torch.ones(1), n=2, anchors=torch.tensor([0])
            ),
            r"Sources must lie in 0\.\.1; got 2\.\.2",
        ),
        (
            lambda: Mapping.sparse(
                torch.tensor([1]), torch.tensor([0]), torch.ones(1), n=2, anchors=torch.tensor([0])
            ),
            r"Rows must lie in 0\.\.0; got 1\.\.1",
        ),
        (
            lambda: Mapping.assign(torch.tensor([0, 0]), torch.tensor([0, 1])),
            "needs a source of positive weight",
        ),
        (lambda: Mapping.identity(3).apply(torch.zeros(4)), r"maps 3 \+ 0 sources; got 4 rows"),
        (lambda: Mapping.identity(3) @ Mapping.identity(2), "Cannot compose"),
        (lambda: Mapping.identity(3).carry(torch.zeros(3), "max"), "takes 'anchor' or 'mean'"),
        (
            lambda: Mapping.select(torch.tensor([1, 1]), 2).in_raster_order(),
            "Two kept tokens share an anchor",
        ),
        (lambda: distinct_anchors(torch.ones(3, 2)), "3 rows cannot have distinct anchors among 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(MappingError, match=message) as caught:
        build()
    assert len(str(caught.value).splitlines()) <= 4


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(b"not a mapping")
    with pytest.raises(SavedFileError, match="is no safetensors file"):
        Mapping.load(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    Mapping.identity(50).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SavedFileError, match="is no safetensors file"):
        Mapping.load(path)


@pytest.mark.parametrize("meta", [None, {"format": "99", "n": "1", "virtual": "0"}])
def test_another_format_is_refused(tmp_path: Path, meta: dict[str, str] | None) -> None:
    path = tmp_path / "p.safetensors"
    save_file({"anchors": torch.tensor([0])}, str(path), metadata=meta)
    with pytest.raises(SavedFileError, match=f"this foveate reads format {FORMAT}"):
        Mapping.load(path)


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    meta = {"format": str(FORMAT), "n": "1", "virtual": "0"}
    save_file({"anchors": torch.tensor([0]), "extra": torch.zeros(1)}, str(path), metadata=meta)
    with pytest.raises(SavedFileError, match=r"unknown parts \['extra'\]"):
        Mapping.load(path)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "tensors",
    [
        {"rows": torch.tensor([0]), "cols": torch.tensor([0])},
        {"anchors": torch.tensor([9]), "rows": torch.tensor([0]), "cols": torch.tensor([0])},
    ],
    ids=["no anchors", "anchors out of range"],
)
def test_a_file_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "p.safetensors"
    save_file(tensors, str(path), metadata={"format": str(FORMAT), "n": "2", "virtual": "0"})
    with pytest.raises(SavedFileError, match="parts that do not fit"):
        Mapping.load(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SavedFileError, match=r"absent.safetensors is no safetensors file: No such"):
        Mapping.load(tmp_path / "absent.safetensors")


def test_a_mapping_may_withdraw_everything() -> None:
    nothing = Mapping.select(torch.zeros(0, dtype=torch.long), 5)
    assert nothing.m == 0 and nothing.n == 5
    assert nothing.owner().tolist() == [-1] * 5
    assert nothing.apply(torch.randn(5, 3)).shape == (0, 3)
    assert nothing.transpose(torch.randn(0, 3)).tolist() == [[0.0] * 3] * 5
    assert (nothing @ Mapping.select(torch.arange(5), 8)).n == 8
    assert nothing.in_raster_order() is nothing
