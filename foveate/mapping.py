"""The mapping P: which visual tokens make which kept token, as data.

One image (or video) has n visual tokens X and keeps m of them: X~ = P X with P of shape (m, n).
Selecting is a 0/1 P, merging a sparse P, learned pooling a dense P. Whatever must follow the
tokens - positions, DeepStack rows, pictures, counts, logs - reads P and nothing else.

Every row has an **anchor**: the one source slot in which its token lives on. It decides the
token's position id and its place in the picture. Sources 0..n-1 are the visual slots; a method
may use further **virtual** sources (columns n..n+virtual-1), such as the vision tower's CLS.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveate.errors import MappingError, SavedFileError

FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Mapping:
    """P of shape (m, n + virtual), stored sparse (triplets) or dense, never both.

    Build one with `select`, `assign`, `sparse`, `dense` or `identity`.

    Attributes:
        n: number of source slots.
        anchors: (m,) the source slot, 0..n-1, on which each row lives.
        rows, cols: (k,) coordinates of the non-zero entries, sorted by row; None if dense.
        weights: (k,) the entries; None means all ones with one entry a row: a pure selection,
            which copies bits exactly. None as well if dense.
        matrix: (m, n + virtual) the dense form; None if sparse.
        virtual: number of source columns that are no visual slot.
        cover: (n,) the row that stands for each source in pictures, -1 for none. Only where
            tokens were already fused before P acts (resizing, merging inside the encoder) does
            it say more than P's own support.
    """

    n: int
    anchors: Int[Tensor, " m"]
    rows: Int[Tensor, " k"] | None = None
    cols: Int[Tensor, " k"] | None = None
    weights: Float[Tensor, " k"] | None = None
    matrix: Float[Tensor, "m c"] | None = None
    virtual: int = 0
    cover: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        m, width = self.m, self.n + self.virtual
        if m and (int(self.anchors.min()) < 0 or int(self.anchors.max()) >= self.n):
            raise MappingError(
                f"Anchors must be source slots 0..{self.n - 1}; got "
                f"{int(self.anchors.min())}..{int(self.anchors.max())}."
            )
        if self.matrix is not None:
            if tuple(self.matrix.shape) != (m, width):
                raise MappingError(
                    f"A dense P must be (m, n + virtual) = ({m}, {width}); "
                    f"got {tuple(self.matrix.shape)}."
                )
            return
        if self.rows is None or self.cols is None:
            raise MappingError("A sparse P needs rows and cols; a dense one needs its matrix.")
        if self.weights is None and not torch.equal(
            self.rows, torch.arange(m, device=self.rows.device)
        ):
            raise MappingError("Without weights P is a selection: exactly one source for each row.")
        if len(self.cols) and (int(self.cols.min()) < 0 or int(self.cols.max()) >= width):
            raise MappingError(
                f"Sources must lie in 0..{width - 1}; got "
                f"{int(self.cols.min())}..{int(self.cols.max())}."
            )
        if len(self.rows) and (int(self.rows.min()) < 0 or int(self.rows.max()) >= m):
            raise MappingError(
                f"Rows must lie in 0..{m - 1}; got {int(self.rows.min())}..{int(self.rows.max())}."
            )

    # ------------------------------------------------------------------ constructors

    @classmethod
    def select(
        cls,
        index: Int[Tensor, " m"],
        n: int,
        *,
        cover: Int[Tensor, " n"] | None = None,
    ) -> Mapping:
        """Keep the sources `index` (m,), in that order, each as it is."""
        index = index.long()
        rows = torch.arange(len(index), device=index.device)
        return cls(n=n, anchors=index, rows=rows, cols=index, cover=cover)

    @classmethod
    def identity(cls, n: int, device: torch.device | str = "cpu") -> Mapping:
        """Keep everything: P = I."""
        return cls.select(torch.arange(n, device=device), n)

    @classmethod
    def assign(
        cls,
        owner: Int[Tensor, " n"],
        anchors: Int[Tensor, " m"],
        weight: Float[Tensor, " n"] | None = None,
    ) -> Mapping:
        """Merge each source into row `owner[j]` (-1: dropped); every row sums to one.

        Args:
            owner: (n,) the row each source goes to.
            anchors: (m,) where each row lives.
            weight: (n,) relative weights inside a row; equal weights (a mean) if None.
        """
        n, m = len(owner), len(anchors)
        cols = torch.nonzero(owner >= 0).flatten()
        rows = owner[cols].long()
        w = torch.ones(len(cols), device=owner.device) if weight is None else weight[cols].float()
        total = torch.zeros(m, device=owner.device).index_add_(0, rows, w)
        if bool((total <= 0).any()):
            raise MappingError("Every row of an assignment needs a source of positive weight.")
        return cls.sparse(rows, cols, w / total[rows], n=n, anchors=anchors)

    @classmethod
    def sparse(
        cls,
        rows: Int[Tensor, " k"],
        cols: Int[Tensor, " k"],
        weights: Float[Tensor, " k"],
        *,
        n: int,
        anchors: Int[Tensor, " m"],
        virtual: int = 0,
    ) -> Mapping:
        """P from triplets; several entries at one place add up."""
        order = torch.argsort(rows, stable=True)
        return cls(
            n=n,
            anchors=anchors.long(),
            rows=rows[order].long(),
            cols=cols[order].long(),
            weights=weights[order].float(),
            virtual=virtual,
        )

    @classmethod
    def dense(
        cls,
        matrix: Float[Tensor, "m c"],
        anchors: Int[Tensor, " m"] | None = None,
        *,
        virtual: int = 0,
    ) -> Mapping:
        """P from a full matrix, which may carry gradients.

        Anchors default to each row's heaviest source, made distinct (`distinct_anchors`).
        """
        n = matrix.shape[1] - virtual
        if anchors is None:
            anchors = distinct_anchors(matrix.detach()[:, :n])
        return cls(n=n, anchors=anchors.long(), matrix=matrix, virtual=virtual)

    # ------------------------------------------------------------------ reading

    @property
    def m(self) -> int:
        """Number of kept tokens (rows)."""
        return len(self.anchors)

    @property
    def is_selection(self) -> bool:
        """True if every row copies exactly one source."""
        return self.matrix is None and self.weights is None

    @property
    def is_identity(self) -> bool:
        """True if nothing is dropped, merged or reordered."""
        return self.is_selection and self.m == self.n and bool((self.anchors.diff() == 1).all())

    def apply(self, x: Float[Tensor, "c *d"]) -> Float[Tensor, "m *d"]:
        """P X. Accumulates in float32 at least, returns x's dtype; a selection copies bits."""
        if x.shape[0] != self.n + self.virtual:
            raise MappingError(
                f"P maps {self.n} + {self.virtual} sources; got {x.shape[0]} rows to apply it to."
            )
        if self.is_selection:
            assert self.cols is not None
            return x[self.cols.to(x.device)]
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:])).to(wide)
        if self.matrix is not None:
            out = self.matrix.to(x.device, wide) @ flat
        else:
            assert self.rows is not None and self.cols is not None and self.weights is not None
            part = flat[self.cols.to(x.device)] * self.weights.to(x.device, wide)[:, None]
            out = flat.new_zeros(self.m, flat.shape[1])
            out = out.index_add(0, self.rows.to(x.device), part)
        return out.to(x.dtype).reshape(self.m, *x.shape[1:])

    def to_matrix(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "m c"]:
        """P written out in full, shape (m, n + virtual)."""
        if self.matrix is not None:
            return self.matrix.to(dtype)
        assert self.rows is not None and self.cols is not None
        weights = torch.ones(len(self.cols)) if self.weights is None else self.weights
        out = torch.zeros(self.m, self.n + self.virtual, dtype=dtype, device=self.cols.device)
        return out.index_put_(
            (self.rows, self.cols), weights.to(out.device, dtype), accumulate=True
        )

    def transpose(self, y: Float[Tensor, "m *d"]) -> Float[Tensor, "c *d"]:
        """P^T Y: spreads a value of each kept token back over its sources (heat maps)."""
        p = self.to_matrix(torch.float32).to(y.device)
        width = math.prod(y.shape[1:])
        out = p.T @ y.reshape(self.m, width).float()
        return out.to(y.dtype).reshape(self.n + self.virtual, *y.shape[1:])

    def compose(self, first: Mapping) -> Mapping:
        """This mapping after `first`: the one mapping whose matrix is self.P @ first.P.

        Anchors follow: a row lives where the row of `first` that it is anchored to lives.
        """
        if self.n != first.m or self.virtual:
            raise MappingError(
                f"Cannot compose: the second mapping reads {self.n} + {self.virtual} sources, "
                f"the first one emits {first.m} rows."
            )
        anchors = first.anchors[self.anchors]
        if self.is_selection and first.is_selection:
            assert self.cols is not None and first.cols is not None
            return Mapping(
                n=first.n,
                anchors=anchors,
                rows=self.rows,
                cols=first.cols[self.cols],
                virtual=first.virtual,
            )
        product = self.to_matrix() @ first.to_matrix()
        if self.matrix is not None or first.matrix is not None:
            return Mapping(n=first.n, anchors=anchors, matrix=product, virtual=first.virtual)
        rows, cols = torch.nonzero(product, as_tuple=True)
        return Mapping.sparse(
            rows, cols, product[rows, cols], n=first.n, anchors=anchors, virtual=first.virtual
        )

    def __matmul__(self, first: Mapping) -> Mapping:
        return self.compose(first)

    def sizes(self) -> Float[Tensor, " m"]:
        """(m,) how many sources each row stands for (entries that are not zero)."""
        if self.matrix is not None:
            return (self.matrix != 0).sum(1).float()
        assert self.rows is not None
        return torch.bincount(self.rows, minlength=self.m).float()

    def carry(self, values: Tensor, how: str = "anchor") -> Tensor:
        """What per-source `values` (n, ...) become on the kept tokens, shape (m, ...).

        Args:
            values: anything that belongs to a slot: position ids, DeepStack rows, coordinates.
            how: ``"anchor"`` copies the anchor's value bit for bit; ``"mean"`` is P applied.
        """
        if how == "anchor":
            return values[self.anchors.to(values.device)]
        if how == "mean":
            return self.apply(values)
        raise MappingError(f"carry(how=) takes 'anchor' or 'mean'; got {how!r}.")

    def owner(self) -> Int[Tensor, " n"]:
        """(n,) the row in which each source weighs most, -1 for sources that were dropped."""
        if self.cover is not None:
            return self.cover
        if not self.m:  # everything was withdrawn
            return torch.full((self.n,), -1, device=self.anchors.device)
        weight, row = self.to_matrix()[:, : self.n].abs().max(0)
        return torch.where(weight > 0, row, torch.full_like(row, -1))

    def in_raster_order(self) -> Mapping:
        """The same rows, sorted by anchor. Errors if two rows share an anchor."""
        order = torch.argsort(self.anchors)
        anchors = self.anchors[order]
        if bool((anchors.diff() == 0).any()):
            raise MappingError(
                "Two kept tokens share an anchor slot, so they cannot both keep its position.\n"
                "Give each row an anchor of its own, or use positions='reindex'."
            )
        return self if bool((order.diff() == 1).all()) else self.reorder(order)

    def reorder(self, order: Int[Tensor, " m"]) -> Mapping:
        """The same rows in another order; `order` (m,) is a permutation."""
        anchors = self.anchors[order]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(self.m, device=order.device)
        cover = None
        if self.cover is not None:
            cover = torch.where(self.cover >= 0, rank[self.cover.clamp(min=0)], self.cover)
        if self.matrix is not None:
            return dataclasses.replace(
                self, anchors=anchors, matrix=self.matrix[order], cover=cover
            )
        assert self.rows is not None and self.cols is not None
        if self.weights is None:
            return dataclasses.replace(self, anchors=anchors, cols=self.cols[order], cover=cover)
        rows = rank[self.rows]
        by_row = torch.argsort(rows, stable=True)
        return dataclasses.replace(
            self,
            anchors=anchors,
            rows=rows[by_row],
            cols=self.cols[by_row],
            weights=self.weights[by_row],
            cover=cover,
        )

    def to(self, device: torch.device | str) -> Mapping:
        """The same mapping with its tensors on `device`."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def __repr__(self) -> str:
        kind = "dense" if self.matrix is not None else "select" if self.is_selection else "merge"
        virtual = f" + {self.virtual} virtual" if self.virtual else ""
        return f"Mapping({self.n}{virtual} -> {self.m}, {kind})"

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Write P to a safetensors file."""
        from safetensors.torch import save_file

        # Copies: safetensors refuses tensors that share memory, as a selection's cols and anchors.
        tensors = {
            f.name: getattr(self, f.name).detach().cpu().clone().contiguous()
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        meta = {"format": str(FORMAT), "n": str(self.n), "virtual": str(self.virtual)}
        save_file(tensors, str(path), metadata=meta)

    @classmethod
    def load(cls, path: str | Path) -> Mapping:
        """Read what `save` wrote; a SavedFileError says what is wrong with the file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise SavedFileError(f"{path} is no safetensors file: {error}.") from None
        if meta.get("format") != str(FORMAT):
            raise SavedFileError(
                f"{path} holds mapping format {meta.get('format')!r}; this foveate reads "
                f"format {FORMAT}."
            )
        known = {f.name for f in dataclasses.fields(cls)} - {"n", "virtual"}
        if unknown := set(tensors) - known:
            raise SavedFileError(f"{path} holds unknown parts {sorted(unknown)}.")
        try:
            return cls(n=int(meta["n"]), virtual=int(meta["virtual"]), **tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise SavedFileError(f"{path} holds parts that do not fit: {error}") from None


def distinct_anchors(weights: Float[Tensor, "m n"]) -> Int[Tensor, " m"]:
    """A different source slot for every row of `weights` (m, n), m <= n.

    Rows choose by descending largest weight (ties: lower row first); each takes its heaviest
    free source, ties going to the lower slot. So of several rows with one and the same sharp
    maximum all but the first live where their next weights are, however small, and where these
    are zero in the lowest slots.
    """
    m, n = weights.shape
    if m > n:
        raise MappingError(f"{m} rows cannot have distinct anchors among {n} slots.")
    w = weights.float().cpu()
    taken = torch.zeros(n, dtype=torch.bool)
    anchors = torch.empty(m, dtype=torch.long)
    for row in torch.argsort(w.max(1).values, descending=True, stable=True).tolist():
        best = int(w[row].masked_fill(taken, -torch.inf).argmax())
        anchors[row], taken[best] = best, True
    return anchors.to(weights.device)


def stack_counts(mappings: Sequence[Mapping]) -> tuple[int, int]:
    """(sources, kept) summed over several mappings."""
    return sum(p.n for p in mappings), sum(p.m for p in mappings)
