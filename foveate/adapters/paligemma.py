"""PaliGemma (1 and 2): SigLIP, a linear projector, a prefix mask over image and prompt."""

from __future__ import annotations

from typing import ClassVar

from foveate.adapters.llava import Llava


class PaliGemma(Llava):
    """`PaliGemmaForConditionalGeneration`. Its tower's last output is what the projector reads."""

    model_types = ("paligemma",)
    # Its prompt is a prefix whose tokens see each other: none of it can be added later.
    later_turns: ClassVar[bool] = False
    later_pictures: ClassVar[bool] = False
    answer_type: ClassVar[int] = 1

    def selected_block(self, modality: str) -> int:
        return len(self.blocks(modality)) - 1
