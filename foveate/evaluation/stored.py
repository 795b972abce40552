"""Pictures that lie in files of others, or of videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Stored:
    """A picture in a file of others, or of a video, read when it is looked at.

    Attributes:
        digest: a hash of it; pictures are the same if theirs is.
        load: gives the picture in RGB, or raises an InputError.
    """

    digest: str
    load: Callable[[], Image.Image] = dataclasses.field(compare=False, repr=False)
