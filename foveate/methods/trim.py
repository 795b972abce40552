"""TRIM: keep the tokens that CLIP's text tower relates least to the question.

What it does:
    Maps every patch into CLIP's joint space and keeps those whose dot product with the question's
    CLIP embedding is smallest - the sign is meant - plus the mean of all others.

The mapping:
    (1) v_j = W post_layernorm(x_j), t = CLIP text embedding of the question;
    (2) s = softmax_j(-<v_j, t>);
    (3) kept = the m - 1 largest s, or n times the share of outliers above Q3 + 1.5 (Q3 - Q1);
    (4) one more row: the mean of the tokens not kept, on the first of their slots.
    With a budget of 1, or of n, there is no (4).

Needs:
    The question as a string, and a full CLIP checkpoint (`clip`) whose vision tower is the
    model's own: its text tower and projections are not part of a VLM's weights.

Differs from the paper's code:
    The paper writes softmax(cos(v, t)); the release has the minus, no normalisation and no
    temperature, and its authors confirm it: patches of the second-last layer relate to text the
    other way round. Outliers are counted for each picture; without any one token is kept, where
    the release crashes. Over tiles there is one choice and one mean. Text is cut at CLIP's own
    limit.

When it fails:
    Questions about what CLIP cannot name: text in the picture, counts, places.

Reference:
    arXiv 2409.10994 (COLING 2025), section 3; FreedomIntelligence/TRIM at f5a232d (Apache-2.0).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from foveate import ops
from foveate.compressor import Compressor, Preset, Reads, Stage, VisualTokens
from foveate.errors import InputError, StageNotAvailable
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Trim(Compressor):
    """Keep the tokens that CLIP's text tower relates least to the question.

    Attributes:
        clip: Hub id or folder of the CLIP checkpoint that the vision tower comes from, e.g.
            ``"openai/clip-vit-large-patch14-336"``.
    """

    clip: str | None = None

    stage: ClassVar[Stage] = Stage.VISION
    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.QUESTION_TEXT})
    presets: ClassVar[dict[str, Preset]] = {
        "authors": Preset("FreedomIntelligence/TRIM at f5a232d, adaptive", positions="reindex"),
    }

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        if tokens.question_text is None:
            raise StageNotAvailable("TRIM reads the question as a string.")
        n = tokens.n
        v, t = self._joint_space(tokens.features, tokens.question_text)  # (1)   (n, p), (p,)
        s = (-(v @ t)).softmax(-1)  # (2)   (n,)
        count = int(n * ops.outlier_share(s)) if keep is None else keep - (1 < keep < n)
        kept = ops.top(s, min(max(1, count), n)).sort().values  # (3)
        rest = ops.others(kept, n)
        if not len(rest) or keep == 1:
            return Mapping.select(kept, n)
        owner = torch.full((n,), len(kept), device=s.device)  # (4)
        owner[kept] = torch.arange(len(kept), device=s.device)
        return Mapping.assign(owner, torch.cat([kept, rest[:1]]))

    def _joint_space(
        self, x: Float[Tensor, "n c"], question: str
    ) -> tuple[Float[Tensor, "n p"], Float[Tensor, " p"]]:
        if self.clip is None:
            raise StageNotAvailable(
                "TRIM needs the CLIP checkpoint that the vision tower comes from, for its text "
                "tower.\nGive it one: foveate.Trim(clip='openai/clip-vit-large-patch14-336')."
            )
        model, tokenizer = _load(self.clip)
        width = model.config.vision_config.hidden_size
        if x.shape[1] != width:
            raise StageNotAvailable(
                f"The model's vision tower is {x.shape[1]} wide, {self.clip!r} {width}.\n"
                "TRIM needs the checkpoint that the tower comes from."
            )
        # The tower's limit, since not every tokenizer states one.
        limit = model.config.text_config.max_position_embeddings
        ids = tokenizer(question, truncation=True, max_length=limit, return_tensors="pt")
        pooled = model.text_model(**ids).pooler_output
        t = model.text_projection(pooled)[0]
        v = model.visual_projection(model.vision_model.post_layernorm(x.float().to(t.device)))
        return v.to(x.device), t.to(x.device)


@functools.lru_cache(maxsize=2)
def _load(clip: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(clip, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(clip)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Cannot load the CLIP checkpoint {clip!r}: {str(error).splitlines()[0]}\n"
            "Give a Hub id or a folder with a CLIPModel and its tokenizer."
        ) from error
    return model.eval(), tokenizer
