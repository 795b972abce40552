"""PaliGemma: SigLIP, a linear projector, and a prefix mask over image and prompt."""

from __future__ import annotations

from foveate.adapters.llava import Llava


class PaliGemma(Llava):
    """`PaliGemmaForConditionalGeneration`. Its tower's last output is what the projector reads."""

    model_types = ("paligemma",)

    def selected_block(self, modality: str) -> int:
        return len(self.blocks(modality)) - 1
