"""What is told what to keep of each picture, where no method decides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foveate.attach.prompt import Placed, placed
from foveate.evaluation.data import Dialogue
from foveate.mapping import Mapping


def of_pictures(
    model: Any,
    given: dict[str, Any],
    dialogues: Sequence[Dialogue],
    mapping: Callable[[Dialogue, Placed], Mapping],
) -> list[list[list[Mapping]]]:
    """What `Setting.told` returns: of each dialogue, of each picture, the mapping of its one part.

    Args:
        model: as loaded.
        given: inputs of a turn; each row is a dialogue's.
        dialogues: those of the rows.
        mapping: of a picture, called in the order of rows and of the pictures in them.
    """
    found: list[list[list[Mapping]]] = [[] for _ in dialogues]
    for picture in placed(model, given):
        found[picture.row].append([mapping(dialogues[picture.row], picture)])
    return found
