"""MMTok: keep the tokens that best cover both the question and the picture.

What it does:
    Every word of the question and every patch wants a kept token that is like it. Tokens are
    added one by one, each time the one that raises the total satisfaction most.

The mapping:
    (1) P_ij = softmax_j(cos(t_i, e_j) / tau_t) / l          words to tokens      (l, n)
    (2) Q_ij = softmax_j(cos(c_i, c_j) / tau_v) / n          patches to tokens    (n, n)
    (3) M = [P ; alpha Q],  F(S) = sum_i max_{j in S} M_ij;  S grows by
        argmax_j sum_i max(0, M_ij - max_{s in S} M_is).
    t: input embeddings of the question, e: projected tokens, c: encoder outputs. P (the mapping)
    = one-hot rows of S, in raster order. A smaller budget is a subset of a larger one.

Needs:
    The encoder outputs and the question's embeddings.

Differs from the paper's code:
    The question is found by the adapter, not by patched templates; no stop words are removed (the
    release removes a list of English ones on LLaVA). Patches that show only padding may be
    chosen. Over tiles there is one choice, not one a tile.

When it fails:
    Words whose embeddings lie far from every visual token tell nothing; (2) then decides alone.

Reference:
    arXiv 2508.18264 (ICLR 2026), section 3; Ironieser/MMTok at d1522cd (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from foveate import ops
from foveate.compressor import Compressor, Preset, Reads, Stage, VisualTokens
from foveate.errors import StageNotAvailable
from foveate.mapping import Mapping

_RELEASE = "Ironieser/MMTok at d1522cd"


@dataclasses.dataclass(frozen=True)
class MMTok(Compressor):
    """Keep the tokens that best cover both the question and the picture.

    Attributes:
        alpha: weight of covering the picture beside covering the question.
        tau_text: temperature of (1); 0.02 on LLaVA, 0.01 on Qwen.
        tau_vision: temperature of (2).
    """

    alpha: float = 0.5
    tau_text: float = 0.02
    tau_vision: float = 0.2

    stage: ClassVar[Stage] = Stage.INPUT
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.ENCODER, Reads.QUESTION})
    presets: ClassVar[dict[str, Preset]] = {
        "authors-64": Preset(f"{_RELEASE}, LLaVA-1.5", keep=64, positions="reindex"),
        "authors-qwen": Preset(f"{_RELEASE}, Qwen2.5-VL", {"tau_text": 0.01}, keep=0.2),
    }

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        if tokens.question is None or tokens.encoder is None:
            raise StageNotAvailable("MMTok reads the question and the encoder's output.")
        n = tokens.n
        m = n if keep is None else keep
        t, e, c = tokens.question, tokens.features, tokens.encoder
        words = (ops.cosine(t, e) / self.tau_text).softmax(-1) / len(t)  # (1)   (l, n)
        patches = (ops.cosine(c, c) / self.tau_vision).softmax(-1) / n  # (2)   (n, n)
        wants = torch.cat([words, self.alpha * patches])  # (3) M   (l + n, n)
        best = torch.zeros(len(wants), 1, device=wants.device)
        free = torch.ones(n, dtype=torch.bool, device=wants.device)
        picked = []
        for _ in range(m):
            gain = (wants - best).clamp(min=0).sum(0)  # (n,)
            choice = ops.top(gain.masked_fill(~free, -torch.inf), 1)
            picked.append(choice)
            free[choice] = False
            best = torch.maximum(best, wants[:, choice])
        return Mapping.select(torch.cat(picked).sort().values, n)
