"""P as a picture: a row for each kept token, a column for each of the picture's, and the scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foveate import drawing
from foveate.evaluation.answering import Batch
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import Setting

_SIDE = 256  # pixels of a scene


@torch.no_grad()
def draw(
    settings: Sequence[Setting], model: Any, processor: Any, dialogues: Sequence[Dialogue]
) -> Any:
    """A figure: of each dialogue's picture, and each setting, the scene beside its P.

    Args:
        settings: methods with their budgets.
        model, processor: as loaded.
        dialogues: about one picture each.
    """
    from matplotlib.figure import Figure

    rows = len(dialogues) * len(settings)
    figure = Figure(figsize=(9.6, 1.75 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, 2, squeeze=False, width_ratios=[1, 5]))
    for dialogue in dialogues:
        (picture,) = dialogue.load()
        batch = Batch(model, processor, [dialogue], [[picture]], frozenset(), 1)
        inputs = batch.inputs([0], 0, [[]])
        for setting in settings:
            with setting.attach(model, processor=processor) as run:
                model(**inputs, use_cache=False)
                (item,) = run.items
            matrix = item.mapping.to_matrix().float().cpu()
            seen, weights = next(panels)
            lit = drawing.heat(picture, item.grids, matrix.sum(0).tolist(), side=_SIDE)
            seen.imshow(np.asarray(drawing.bare(lit)))
            seen.set_axis_off()
            weights.imshow(matrix.numpy(), cmap="Blues", aspect="auto", interpolation="nearest")
            weights.set_title(f"{setting.label}, {dialogue.name}", fontsize=8, loc="left")
            weights.set_ylabel("kept", fontsize=7)
            weights.set_xlabel("of the picture", fontsize=7)
            weights.tick_params(labelsize=6)
    return figure
