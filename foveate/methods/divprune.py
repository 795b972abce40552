"""DivPrune: keep the set of tokens whose closest pair is as far apart as possible.

What it does:
    Picks the most isolated token, then again and again the token that is farthest from all that
    were picked. What is kept is diverse; nothing is said about importance.

The mapping:
    (1) D_ij = 1 - cos(x_i, x_j);
    (2) i_1 = argmax_i min_{j != i} D_ij;
    (3) i_k = argmax_i min_{j in S} D_ij over tokens not picked, S = {i_1 .. i_(k-1)}.
    P = one-hot rows of S, in raster order. A smaller budget is a subset of a larger one.

Needs:
    The projected tokens.

Differs from the paper's code:
    Picked tokens are masked out: the released code relies on D_ii = 0 being the minimum, and with
    duplicates or half precision picks one token twice. Distances are float32 there, the model's
    dtype in the release. On LLaVA-NeXT newline tokens do not compete (there they are identical,
    and at most about one survives); every picture has its own selection, not that of the first.

When it fails:
    Small budgets prefer odd tokens to telling ones. Selection in half precision differs from
    float32 in up to half of the tokens, so compare sets with care.

Reference:
    arXiv 2503.02175 (CVPR 2025), Eq. 4-6; vbdi/divprune at 799e2d9 (CC BY-NC 4.0, nothing copied).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from foveate import ops
from foveate.compressor import Compressor, Preset, Stage, VisualTokens
from foveate.mapping import Mapping

_RELEASE = "vbdi/divprune at 799e2d9"


@dataclasses.dataclass(frozen=True)
class DivPrune(Compressor):
    """Keep the set of tokens whose closest pair is as far apart as possible."""

    stage: ClassVar[Stage] = Stage.INPUT
    presets: ClassVar[dict[str, Preset]] = {
        "authors": Preset(f"{_RELEASE}: ratio 0.098", keep=0.098, positions="reindex"),
        "authors-192": Preset("ratio 192/576", keep=192, positions="reindex"),
        "authors-128": Preset("ratio 128/576", keep=128, positions="reindex"),
        "authors-64": Preset("ratio 64/576", keep=64, positions="reindex"),
    }

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        n = tokens.n
        m = n if keep is None else keep
        x = ops.unit(tokens.features)  # (n, d)
        # (1) (2) distance of each token to its nearest other one
        distance = 1 - x @ x.mT  # D   (n, n)
        nearest = distance.fill_diagonal_(torch.inf).amin(1)
        picked = [ops.top(nearest, 1)]
        # (3) distance of each token to the picked set; picked ones are out of the race
        to_set = torch.full((n,), torch.inf, device=x.device)
        for _ in range(m - 1):
            to_set = torch.minimum(to_set, distance[:, picked[-1][0]])
            to_set[picked[-1]] = -torch.inf
            picked.append(ops.top(to_set, 1))
        return Mapping.select(torch.cat(picked).sort().values, n)
