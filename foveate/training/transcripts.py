"""A whole dialogue as token ids, and the places at which its answers are predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from foveate.adapters import adapter_for
from foveate.errors import InputError
from foveate.evaluation.data import Dialogue
from foveate.prompting import conversation, model_inputs

_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclasses.dataclass(frozen=True, eq=False)
class Transcript:
    """Questions and answers in one sequence: one forward pass predicts all answers.

    Attributes:
        ids: (s,) token ids, placeholders of the pictures included.
        places: (t,) positions whose next token belongs to an answer, or ends one.
        turns: (t,) the turn that each of them belongs to.
        types: what the model takes for each token beside its id, (s,) each.
    """

    ids: Int[Tensor, " s"]
    places: Int[Tensor, " t"]
    turns: Int[Tensor, " t"]
    types: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def first_inputs(
    model: Any, processor: Any, dialogue: Dialogue, pictures: Sequence[Image.Image]
) -> dict[str, Any]:
    """The model's inputs of a dialogue's first turn, by itself."""
    count = 1 if dialogue.is_video else len(pictures)
    asked = [dialogue.turns[0].question]
    text = conversation(processor, asked, pictures=count, is_video=dialogue.is_video)
    return model_inputs(processor, model, [text], [pictures], is_video=dialogue.is_video)


def transcript(
    model: Any,
    processor: Any,
    dialogue: Dialogue,
    answers: Sequence[str],
    inputs: dict[str, Any],
) -> Transcript:
    """The dialogue with these answers.

    The token that ends an answer is predicted too: the template's own if it writes one, and after
    the last answer the model's end of sequence in any case.

    Args:
        model, processor: as loaded.
        dialogue: the questions.
        answers: one for each.
        inputs: of its first turn, as `first_inputs` gives them.

    Raises:
        InputError: the chat template writes an answer in other words, so that it cannot be found,
            or there is nothing to predict.
    """
    questions = [turn.question for turn in dialogue.turns]
    # A question that is never read shows what the template writes behind the last answer.
    texts = [
        conversation(
            processor,
            [*questions, "?"][: turn + 1],
            answers[:turn],
            pictures=1 if dialogue.is_video else len(dialogue.pictures),
            is_video=dialogue.is_video,
        )
        for turn in range(len(questions) + 1)
    ]
    whole = texts[-1]
    spans = [
        _find(answer, texts[turn], texts[turn + 1], dialogue.name)
        for turn, answer in enumerate(answers)
    ]
    tokenizer = processor.tokenizer
    bos = getattr(tokenizer, "bos_token", None)
    special = not (bos is not None and whole.startswith(bos))
    found = tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    head = len(tokenizer(texts[0], add_special_tokens=special)["input_ids"])
    expanded = inputs["input_ids"][0].tolist()
    shift = len(expanded) - head  # the processor writes many placeholders where the text has one

    ends = _ends(model, processor)
    places, turns, last = [], [], head
    for turn, (start, stop) in enumerate(spans):
        # Tokens that overlap the answer; of an empty one the place where it would begin.
        first = next((i for i in range(head, len(ids)) if offsets[i][1] > start), len(ids))
        last = next((i for i in range(first, len(ids)) if offsets[i][0] >= stop), len(ids))
        if last < len(ids) and ids[last] in ends:
            last += 1
        places += [i + shift - 1 for i in range(first, last)]
        turns += [turn] * (last - first)
    ids = ids[:last]
    if ends and (not places or ids[-1] not in ends):
        ids.append(ends[0])
        places.append(len(ids) + shift - 2)
        turns.append(len(spans) - 1)
    if not places:
        raise InputError(f"Dialogue {dialogue.name!r} has empty answers only: nothing to learn.")
    rest = ids[head:]
    adapter = adapter_for(model)
    types = {
        name: torch.cat(
            [inputs[name][0].cpu(), torch.full((len(rest),), _type_of(name, adapter.answer_type))]
        )
        for name in _TYPES
        if name in inputs
    }
    return Transcript(
        torch.tensor(expanded + rest), torch.tensor(places), torch.tensor(turns), types
    )


def _type_of(name: str, answer_type: int) -> int:
    return answer_type if name == "token_type_ids" else 0


def _find(answer: str, before: str, after: str, name: str) -> tuple[int, int]:
    """Where the answer stands in `after`, whose beginning is `before`."""
    at = after.find(answer, len(before)) if after.startswith(before) else -1
    if at < 0 or after[len(before) : at].strip():
        raise InputError(
            f"The chat template does not write the answer {answer!r:.60} of dialogue {name!r}\n"
            "behind its question as it is, so the answer's tokens cannot be found.\n"
            "Train on single turns, or with another template."
        )
    return at, at + len(answer)


def _ends(model: Any, processor: Any) -> list[int]:
    """Ids that end an answer, the one to write first."""
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = processor.tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
