"""Stage 2: projector and decoder learn to answer, on the frozen tower's features of all patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from foveate.reference import words
from foveate.reference.data import pixel_values
from foveate.reference.packing import IGNORE, Packed, attention_mask
from foveate.reference.vision_stage import encode

# Root mean square of an embedded word when training starts.
WORD_SIZE = 0.25
# "<s> user:" stands before the picture.
PREFIX_WORDS = 2


@torch.no_grad()
def start_language(model: PreTrainedModel) -> None:
    """Start the decoder where content can be matched and copied.

    Words and projected patches have one size (by default a patch is thirty times larger), the
    output head starts as the embedding, and attention starts mimetic (Trockman & Kolter,
    arXiv:2305.09828): queries equal to keys, outputs the transpose of values.
    """
    base = model.model
    base.get_input_embeddings().weight.normal_(0, WORD_SIZE)
    model.lm_head.weight.copy_(base.get_input_embeddings().weight * 0.25)
    for layer in (base.multi_modal_projector.linear_1, base.multi_modal_projector.linear_2):
        layer.weight.normal_(0, layer.in_features**-0.5)
        layer.bias.zero_()
    for block in base.language_model.layers:
        attention = block.self_attn
        for linear in (attention.k_proj, attention.v_proj):
            linear.weight.normal_(0, linear.in_features**-0.5)
        shared = attention.num_key_value_groups
        head = (-1, attention.head_dim, attention.k_proj.in_features)
        attention.k_proj.weight.mul_(0.7)
        key, value = attention.k_proj.weight.view(head), attention.v_proj.weight.view(head)
        attention.q_proj.weight.copy_(key.repeat_interleave(shared, 0).flatten(0, 1))
        attention.o_proj.weight.copy_(0.5 * value.repeat_interleave(shared, 0).flatten(0, 1).T)


def language_loss(
    model: LlavaForConditionalGeneration, features: Tensor, packed: Packed
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the supervised words, and the logits there.

    Args:
        model: the whole model; its tower is not run.
        features: float[b, n, d] the tower's features without CLS.
        packed: the dialogues.

    Returns:
        The loss and float[labelled, vocabulary] logits, in the order of the labels.
    """
    return packed_loss(model, model.model.multi_modal_projector(features), packed)


def packed_loss(model: PreTrainedModel, visual: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """`language_loss` behind visual tokens float[b, n, width] as the decoder receives them."""
    base = model.model
    table = words.vocabulary()
    batch, patches = visual.shape[:2]
    opening = torch.tensor([table[words.BOS], table[words.USER]]).expand(batch, -1)
    embed = base.get_input_embeddings()
    prefix = PREFIX_WORDS + patches
    hidden = torch.cat([embed(opening), visual, embed(packed.ids)], dim=1)
    positions = torch.cat(
        [torch.arange(prefix).expand(batch, -1), packed.positions + prefix], dim=1
    )
    out = base.language_model(
        inputs_embeds=hidden,
        attention_mask=attention_mask(packed.groups, prefix),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state[:, prefix:]
    asked = packed.labels != IGNORE
    logits = model.lm_head(out[asked])
    return F.cross_entropy(logits, packed.labels[asked]), logits


@torch.no_grad()
def features_of(model: LlavaForConditionalGeneration, pixels: Tensor, grid: int) -> Tensor:
    """The frozen tower's features of uint8[b, s, s, 3]: float[b, grid * grid, d]."""
    hidden, _ = encode(model.model.vision_tower, pixel_values(pixels, grid), last=False)
    return hidden[:, 1:]
