"""What is stored of the full model does not depend on where its computing was interrupted."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from foveate import reference
from foveate.errors import InputError
from foveate.evaluation.data import Dialogue
from foveate.methods.seek import Seek
from foveate.training import data, files
from foveate.training.pairs import Pairs
from foveate.training.teacher import Teacher
from tests.training import needs_features

pytestmark = needs_features


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return reference.load()


@pytest.fixture(scope="module")
def scenes() -> list[Dialogue]:
    """Of different lengths, so that batches of others are padded otherwise."""
    found = data.examples("scenes", count=12)
    found[2::4] = [dataclasses.replace(one, turns=one.turns[:1]) for one in found[2::4]]
    return found


def teacher(loaded: tuple[Any, Any], folder: Path, limit: int | None = None) -> Teacher:
    return Teacher(*loaded, folder, limit=limit)


def pairs(loaded: tuple[Any, Any], folder: Path, limit: int | None = None) -> Pairs:
    return Pairs(*loaded, folder, Seek(kinds=("image",)), max_bytes=limit)


def there(folder: Path) -> dict[str, Any]:
    """Every file's tensors and words; the order of the latter in it is no one's."""
    found = {}
    for file in folder.rglob("*.safetensors"):
        tensors, known = files.read_tensors(file)
        bits = {name: (x.dtype, x.shape, x.numpy().tobytes()) for name, x in tensors.items()}
        found[f"{file.relative_to(folder)}"] = bits, known
    return found


def used(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("made", [teacher, pairs])
@torch.no_grad()
def test_the_same_after_any_kill(
    made: Any,
    loaded: tuple[Any, Any],
    scenes: list[Dialogue],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[tuple[str, ...]] = []
    kind = type(made(loaded, tmp_path))
    compute = kind.compute

    def noted(self: Any, dialogues: Any) -> Any:
        batches.append(tuple(each.name for each in dialogues))
        return compute(self, dialogues)

    monkeypatch.setattr(kind, "compute", noted)
    made(loaded, tmp_path / "whole").fill(scenes, batch_size=4)
    whole, planned = there(tmp_path / "whole"), set(batches)
    batches.clear()
    write, written = files.write, list[Path]()

    def dying(file: Path, content: bytes) -> None:
        if len(written) % 5 == 4:
            written.append(file)
            raise KeyboardInterrupt
        written.append(file)
        write(file, content)

    monkeypatch.setattr(files, "write", dying)
    kills = 0
    while True:
        try:
            made(loaded, tmp_path / "killed").fill(scenes, batch_size=4)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 2 and there(tmp_path / "killed") == whole
    assert set(batches) == planned and len(batches) > len(planned)  # the same ones again
    assert not any((tmp_path / "killed").rglob("*.json"))  # nor anything else is left


@torch.no_grad()
def test_what_others_are_there_does_not_matter_once_it_is_planned(
    loaded: tuple[Any, Any], scenes: list[Dialogue], tmp_path: Path
) -> None:
    """More dialogues than before: those that are there are not run again."""
    made, done = teacher(loaded, tmp_path), list[int]()
    made.fill(scenes[:6], batch_size=4)
    before = there(tmp_path)
    made.fill(scenes, batch_size=4, done=done.append)
    assert sum(done) == len(scenes) and done[0] == 6
    after = there(tmp_path)
    assert {name: after[name] for name in before} == before


def test_pairs_are_bounded(loaded: tuple[Any, Any], scenes: list[Dialogue], tmp_path: Path) -> None:
    told: list[str] = []
    one = pairs(loaded, tmp_path / "whole")
    one.fill(scenes, batch_size=2, tell=lambda size: told.append(str(size)))
    total = used(tmp_path / "whole")
    assert len(told) == 1 and "what is learned from 12 dialogues takes" in told[0]
    limit = total * 3 // 4  # more than the first ones need
    with pytest.raises(InputError, match="limit is") as error:
        pairs(loaded, tmp_path / "few", limit).fill(scenes, batch_size=2)
    assert len(str(error.value).splitlines()) <= 4
    with pytest.raises(InputError, match="more than the limit"):
        pairs(loaded, tmp_path / "less", limit).fill(scenes, batch_size=2, foresee=False)
    assert 0 < used(tmp_path / "less") <= limit


def test_other_bytes_are_another_picture(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """Also of the same name, size and time, as from an archive that sets them."""
    named = []
    for shade in (10, 200):
        file = tmp_path / f"{shade}" / "0.bmp"
        file.parent.mkdir()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(file)
        os.utime(file, (0, 0))
        (one,) = data.examples("scenes", count=1)
        shown = dataclasses.replace(one, pictures=(file,))
        named.append([make(loaded, tmp_path).files(shown) for make in (teacher, pairs)])
    assert not {*named[0][0], *named[0][1]} & {*named[1][0], *named[1][1]}


def test_what_a_kill_left_is_cleared_in_time(tmp_path: Path) -> None:
    old, new = tmp_path / "a.1.partial", tmp_path / "a.2.partial"
    for each in (old, new):
        each.write_bytes(b"half")
    os.utime(old, (0, 0))
    files.Room(tmp_path, None, [])
    assert not old.exists() and new.exists()  # another process may be writing it
