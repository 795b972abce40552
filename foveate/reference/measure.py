"""Accuracy of a reference model per kind of question, beside what needs no picture at all.

`python -m foveate.reference.measure --weights DIR` writes the "evaluation" part of
DIR/training.json. An answer is right if greedy decoding would give exactly its words, with the
right answers of earlier turns in the conversation.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foveate.reference import Sample, samples, words
from foveate.reference.layout import SIDE
from foveate.reference.scenes import patch_mask, scene

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

_BATCH = 20
LOW_SIDES = (112, 96, 64)
# How far above guessing a kind of question may carry a claim, and how far it is clearly learned.
_LEARNED, CLEAR = 0.10, 0.20


def messages(turns: Sequence[tuple[str, str, str]], is_video: bool = False) -> list[dict[str, Any]]:
    """A finished conversation in the chat format of transformers."""
    found: list[dict[str, Any]] = []
    for index, (question, answer, _) in enumerate(turns):
        picture = [{"type": "video" if is_video else "image"}] if index == 0 else []
        asked = [*picture, {"type": "text", "text": question}]
        found += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return found


@torch.no_grad()
def hits(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    turns: Sequence[Sequence[tuple[str, str, str]]],
    images: Sequence[Any],
    side: int = SIDE,
) -> list[list[bool]]:
    """Which answers are right, per conversation and turn.

    Args:
        model, processor: as loaded.
        turns: conversations of (question, answer, kind).
        images: one PIL image each.
        side: pixels a side; a lower resolution gives (side / 8) squared visual tokens.
    """
    texts = [processor.apply_chat_template(messages(each)) for each in turns]
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    inputs = processor(
        text=texts, images=list(images), images_kwargs=size, padding=True, return_tensors="pt"
    )
    base = model.model
    features = base.get_image_features(
        pixel_values=inputs.pixel_values,
        interpolate_pos_encoding=side != SIDE,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
    ).pooler_output
    embeddings = base.get_input_embeddings()(inputs.input_ids)
    visual = (inputs.input_ids == model.config.image_token_id)[..., None]
    embeddings = embeddings.masked_scatter(visual, torch.cat(list(features)))
    guessed = model(inputs_embeds=embeddings, attention_mask=inputs.attention_mask).logits.argmax(
        -1
    )
    return answers_right(inputs.input_ids, guessed, turns)


def answers_right(
    ids: Tensor, guessed: Tensor, turns: Sequence[Sequence[tuple[str, str, str]]]
) -> list[list[bool]]:
    """Which answers greedy decoding would give word for word, per conversation and turn.

    Args:
        ids: int64[b, t] finished conversations.
        guessed: int64[b, t] what the model says comes next at each place.
        turns: the conversations, for their number of turns.
    """
    table = words.vocabulary()
    found = []
    for row, said, conversation in zip(ids, guessed, turns, strict=True):
        starts = (row == table[words.ASSISTANT]).nonzero().flatten().tolist()
        ends = (row == table[words.EOS]).nonzero().flatten().tolist()
        right = [
            bool((said[start:end] == row[start + 1 : end + 1]).all())
            for start, end in zip(starts, ends, strict=True)
        ]
        assert len(right) == len(conversation)
        found.append(right)
    return found


def measure(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    count: int = 1000,
    split: str = "test",
) -> dict[str, Any]:
    """All tables of one model as plain numbers."""
    drawn = list(samples(split, count))
    turns = [sample.turns for sample in drawn]
    images = [sample.image for sample in drawn]
    mean = _mean_image(drawn)
    conditions: dict[str, tuple[list[Any], int]] = {
        "accuracy": (images, SIDE),
        "blind": ([mean] * count, SIDE),
        "wrong_image": ([*images[1:], images[0]], SIDE),
        **{f"at_{side}_pixels": (images, side) for side in LOW_SIDES},
    }

    def answered(shown: list[Any], side: int) -> list[list[bool]]:
        parts = [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]
        return [
            found
            for part in parts
            for found in hits(model, processor, turns[part], shown[part], side)
        ]

    results = {name: answered(*condition) for name, condition in conditions.items()}
    return {
        "split": split,
        "scenes": count,
        **accuracies(turns, results),
        "cls_attention": cls_attention(model, processor, min(count, 300), split),
    }


def accuracies(
    turns: Sequence[Sequence[tuple[str, str, str]]], results: dict[str, list[list[bool]]]
) -> dict[str, Any]:
    """Share of right answers by kind and condition, beside the majority answer's.

    Args:
        turns: the conversations.
        results: condition -> which answers are right, per conversation and turn; "accuracy" and
            "blind" must be among them.
    """
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for name, found in results.items():
        right: dict[str, list[bool]] = defaultdict(list)
        for conversation, answers in zip(turns, found, strict=True):
            for (_, _, kind), answer in zip(conversation, answers, strict=True):
                right[kind].append(answer)
                right["all"].append(answer)
        for kind, each in right.items():
            table[kind][name] = round(float(np.mean(each)), 4)
            table[kind]["questions"] = len(each)
    _add_majorities(table, turns)
    kinds = {kind: table[kind] for kind in sorted(table) if kind != "all"}
    return {
        "standard_error": round(0.5 / table["all"]["questions"] ** 0.5, 4),
        "all": table["all"],
        "kinds": kinds,
        "learned": sorted(kind for kind, row in kinds.items() if learned(row)),
    }


def learned(row: dict[str, float]) -> bool:
    """At least ten points above both the majority answer and the model without a picture."""
    return row["accuracy"] - max(row["majority"], row["blind"]) >= _LEARNED


def clear(row: dict[str, float]) -> bool:
    """At least twenty points above the majority answer."""
    return row["accuracy"] - row["majority"] >= CLEAR


def _mean_image(drawn: Sequence[Sample]) -> Any:
    from PIL import Image

    mean = np.mean([np.asarray(sample.image, np.float32) for sample in drawn], axis=0)
    return Image.fromarray(mean.round().astype(np.uint8))


def _add_majorities(
    table: dict[str, dict[str, float]], turns: Sequence[Sequence[tuple[str, str, str]]]
) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in (turn for conversation in turns for turn in conversation):
        answers[question[2]][question[1]] += 1
    total = 0
    for kind, counter in answers.items():
        most = counter.most_common(1)[0][1]
        table[kind]["majority"] = round(most / counter.total(), 4)
        total += most
    # Whoever knows each kind's most frequent answer and nothing else.
    questions = sum(counter.total() for counter in answers.values())
    table["all"]["majority"] = round(total / questions, 4)


@torch.no_grad()
def cls_attention(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int, split: str
) -> dict[str, float]:
    """How much of CLS's attention falls on patches that show something, and their area.

    Precision is the share of such patches among the 16 and the 64 that CLS looks at most.
    """
    pictures = []
    for seed in range(count):
        drawn = scene(seed, split)
        pixels = processor.image_processor(drawn.image, return_tensors="pt").pixel_values
        weights = cls_weights(model.model.vision_tower, model.config.vision_feature_layer, pixels)
        pictures.append((weights[0], torch.from_numpy(patch_mask(drawn)).flatten()))
    return attention_on_objects(pictures, tops=(16, 64))


def cls_weights(tower: Any, layer: int, pixels: Tensor) -> Tensor:
    """CLS's attention to every patch, without that to itself: float[b, n].

    Args:
        tower: a CLIP tower.
        layer: of the block whose output the projector reads; its mean over heads is taken.
        pixels: float[b, 3, s, s].
    """
    block = tower.encoder.layers[layer]
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for earlier in tower.encoder.layers[:layer]:
        hidden = earlier(hidden, None)
    normed, attention = block.layer_norm1(hidden), block.self_attn
    shape = (*normed.shape[:2], attention.num_heads, attention.head_dim)
    query = attention.q_proj(normed[:, :1]).view(len(normed), *shape[2:])
    key = attention.k_proj(normed).view(shape)
    scores = torch.einsum("bhd,bkhd->bhk", query, key) * attention.scale
    return scores.softmax(-1).mean(1)[:, 1:]


def attention_on_objects(
    pictures: Sequence[tuple[Tensor, Tensor]], tops: Sequence[int]
) -> dict[str, float]:
    """Means over pictures of area, attention on it, and precision of the most looked-at patches.

    Args:
        pictures: attention float[n] and which patches show something bool[n].
        tops: how many patches count as most looked at.
    """
    area: list[float] = []
    mass: list[float] = []
    top: dict[int, list[float]] = {kept: [] for kept in tops}
    for weights, shown in pictures:
        area.append(shown.float().mean().item())
        mass.append((weights[shown].sum() / weights.sum()).item())
        for kept, each in top.items():
            each.append(shown[weights.topk(kept).indices].float().mean().item())
    return {
        "object_area": round(float(np.mean(area)), 4),
        "attention_on_objects": round(float(np.mean(mass)), 4),
        **{f"precision_at_{kept}": round(float(np.mean(each)), 4) for kept, each in top.items()},
    }


def record(weights: Path, count: int = 1000, split: str = "test") -> dict[str, Any]:
    """Measure the model in a folder, and keep what was found in its training.json.

    Args:
        weights: the folder.
        count: scenes of the split.
        split: which.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(weights, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(weights)
    found = measure(model.eval(), processor, count, split)
    keep(weights, "evaluation", found)
    return found


def main() -> None:
    """`python -m foveate.reference.measure --weights DIR`: fill in DIR/training.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    print(json.dumps(record(Path(options.weights), options.scenes, options.split), indent=2))


def keep(weights: Path, part: str, found: dict[str, Any]) -> None:
    """Write what was measured into a model's training.json."""
    target = weights / "training.json"
    known = json.loads(target.read_text()) if target.exists() else {}
    known[part] = found
    target.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
