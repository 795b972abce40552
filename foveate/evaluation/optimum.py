"""The best P of each picture as a setting: no method, what was found for the picture is recalled.

`foveate.training.optimal` finds it by gradient descent on what the full model says about that very
picture and its questions; see there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from foveate.errors import SavedFileError
from foveate.evaluation.data import Dialogue
from foveate.evaluation.settings import EACH, Keep, Setting
from foveate.evaluation.told import of_pictures
from foveate.mapping import Mapping

NAME = "optimum"


def file_of(folder: Path, dialogue: str, picture: int = 0) -> Path:
    """Where the best P of a dialogue's picture is.

    A dialogue's name that is no file's is told apart from others like it by a hash behind it.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in dialogue)[:100]
    if safe != dialogue:
        safe = f"{safe}-{hashlib.sha256(dialogue.encode()).hexdigest()[:8]}"
    return folder / f"{safe}-{picture}.safetensors"


@dataclasses.dataclass(frozen=True)
class Optimum(Setting):
    """The best P of each picture. It is attached as `uniform` is, and told P.

    Attributes:
        steps: of the descent that found it.
        folder: where the mappings are; None: nothing can be attached.
    """

    method: str = "uniform"
    steps: int = 500
    folder: Path | None = None
    note: ClassVar[str] = "no method; it was found for this very picture and its questions."

    @property
    def label(self) -> str:
        """Its name in tables."""
        return NAME

    @property
    def key(self) -> str:
        """What stored answers go by."""
        return f"{NAME} {json.dumps({'keep': self.keep, 'steps': self.steps}, sort_keys=True)}"

    def settings(self, keep: Keep, turns: str = EACH) -> tuple[Optimum, ...]:
        """What is attached at a budget."""
        return (dataclasses.replace(self, keep=keep),)

    def at(self, folder: Path) -> Optimum:
        """The same with its mappings under a folder, in one that its settings name."""
        return dataclasses.replace(self, folder=folder / f"{NAME}-{self.keep}-{self.steps}")

    def file(self, dialogue: str, picture: int = 0) -> Path:
        """Where the mapping of a dialogue's picture is.

        Raises:
            SavedFileError: nowhere.
        """
        if self.folder is None:
            raise SavedFileError("The best P of a picture has to be found before it is asked.")
        return file_of(self.folder, dialogue, picture)

    def told(
        self,
        model: Any,
        dialogues: Sequence[Dialogue],
        turn: int,
        inputs: Callable[[], dict[str, Any]],
        max_new_tokens: int,
    ) -> list[list[list[Mapping]]]:
        """What was found for the pictures of each dialogue; the model is not run."""
        return of_pictures(
            model,
            inputs(),
            dialogues,
            lambda dialogue, picture: Mapping.load(self.file(dialogue.name, picture.index)),
        )
