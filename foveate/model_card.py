"""A saved compressor's card: what it is, for which model, how it was trained, what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Mapping as Table
from typing import Any

USUAL = 0.25  # of the example, where nothing says which budgets it was trained or measured at


def model_card(record: Table[str, Any]) -> str:
    """The text of `README.md`, from the record that `foveate.save` writes."""
    from huggingface_hub import ModelCardData

    model, training = record["model"], record["training"]
    data = ModelCardData(
        library_name="foveate",
        tags=["visual-token-compression", record["method"]],
        base_model=model["name"] if "/" in model["name"] else None,
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {record['method']} for {model['name'] or model['model_type']}",
        "A compressor of visual tokens for [foveate](https://github.com/foveate/foveate):",
        _example(model["name"], usual_keep(training)),
        "## Base model\n",
        *_items(model),
        "\n## Settings\n",
        *_items(record["fields"]),
    ]
    if (found := training.get("accuracy")) is not None:
        lines += ["\n## Accuracy\n", *_accuracy(found)]
    for title, values in training.items():
        if title != "accuracy":
            lines += [f"\n## Training: {title}\n"]
            lines += _items(values) if isinstance(values, dict) else [str(values)]
    return "\n".join(lines) + "\n"


def _example(base: str, keep: int | float) -> str:
    """How it is used, from nothing."""
    named = "/" in base
    model, processor = (
        f'{auto}.from_pretrained("{base}")' if named else f"...  # {of}"
        for auto, of in (
            ("AutoModelForImageTextToText", base or "the base model"),
            ("AutoProcessor", "its processor"),
        )
    )
    return "\n".join(
        [
            "```python",
            "# pip install foveate",
            "import foveate",
            *(["from transformers import AutoModelForImageTextToText, AutoProcessor"] * named),
            "",
            f"model = {model}",
            f"processor = {processor}",
            'method = foveate.load("owner/name", model=model)  # where this card is; or a folder',
            f"with foveate.attach(model, method, keep={keep!r}, processor=processor):",
            "    model.generate(**inputs)  # inputs as the processor makes them",
            "```",
        ]
    )


def usual_keep(training: Table[str, Any]) -> int | float:
    """A budget that a compressor was trained for, or at least measured at."""
    settings, found = training.get("settings"), training.get("accuracy")
    keeps = list(settings.get("keeps") or ()) if isinstance(settings, dict) else []
    if isinstance(found, dict):
        keeps += [row["keep"] for row in found["rows"] if row["keep"] is not None]
    return keeps[0] if keeps else USUAL


def _accuracy(found: Table[str, Any]) -> Iterator[str]:
    """What stands about it, and the table."""
    of = "" if found["dialogues"] == found["held"] else f" of {found['held']}"
    yield (
        f"Answers that are one of the given ones, word for word, on {found['questions']} questions "
        f"in {found['dialogues']}{of} dialogues held out of training; visual tokens of a picture "
        "that enter the language model, and averaged over its layers. Another card's questions may "
        "be others: compare with `foveate compare`.\n"
    )
    yield "| budget | accuracy | tokens entering | averaged over layers |"
    yield "| --- | --- | --- | --- |"
    for row in found["rows"]:
        yield (
            f"| {_budget(row['keep'])} | {row['accuracy']:.3f} | {row['entering']:.1f} "
            f"| {row['average']:.1f} |"
        )


def _budget(keep: int | float | None) -> str:
    if keep is None:
        return "full model"
    return f"{100 * keep:g} %" if isinstance(keep, float) else f"{keep} tokens"


def _items(values: Table[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(dict(values)))  # as the record says it, read again or not
    known = {key: value for key, value in plain.items() if value is not None}
    return [f"- {key.replace('_', ' ')}: {value}" for key, value in known.items()]
