"""Pictures from disk, or of the shipped scenes, with errors that say what is wrong with them."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.errors import InputError

SCENE = "scene:"


def load_image(path: str | Path) -> Image.Image:
    """An image in RGB.

    Args:
        path: a file, or `scene:N` for scene N of the shipped world's test split.

    Raises:
        InputError: it is missing, broken, empty, or so large that it would fill the memory.
    """
    if str(path).startswith(SCENE):
        return _scene(str(path))
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"No image {path}.\nExpected a file, or scene:0, scene:1 ... for a shipped scene."
        )
    if file.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).\nExpected an image file.")
    return decoded(file, str(path))


def decoded(file: Path | io.BytesIO, name: str) -> Image.Image:
    """An image in RGB, turned as its EXIF says that it is meant to be seen.

    Args:
        file: where its bytes are.
        name: how errors call it.

    Raises:
        InputError: it is broken, or so large that it would fill the memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                found = opened.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} is too large: it holds more than {Image.MAX_IMAGE_PIXELS:,} pixels.\n"
            "Scale it down first; a few megapixels are more than any model looks at."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is no image that can be read.\nExpected PNG, JPEG, WebP or the like."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{name} is broken: {str(error).splitlines()[0] if str(error) else 'unreadable'}.\n"
            "Save or download it again."
        ) from error
    # Pillow raises almost anything at malformed EXIF, in reading it or after turning the picture
    # in writing it anew; the picture itself is whole.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(found, in_place=True)
    return found


def _scene(text: str) -> Image.Image:
    number = text.removeprefix(SCENE)
    if not number.isdigit():
        raise InputError(f"Scenes are numbered from 0: scene:0, scene:1 ...; got {text!r}.")
    from foveate import reference

    return next(reference.samples("test", 1, start=int(number))).image
