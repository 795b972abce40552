"""A conversation about pictures as a processor's inputs, whatever family it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from foveate.errors import InputError, MissingDependency


def conversation(
    processor: Any,
    questions: Sequence[str],
    answers: Sequence[str] = (),
    *,
    pictures: int = 1,
    is_video: bool = False,
) -> str:
    """The prompt of a conversation, up to where the model goes on.

    Args:
        processor: whose chat template is used; LLaVA-1.5's plain form if it has none.
        questions: one more than `answers`; the pictures stand before the first.
        answers: what the model said before.
        pictures: how many images; 1 for a video.
        is_video: whether they are a video.
    """
    shown = [(question, 0 if number else pictures) for number, question in enumerate(questions)]
    return transcript(processor, shown, answers, is_video=is_video)


def transcript(
    processor: Any,
    questions: Sequence[tuple[str, int]],
    answers: Sequence[str] = (),
    *,
    is_video: bool = False,
) -> str:
    """The same with pictures in any turn: `questions` are texts with how many stand before them."""
    kind = "video" if is_video else "image"
    if getattr(processor, "chat_template", None) is None:
        token = getattr(processor, f"{kind}_token", f"<{kind}>") + "\n"
        asked = [f"USER: {count * token}{question} ASSISTANT:" for question, count in questions]
        replies = [*(f" {answer} " for answer in answers), ""]
        return "".join(q + a for q, a in zip(asked, replies, strict=True))
    messages: list[dict[str, Any]] = []
    for number, (question, count) in enumerate(questions):
        content = [*([{"type": kind}] * count), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        if number < len(answers):
            said = [{"type": "text", "text": answers[number]}]
            messages.append({"role": "assistant", "content": said})
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def model_inputs(
    processor: Any,
    model: Any,
    texts: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
    *,
    is_video: bool = False,
) -> dict[str, Any]:
    """What to pass to `model.generate`, padded on the left, on the model's device and in its dtype.

    Args:
        processor, model: as loaded.
        texts: prompts as `conversation` makes them.
        pictures: the images (or the frames of the one video) of each prompt.
        is_video: whether they are frames.

    Raises:
        InputError: the processor refuses a picture, for example one of a single pixel.
        MissingDependency: the processor needs torchvision for videos.
    """
    # Processors cannot group no pictures at all.
    shown: dict[str, Any] = {"images": [list(each) for each in pictures]} if any(pictures) else {}
    if is_video:
        if getattr(processor, "video_processor", None) is None:
            raise MissingDependency("torchvision", "A video", "vision")
        shown = {"videos": [list(each) for each in pictures], "do_sample_frames": False}
    bos = getattr(processor.tokenizer, "bos_token", None)
    # Templates that write the first token themselves must not get it twice.
    written = bos is not None and texts[0].startswith(bos)
    try:
        found = processor(
            text=list(texts),
            **shown,
            padding=True,
            padding_side="left",
            add_special_tokens=not written,
            return_tensors="pt",
        )
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"The processor refuses this picture: {str(error).splitlines()[0]}"
        ) from error
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in found.items()
    }


def new_words(processor: Any, sequences: torch.Tensor, prompt_length: int) -> list[str]:
    """What was generated behind the prompts, as text."""
    said: list[str] = processor.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)
    return [each.strip() for each in said]
