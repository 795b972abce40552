"""Tensor maths that several methods share. Pure functions, deterministic, ties to lower indices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveate.compressor import Grid
from foveate.mapping import Mapping


def unit(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length one, in float32; a zero row stays zero."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def cosine(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """cos(a_i, b_j), in float32."""
    return unit(a) @ unit(b).mT


def top(score: Float[Tensor, " n"], k: int) -> Int[Tensor, " k"]:
    """The k highest scores' indices, best first; ties go to the lower index, NaN comes last."""
    clean = torch.where(score.isnan(), torch.full_like(score, -torch.inf), score)
    return torch.argsort(clean, descending=True, stable=True)[:k]


def sine_positions(n: int, d: int, *, device: torch.device | str = "cpu") -> Float[Tensor, "n d"]:
    """(n, d) fixed sine-cosine embedding of the places 0..n-1 in a sequence.

    Attention Is All You Need (1706.03762), section 3.5, with the sines in the first half.
    """
    half = (d + 1) // 2
    rates = 10000.0 ** (-torch.arange(half, device=device) / half)
    angles = torch.arange(n, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :d]


def fractional_windows(n: int, m: int, kernel: int) -> Float[Tensor, "m n"]:
    """(m, n) average pooling of n tokens to m, as a matrix whose rows sum to one.

    Window i has `kernel` tokens around the middle of the i-th of m equal stretches; what lies
    beyond the ends is left out of its mean.
    """
    middles = ((torch.arange(m) + 0.5) * n / m).floor()
    first = middles - (kernel - 1) // 2
    places = torch.arange(n)
    inside = (places >= first[:, None]) & (places < first[:, None] + kernel)
    return inside / inside.sum(1, keepdim=True)


def others(index: Int[Tensor, " k"], n: int) -> Int[Tensor, " r"]:
    """0..n-1 without `index`, ascending."""
    rest = torch.ones(n, dtype=torch.bool, device=index.device)
    rest[index] = False
    return rest.nonzero().flatten()


def outlier_share(score: Float[Tensor, " n"]) -> float:
    """Share of scores above Q3 + 1.5 (Q3 - Q1), quartiles by linear interpolation."""
    s = score.float()
    q1, q3 = torch.quantile(s, 0.25), torch.quantile(s, 0.75)
    # A share in float32 would lose a token when it is turned into a count again.
    return int((s > q3 + 1.5 * (q3 - q1)).sum()) / len(s)


