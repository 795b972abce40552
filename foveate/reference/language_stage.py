"""Stage 2: projector and decoder learn to answer, on the frozen tower's features of all patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from foveate.reference import words
from foveate.reference.captions import describe, listing, relate, tally
from foveate.reference.data import Scenes, pixel_values
from foveate.reference.layout import Layout
from foveate.reference.packing import IGNORE, Packed, attention_mask, pack, text_encoder
from foveate.reference.questions import KINDS, TURNS, Question, ask
from foveate.reference.vision_stage import encode

# Root mean square of an embedded word when training starts.
WORD_SIZE = 0.25
# "<s> user:" stands before the picture.
PREFIX_WORDS = 2
# How often each kind is asked in training; the slowly learned ones more often. Evaluation asks all
# kinds equally often.
_WEIGHTS = dict.fromkeys(KINDS, 1.0) | {
    **{"number": 0.7, "letter": 0.7, "size": 0.8, "pattern": 0.8},
    **{"relation": 2.0, "count": 1.5, "extreme": 1.5},
}


def training_dialogues(
    layout: Layout, rng: np.random.Generator, count: int, captions: float
) -> list[list[Question]]:
    """`count` dialogues about one scene; a share of them are descriptions.

    Args:
        layout: the scene.
        rng: the step's random numbers.
        count: how many dialogues.
        captions: the share of dialogues that are descriptions.
    """
    chances = np.array(list(_WEIGHTS.values())) / sum(_WEIGHTS.values())

    def questions() -> list[Question]:
        kinds = rng.choice(KINDS, TURNS, replace=False, p=chances)
        return [asked for kind in kinds if (asked := ask(str(kind), layout, rng))]

    return mixed(rng, count, captions, questions, lambda: _captions(layout, rng))


def mixed(
    rng: np.random.Generator,
    count: int,
    captions: float,
    questions: Callable[[], list[Question]],
    descriptions: Callable[[], list[Question]],
) -> list[list[Question]]:
    """`count` dialogues, `captions` of them descriptions; empty ones are drawn again."""
    dialogues: list[list[Question]] = []
    while len(dialogues) < count:
        if turns := descriptions() if rng.random() < captions else questions():
            dialogues.append(turns)
    return dialogues


def _captions(layout: Layout, rng: np.random.Generator) -> list[Question]:
    form = rng.random()
    if form < 0.15:
        return [listing(layout, rng)]
    if form < 0.25:
        return [tally(layout, rng) for _ in range(2)]
    ask_one = relate if form < 0.5 else describe
    return [asked for _ in range(TURNS) if (asked := ask_one(layout, rng))]


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
def features_of(
    model: LlavaForConditionalGeneration, scenes: Scenes, indices: Sequence[int], grid: int
) -> Tensor:
    """The frozen tower's features: float[b, grid * grid, d]."""
    pixels, _ = scenes.arrays(indices)
    hidden, _ = encode(model.model.vision_tower, pixel_values(pixels, grid), last=False)
    return hidden[:, 1:]


def language_batch(
    scenes: Scenes, indices: Sequence[int], rng: np.random.Generator, count: int, captions: float
) -> Packed:
    """The packed dialogues of these scenes."""
    batch = [
        training_dialogues(layout, rng, count, captions) for layout in scenes.layouts_of(indices)
    ]
    return pack(batch, text_encoder())
