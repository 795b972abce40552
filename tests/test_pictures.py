"""Images that cannot be used are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ExifTags, Image

from foveate.errors import InputError
from foveate.pictures import load_image


def test_an_image_and_a_scene(tmp_path: Path) -> None:
    Image.new("L", (5, 3), 9).save(tmp_path / "grey.png")
    assert load_image(tmp_path / "grey.png").mode == "RGB"
    assert load_image("scene:4").size == (128, 128)


def test_a_photograph_is_turned_as_it_is_meant_to_be_seen(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # held so that the left side of the picture is its top
    for kind in ("png", "tiff", "webp"):
        picture.save(tmp_path / f"a.{kind}", exif=exif, lossless=True)
        found = load_image(tmp_path / f"a.{kind}")
        assert found.size == (2, 4) and found.getpixel((1, 0)) == (255, 255, 255)
        assert ExifTags.Base.Orientation not in found.getexif()  # nobody turns it again
    picture.save(tmp_path / "odd.jpg", exif=b"Exif\0\0no TIFF file")
    assert load_image(tmp_path / "odd.jpg").size == (4, 2)


def refused(path: Path | str) -> str:
    with pytest.raises(InputError) as error:
        load_image(path)
    message = str(error.value)
    assert len(message.splitlines()) <= 4
    assert "Traceback" not in message
    return message


def test_what_is_no_image(tmp_path: Path) -> None:
    assert "No image" in refused(tmp_path / "absent.png")
    assert "scene:0" in refused("absent.png")
    (tmp_path / "empty.png").touch()
    assert "is empty" in refused(tmp_path / "empty.png")
    (tmp_path / "words.png").write_text("no picture")
    assert "no image that can be read" in refused(tmp_path / "words.png")
    assert "numbered from 0" in refused("scene:first")
    (tmp_path / "none.ppm").write_bytes(b"P6 0 0 255\n")  # of no pixels at all
    assert "no image that can be read" in refused(tmp_path / "none.ppm")


def test_a_truncated_image(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    assert "is broken" in refused(tmp_path / "half.png")


def test_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)  # a warning for Pillow, an error here
    assert "too large" in refused(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)  # more than twice the limit
    assert "more than 4,000 pixels" in refused(tmp_path / "bomb.png")