def equidistant(m: int, n: int) -> Int[Tensor, " m"]:
    """M places out of n, each in the middle of one of m equal stretches: floor((i + 1/2) n / m)."""
    return (torch.arange(m) * 2 + 1) * n // (2 * m)


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` items over bins in proportion to their sizes, none above its size.

    Largest remainders get what rounding down leaves; ties go to the earlier bin.

    Raises:
        ValueError: there are more items than all bins hold.
    """
    whole = sum(sizes)
    if total > whole:
        raise ValueError(f"{total} items do not fit in bins of {whole} in all.")
    exact = [total * size / whole for size in sizes]
    given = [math.floor(e) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (given[i] - exact[i], i))
    left = total - sum(given)
    while left:
        for i in by_remainder:
            if left and given[i] < sizes[i]:
                given[i] += 1
                left -= 1
    return given


def cells_of(grid: Grid, m: int) -> Int[Tensor, " size"]:
    """Cut a grid into m cells of like size and shape; (size,) the cell of each slot, row by row.

    Frames share m in proportion; a frame is cut into r bands of rows and every band into its own
    number of columns, with r chosen so that cells are as square as m allows. A frame without a
    share has -1.
    """
    per_frame = share_out(m, [grid.height * grid.width] * grid.frames)
    frames, start = [], 0
    for count in per_frame:
        frame = _cells_of_frame(grid.height, grid.width, count)
        frames.append(torch.where(frame >= 0, frame + start, frame))
        start += count
    return torch.cat(frames)


def lattice(grids: Sequence[Grid], m: int) -> Int[Tensor, " n"]:
    """Cut several grids into m cells in all, shared in proportion to size; see `cells_of`."""
    parts, start = [], 0
    for grid, count in zip(grids, share_out(m, [grid.size for grid in grids]), strict=True):
        cells = cells_of(grid, count)
        parts.append(torch.where(cells >= 0, cells + start, cells))
        start += count
    return torch.cat(parts)


def _cells_of_frame(height: int, width: int, m: int) -> Int[Tensor, " s"]:
    if m == 0:
        return torch.full((height * width,), -1)
    fewest = -(-m // width)
    bands = min(max(round(math.sqrt(m * height / width)), fewest), height, m)
    band_of = torch.arange(height) * bands // height
    cells = torch.empty(height, width, dtype=torch.long)
    start = 0
    for band in range(bands):
        columns = (band + 1) * m // bands - band * m // bands
        column_of = torch.arange(width) * columns // width
        cells[band_of == band] = column_of + start
        start += columns
    return cells.flatten()


def centres_of(cells: Int[Tensor, " n"], grids: Sequence[Grid], m: int) -> Int[Tensor, " m"]:
    """(m,) for each cell its slot that lies nearest its centre of mass; ties to the lower slot."""
    places = torch.cat([_places(grid) for grid in grids]).to(cells.device)
    inside = cells >= 0
    count = torch.bincount(cells[inside], minlength=m).float()
    mass = torch.zeros(m, 3, device=cells.device).index_add_(0, cells[inside], places[inside])
    centre = mass / count[:, None]
    distance = torch.full(cells.shape, torch.inf, device=cells.device)
    distance[inside] = (places[inside] - centre[cells[inside]]).square().sum(1)
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(cells[order], stable=True)]
    order = order[int((~inside).sum()) :]
    first = torch.ones(len(order), dtype=torch.bool, device=cells.device)
    first[1:] = cells[order].diff() != 0
    return order[first]


def _places(grid: Grid) -> Float[Tensor, "size 3"]:
    """(frame, row, column) of every slot of a grid."""
    axes = (torch.arange(k) for k in (grid.frames, grid.height, grid.width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).float()


def fractions_of(grid: Grid) -> Float[Tensor, "size 3"]:
    """(time, row, column) of every slot's centre, as fractions of the whole video or image."""
    left, top, right, bottom = grid.box
    start = torch.tensor([0.0, top, left])
    extent = torch.tensor([1.0, bottom - top, right - left])
    shape = torch.tensor([grid.frames, grid.height, grid.width])
    return start + (_places(grid) + 0.5) / shape * extent


def one_slot_per_cell(
    cells: Int[Tensor, " n"], m: int
) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
    """Exactly m slots that show as many different cells as possible.

    Args:
        cells: (n,) equal numbers where slots hold equal tokens.
        m: slots to keep, at most n.

    Returns:
        (m,) slots, ascending - of each cell its middle one, in slot order; with more than m cells
        an equidistant choice of them, with fewer further slots of the largest cells - and (n,)
        the row that shows each slot's cell, -1 where none does.
    """
    n = len(cells)
    _, cell = torch.unique(cells, return_inverse=True)
    count = torch.bincount(cell)
    order = torch.argsort(cell, stable=True)
    ends = count.cumsum(0)
    middle = order[ends - count + (count - 1) // 2]
    if len(middle) > m:
        by_place = middle.sort().values
        kept = by_place[equidistant(m, len(by_place)).to(cells.device)]
    else:
        spare = others(middle, n)
        largest = torch.argsort(count[cell[spare]], descending=True, stable=True)
        kept = torch.cat([middle, spare[largest[: m - len(middle)]]])
    index = kept.sort().values
    row_of_cell = torch.full((len(count),), -1, device=cells.device)
    row_of_cell[cell[index.flip(0)]] = torch.arange(m, device=cells.device).flip(0)
    cover = row_of_cell[cell]
    cover[index] = torch.arange(m, device=cells.device)
    return index, cover


def farthest_first(
    x: Float[Tensor, "n d"], m: int, weight: Float[Tensor, " n"] | None = None
) -> tuple[Int[Tensor, " m"], Int[Tensor, " n"]]:
    """Pick tokens far apart: each the one farthest from all before it, the first from the mean.

    Args:
        x: the tokens; distances are Euclidean.
        m: how many.
        weight: what a token's distance is multiplied by in the choice; 1 if None.

    Returns:
        (m,) the picks in their order, and (n,) for each token the row of its nearest pick, the
        earlier of equally near ones; a pick's is its own.
    """
    n = len(x)
    x = x - x.mean(0)
    factor = torch.ones(n, device=x.device) if weight is None else weight
    picks = [top(x.norm(dim=-1) * factor, 1)]
    distance = torch.full((n,), torch.inf, device=x.device)
    owner = torch.zeros(n, dtype=torch.long, device=x.device)
    taken = torch.zeros(n, dtype=torch.bool, device=x.device)
    for row in range(m):
        to_pick = (x - x[picks[row]]).norm(dim=-1)
        nearer = to_pick < distance
        distance = torch.where(nearer, to_pick, distance)
        owner = torch.where(nearer, row, owner)
        taken[picks[row]] = True  # picks are out of it, also among equal tokens
        if row < m - 1:
            picks.append(top((distance * factor).masked_fill(taken, -torch.inf), 1))
    found = torch.cat(picks)
    owner[found] = torch.arange(m, device=x.device)
    return found, owner


def bipartite_matching(
    metric: Float[Tensor, "n h"], r: int, protected: int = 0
) -> Int[Tensor, " n"]:
    """Bipartite soft matching of ToMe: merge the r most similar pairs of neighbours in rank.

    Tokens at even places (A) look for their most similar token at odd places (B), by cosine of
    `metric`; the r best-matched of A merge into their partners.

    Args:
        metric: (n, h) what similarity is measured on, usually attention keys.
        r: tokens to merge away; at most half of the unprotected ones merge.
        protected: leading tokens (CLS) that neither merge nor receive.

    Returns:
        (n,) the new index of every token; survivors keep their order.
    """
    n = len(metric)
    r = max(0, min(r, (n - protected) // 2))
    owner = torch.arange(n, device=metric.device)
    if r == 0:
        return owner
    even, odd = owner[0::2], owner[1::2]
    even, odd = even[even >= protected], odd[odd >= protected]
    best, partner = cosine(metric[even], metric[odd]).max(1)
    merged = top(best, r)
    gone = torch.zeros(n, dtype=torch.bool, device=metric.device)
    gone[even[merged]] = True
    new_index = (~gone).long().cumsum(0) - 1
    owner = new_index.clone()
    owner[even[merged]] = new_index[odd[partner[merged]]]
    return owner


def alike_windows(
    x: Float[Tensor, "n d"], height: int, width: int, side: int, least: float, most: int
) -> Int[Tensor, " n"]:
    """Windows whose tokens are alike become one token each (MustDrop).

    Windows of side x side tokens lie beside each other from the top left on; what is left over at
    the edges stays. s = the mean cosine between two different tokens of a window; windows with
    s >= `least` merge, at most the `most` best.

    Args:
        x: tokens of a raster of height x width, row by row.
        height, width: of the raster.
        side: tokens along a window's side.
        least, most: which windows merge.

    Returns:
        (n,) the new index of every token, in the order of the tokens' first slots.
    """
    size, n = side * side, height * width
    rows, columns = height // side, width // side
    slots = torch.arange(n, device=x.device).reshape(height, width)
    inside = slots[: rows * side, : columns * side].reshape(rows, side, columns, side)
    windows = inside.transpose(1, 2).reshape(rows * columns, size)
    first = slots.flatten().clone()
    if size > 1 and len(windows):
        total = unit(x)[windows].sum(1)
        score = (total.square().sum(-1) - size) / (size * (size - 1))
        best = top(score, min(most, int((score >= least).sum())))
        first[windows[best].flatten()] = windows[best, 0].repeat_interleave(size)
    return torch.unique(first, return_inverse=True)[1]


def merge_weighted(
    x: Float[Tensor, "n d"], owner: Int[Tensor, " n"], size: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """Size-weighted mean of the tokens of each owner, and the new sizes.

    A token that nothing merged into keeps its bits.
    """
    m = int(owner.max()) + 1
    count = torch.bincount(owner, minlength=m)
    total = torch.zeros(m, device=x.device, dtype=size.dtype).index_add_(0, owner, size)
    sums = torch.zeros(m, x.shape[1], device=x.device).index_add_(
        0, owner, x.float() * size.float()[:, None]
    )
    merged = (sums / total.float()[:, None]).to(x.dtype)
    alone: Bool[Tensor, " n"] = count[owner] == 1
    merged = merged.index_copy(0, owner[alone], x[alone])
    return merged, total


def enriched(
    kept: Int[Tensor, " k"],
    weight: Float[Tensor, " n"],
    keys: Float[Tensor, "n c"],
    neighbours: int,
    *,
    extra: bool,
) -> Mapping:
    """Kept tokens, each with its nearest others added by weight (PruMerge).

    X'_i = X_i + sum_j weight_j X_j over the `neighbours` nearest j != i by cosine of `keys`; with
    `extra` a last row sums weight_j X_j over all tokens not kept, on the weightiest of their slots.
    """
    n, k = len(weight), len(kept)
    weight = weight.float().nan_to_num()
    likeness = cosine(keys[kept], keys)
    likeness[torch.arange(k), kept] = -torch.inf
    near = torch.argsort(likeness, dim=1, descending=True, stable=True)[:, : min(neighbours, n - 1)]
    rows = torch.arange(k, device=weight.device)
    parts_r = [rows, rows.repeat_interleave(near.shape[1])]
    parts_c = [kept, near.flatten()]
    parts_w = [torch.ones(k, device=weight.device), weight[near.flatten()]]
    anchors = kept
    rest = others(kept, n)
    if extra and len(rest):
        parts_r.append(torch.full_like(rest, k))
        parts_c.append(rest)
        parts_w.append(weight[rest])
        anchors = torch.cat([kept, rest[top(weight[rest], 1)]])
    return Mapping.sparse(
        torch.cat(parts_r), torch.cat(parts_c), torch.cat(parts_w), n=n, anchors=anchors
    )


def density_peaks(
    x: Float[Tensor, "n d"], clusters: int, neighbours: int
) -> tuple[Int[Tensor, " c"], Int[Tensor, " n"]]:
    """Density-peak clustering (DPC-kNN): centres, and the cluster of every token.

    (1) D_ij = |x_i - x_j| / sqrt(d);
    (2) rho_i = exp(-mean of D_ij^2 over the `neighbours` nearest j, i itself among them);
    (3) delta_i = min of D_ij over denser j, the greatest distance of all where none is denser;
    (4) centres: the largest rho_i delta_i; every other token goes to its nearest centre.
    Of two equally dense tokens the lower one counts as denser, where released code adds noise.

    Args:
        x: tokens.
        clusters: how many, 1..n.
        neighbours: how many nearest ones make a density, at most n.

    Returns:
        (c,) centres, ascending, and (n,) the number of each token's centre among them.
    """
    n = len(x)
    wide = x.float()
    distance = torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / wide.shape[1] ** 0.5
    nearest = distance.topk(min(neighbours, n), largest=False).values
    # In logarithms: rho itself is zero in float32 wherever distances are 10 or more.
    sparsity = nearest.square().mean(1)  # -log rho
    index = torch.arange(n, device=x.device)
    denser = (sparsity < sparsity[:, None]) | (
        (sparsity == sparsity[:, None]) & (index < index[:, None])
    )
    far = distance.max()
    delta = torch.where(denser, distance, far).amin(1)
    centres = top(delta.log() - sparsity, clusters).sort().values
    owner = distance[:, centres].argmin(1)
    owner[centres] = torch.arange(len(centres), device=x.device)
    return centres, owner


def raters(
    visual: Float[Tensor, "n d"], text: Float[Tensor, "t d"], scale: float = 1.0
) -> tuple[Bool[Tensor, " t"], Float[Tensor, "n t"]]:
    """Text tokens that the picture is closest to (SparseVLM, Polymorphic).

    M = softmax(scale V T^T) over the text, s_j its mean over the visual tokens; raters are the
    text tokens with s_j above the mean of s, or all of them where none is.

    Returns:
        Which text tokens are raters, and M.
    """
    match = (visual.float() @ text.float().mT * scale).softmax(-1)
    score = match.mean(0)
    chosen = score > score.mean()
    return (chosen if bool(chosen.any()) else torch.ones_like(chosen)), match
