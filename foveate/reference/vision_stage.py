"""Stage 1: the vision tower learns to say, in every patch, what it shows; CLS, what is there.

Every patch of every picture takes part, so no choice of tokens is favoured. A share of the batches
is shown at lower resolution with interpolated positions, or resizing would be a straw man.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from foveate.reference.batches import LabelledScenes
from foveate.reference.data import pixel_values
from foveate.reference.labels import IMAGE_CLASSES, PATCH_CLASSES, labels_of, patch_owners
from foveate.reference.layout import SIDE

# A present pair is one of about seven among sixty: without weight CLS learns to say "absent".
_PRESENT_WEIGHT = 5.0
_CLS_SHARE = 0.7


def encode(
    tower: CLIPVisionModel, pixels: Tensor, last: bool = True
) -> tuple[Tensor, Tensor | None]:
    """CLIP by hand: features before the last block and the pooled CLS after it.

    Args:
        tower: the CLIP tower.
        pixels: float[b, 3, s, s]; positions are interpolated if s is not the model's own.
        last: whether to run the last block at all.

    Returns:
        float[b, 1 + n, d], and float[b, d] or None.
    """
    own = pixels.shape[-1] == tower.config.image_size
    hidden = tower.embeddings(pixels, interpolate_pos_encoding=not own)
    hidden = tower.pre_layrnorm(hidden)
    for block in tower.encoder.layers[:-1]:
        hidden = block(hidden, None)
    if not last:
        return hidden, None
    return hidden, tower.post_layernorm(tower.encoder.layers[-1](hidden, None)[:, 0])


class Heads(nn.Module):
    """Linear read-outs, thrown away after training.

    Args:
        width: the tower's width d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_norm, self.cls_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patch_head = nn.Linear(width, sum(PATCH_CLASSES.values()) + 2)
        # CLS is asked before and after the last block: methods read its attention before it.
        self.cls_head = nn.Linear(width, sum(IMAGE_CLASSES.values()))
        self.pooled_head = nn.Linear(width, sum(IMAGE_CLASSES.values()))

    def patches(self, hidden: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits name -> float[b, n, classes], and offsets float[b, n, 2]."""
        out = self.patch_head(self.patch_norm(hidden[:, 1:]))
        *logits, offsets = out.split([*PATCH_CLASSES.values(), 2], dim=-1)
        return dict(zip(PATCH_CLASSES, logits, strict=True)), offsets

    def image(self, hidden: Tensor, pooled: Tensor) -> list[dict[str, Tensor]]:
        """Logits of the whole picture, from CLS before and after the last block."""
        outs = self.cls_head(self.cls_norm(hidden[:, 0])), self.pooled_head(pooled)
        return [
            dict(zip(IMAGE_CLASSES, out.split(list(IMAGE_CLASSES.values()), dim=-1), strict=True))
            for out in outs
        ]


def vision_loss(
    tower: CLIPVisionModel, heads: Heads, shown: LabelledScenes
) -> tuple[Tensor, dict[str, float]]:
    """The loss on these scenes, and accuracies (recall at 0.5 for what CLS says is present)."""
    which = patch_owners(shown.owners, shown.grid)
    labels, offsets = labels_of(shown.tables, shown.centres, which, shown.grid, SIDE)
    pixels = pixel_values(shown.pixels, shown.grid)
    return labelled_loss(tower, heads, pixels, labels, offsets, shown.whole)


def labelled_loss(
    tower: CLIPVisionModel,
    heads: Heads,
    pixels: Tensor,
    labels: dict[str, Tensor],
    targets: Tensor,
    whole: dict[str, Tensor],
) -> tuple[Tensor, dict[str, float]]:
    """The loss on labelled pictures, and accuracies.

    Args:
        tower, heads: what is trained.
        pixels: float[b, 3, s, s].
        labels: of patches, name -> int64[b, n]; -100: none.
        targets: float[b, n, 2] offsets to the owner's centre, NaN in the background.
        whole: of pictures, as `labels.image_labels`; -100: no number can be read.
    """
    hidden, pooled = encode(tower, pixels)
    assert pooled is not None
    logits, offsets = heads.patches(hidden)
    shown = torch.isfinite(targets[..., 0])
    loss = F.smooth_l1_loss(offsets[shown], targets[shown])
    accuracy = {}
    for name, out in logits.items():
        wanted = labels[name]
        loss = loss + _cross_entropy(out.flatten(0, 1), wanted.flatten())
        known = wanted >= 0
        accuracy[name] = (out.argmax(-1) == wanted)[known].float().mean().item()
    weight = torch.tensor(_PRESENT_WEIGHT)
    for place, outs in zip(("cls", "pooled"), heads.image(hidden, pooled), strict=True):
        present = outs["present"]
        loss_here = 4 * F.binary_cross_entropy_with_logits(
            present, whole["present"], pos_weight=weight
        )
        for name in ("tens", "ones"):
            loss_here = loss_here + 0.5 * _cross_entropy(outs[name], whole[name])
        loss = loss + _CLS_SHARE * loss_here
        said, there = present > 0, whole["present"] > 0
        accuracy[f"{place} recall"] = said[there].float().mean().item()
        accuracy[f"{place} precision"] = (
            there[said].float().mean().item() if said.any() else float("nan")
        )
    return loss, accuracy


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Its mean over what has a label; zero, not NaN, where nothing has."""
    if (wanted >= 0).any():
        return F.cross_entropy(logits, wanted)
    return logits.sum() * 0
