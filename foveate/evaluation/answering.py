"""Conversations with a model, under one setting after the other, on features computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from foveate.attach import Encoded, Item, Run, encode
from foveate.compressor import Reads, Stage
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import FIRST, Chosen, Setting
from foveate.prompting import conversation, model_inputs, new_words

FULL, BLIND, WRONG = "full", "blind", "wrong image"
# What the full model sees with the lights off: a prompt of the same form, and a grey picture.
_GREY = (128, 128, 128)


class Batch:
    """Some dialogues, whose pictures are encoded once for all settings that leave the tower alone.

    Args:
        model, processor: as loaded.
        dialogues: of one kind, images or videos.
        pictures: those of each dialogue.
        reads: what the settings' methods read, all together.
        max_new_tokens: the longest answer.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        dialogues: Sequence[Dialogue],
        pictures: Sequence[Sequence[Image.Image]],
        reads: frozenset[Reads],
        max_new_tokens: int,
    ) -> None:
        self.model, self.processor, self.reads = model, processor, reads
        self.dialogues, self.pictures = dialogues, pictures
        self.max_new_tokens = max_new_tokens
        self._encoded: dict[tuple[int, ...], Encoded] = {}

    def converse(self, setting: Setting | None) -> list[dict[str, Any]]:
        """Every dialogue from its first turn to its last, with the model's own answers in it.

        Each turn is a prefill of the whole conversation so far. A method that reads the question
        chooses anew for each one; where the setting chooses at the first turn only, later turns
        are given what was chosen there, which says what going on from the first turn's cache
        says: what is kept sees nothing of the text that follows it.

        Args:
            setting: what is attached; None for the full model.

        Returns:
            For each dialogue "answers", and the sums over its turns of visual tokens before ("n"),
            "entering" the LLM and on "average" over its layers.
        """
        found: list[dict[str, Any]] = [
            {"answers": [], "n": 0, "entering": 0, "average": 0.0} for _ in self.dialogues
        ]
        chosen = None
        for turn in range(max(len(each.turns) for each in self.dialogues)):
            rows = tuple(i for i, each in enumerate(self.dialogues) if len(each.turns) > turn)
            if setting is not None and (turn == 0 or setting.chooses_again):
                chosen = self.told(setting, turn, rows, [found[row]["answers"] for row in rows])
            answers, items = self._turn(setting, turn, rows, found, chosen)
            for row, answer in zip(rows, answers, strict=True):
                found[row]["answers"].append(answer)
            if setting is not None and setting.turns == FIRST and turn == 0 and items:
                chosen = {row: [] for row in rows}
                for item in items:
                    chosen[rows[item.row]].append(item.answers)
        return found

    def told(
        self,
        setting: Setting,
        turn: int = 0,
        rows: Sequence[int] | None = None,
        answers: Sequence[Sequence[str]] | None = None,
    ) -> Chosen | None:
        """What the pictures of dialogues keep, where it is not the method that decides.

        Args:
            setting: what is to be attached.
            turn: the turn to come.
            rows: which dialogues; all if None.
            answers: what was said in the turns before.
        """
        rows = range(len(self.dialogues)) if rows is None else rows
        said = [[]] * len(rows) if answers is None else answers
        found = setting.told(
            self.model,
            [self.dialogues[row] for row in rows],
            turn,
            lambda: self.inputs(rows, turn, said),
            self.max_new_tokens,
        )
        return None if found is None else dict(zip(rows, found, strict=True))

    def attach(
        self, setting: Setting, rows: Sequence[int], chosen: Chosen | None, **options: Any
    ) -> Run:
        """A setting on the model.

        Args:
            setting: what is attached.
            rows: the dialogues of the prefills to come.
            chosen: what their pictures keep; None where the method decides.
            options: further ones of `foveate.attach`.
        """
        if chosen is not None:
            options["_recorded"] = [picture for row in rows for picture in chosen[row]]
        return setting.attach(self.model, processor=self.processor, **options)

    @torch.no_grad()
    def _turn(
        self,
        setting: Setting | None,
        turn: int,
        rows: tuple[int, ...],
        found: list[dict[str, Any]],
        chosen: Chosen | None,
    ) -> tuple[list[str], list[Item]]:
        inputs = self.inputs(rows, turn, [found[row]["answers"] for row in rows])
        options: dict[str, Any] = {}
        if setting is None or setting.make().parts[0].stage not in (Stage.IMAGE, Stage.ENCODER):
            if rows not in self._encoded:
                self._encoded[rows] = encode(self.model, inputs, self.reads)
            shared = self._encoded[rows]
            inputs, options = shared.with_text(inputs), {"encoded": shared}
        length = inputs["input_ids"].shape[1]
        attached = (
            contextlib.nullcontext()
            if setting is None
            else self.attach(setting, rows, chosen, **options)
        )
        with attached as run:
            out = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1
            )
        items = [] if run is None else run.items
        if run is not None:
            layers = run.report().layers
            for item in items:
                record = found[rows[item.row]]
                record["n"] += item.n
                record["entering"] += item.entering
                record["average"] += item.average(layers)
        return new_words(self.processor, out, length), items

    def inputs(
        self, rows: Sequence[int], turn: int, answers: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        """The model's inputs of one turn.

        Args:
            rows: which dialogues.
            turn: counted from 0.
            answers: what the model said in the turns before.
        """
        is_video = self.dialogues[0].is_video
        texts = [
            conversation(
                self.processor,
                [each.question for each in self.dialogues[row].turns[: turn + 1]],
                said,
                pictures=1 if is_video else len(self.pictures[row]),
                is_video=is_video,
            )
            for row, said in zip(rows, answers, strict=True)
        ]
        pictures = [self.pictures[row] for row in rows]
        return model_inputs(self.processor, self.model, texts, pictures, is_video=is_video)


def grey(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures of the same sizes that show nothing."""
    return [Image.new("RGB", one.size, _GREY) for one in pictures]
