"""Cover: pick tokens so far apart that every other one has a picked one near, and merge it there.

What it does:
    Each pick is the token farthest from all picks before it, by plain Euclidean distance; the first
    is the one farthest from the mean. Then every token that was not picked joins its nearest pick,
    and each pick becomes the mean of what joined it. No training, no prompt, no attention.

The mapping:
    X (n, d) the projected tokens, D_ij = |x_i - x_j|.
    (1) first pick: argmax_i |x_i - mean|;
    (2) next pick: argmax_i of min over picks j of D_ij (Gonzalez: at most twice the radius of the
        best cover by m tokens);
    (3) o_i = the pick nearest to i; row j of P = mean of the tokens with o_i = j (`merge`), else
        one-hot; a row lives where its pick was.

Needs:
    Nothing beside the tokens.

Differs from the paper's code:
    There is none: this is foveate's own. It came out of asking what a learned metric adds to
    choosing diverse tokens. Beside DivPrune, lengths count (cosine drops them), the first pick is
    an unusual token, and the rest is merged, not dropped.

When it fails:
    It covers what differs, not what is asked: noise as strong as the objects takes tokens too.
    Tokens of a few huge coordinates ("massive activations") would rule the distance.

Reference:
    None as a method; farthest-first traversal is T. Gonzalez, Clustering to minimize the maximum
    intercluster distance, 1985.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from foveate import ops
from foveate.compressor import Compressor, Stage, VisualTokens
from foveate.mapping import Mapping


@dataclasses.dataclass(frozen=True)
class Cover(Compressor):
    """Farthest tokens first; every other one is merged into its nearest pick.

    Attributes:
        merge: whether tokens that were not picked are merged, or dropped.
    """

    merge: bool = True
    stage: ClassVar[Stage] = Stage.INPUT

    def __call__(self, tokens: VisualTokens, keep: int | None) -> Mapping:
        n = tokens.n
        m = n if keep is None else keep
        anchors, owner = ops.farthest_first(tokens.features.float(), m)  # (1), (2)
        if not self.merge:
            return Mapping.select(anchors.sort().values, n)
        return Mapping.assign(owner, anchors).in_raster_order()  # (3)
