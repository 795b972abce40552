"""Frames of video files."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate import reference
from foveate.errors import InputError, MissingDependency
from foveate.evaluation.compare import compare
from foveate.evaluation.data import Dialogue, Turn, fingerprint, from_clips, from_jsonl, parts
from foveate.evaluation.videos import frames_of
from tests.films import film

STEP = 12


def shown(pictures: list[Image.Image]) -> list[int]:
    """Which frames of a film of rising greys these are."""
    return [round(each.getpixel((16, 16))[0] / STEP) for each in pictures]


# The fourth does not say when frames are shown that were coded out of order.
@pytest.mark.parametrize(
    ("ending", "between"),
    [("mp4", 0), ("mkv", 0), ("mov", 0), ("avi", 0), ("mp4", 2), ("mkv", 2), ("mov", 2)],
)
def test_frames_are_the_middles_of_equal_parts(tmp_path: Path, ending: str, between: int) -> None:
    file = film(tmp_path / f"a.{ending}", [STEP * i for i in range(20)], between)
    found = [each.load() for each in frames_of(file)]
    assert {each.mode for each in found} == {"RGB"} and found[0].size == (32, 32)
    assert shown(found) == [1, 3, 6, 8, 11, 13, 16, 18]
    assert shown([each.load() for each in frames_of(file, 1)]) == [10]
    assert shown([each.load() for each in frames_of(file, 20)]) == list(range(20))


def test_a_short_video_shows_frames_twice(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", [0, STEP])
    assert shown([each.load() for each in frames_of(file, 5)]) == [0, 0, 1, 1, 1]


def test_frames_are_decoded_when_looked_at_and_known_by_their_file(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", [0] * 4)
    frames, again = frames_of(file, 4), frames_of(file, 4)
    assert frames == again and len(set(frames)) == 4
    assert frames != frames_of(file, 5)[:4]
    file.write_bytes(b"no video")
    assert frames != frames_of(file, 4)
    with pytest.raises(InputError, match=r"a\.mp4 is no video that can be read"):
        frames[0].load()


def test_a_video_that_is_replaced_is_decoded_again(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", [0] * 4)
    assert shown([frames_of(file, 1)[0].load()]) == [0]
    film(file, [5 * STEP] * 9)
    assert shown([frames_of(file, 1)[0].load()]) == [5]


def test_a_picture_is_changed_alone(tmp_path: Path) -> None:
    (one,) = frames_of(film(tmp_path / "a.mp4", [0]), 1)
    one.load().paste((255, 255, 255), (0, 0, 32, 32))
    assert shown([one.load()]) == [0]


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(InputError, match="holds no video stream"):
        frames_of(tmp_path / "a.mkv")[0].load()


def test_without_pyav_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = film(tmp_path / "a.mp4", [0])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependency, match=r"pip install 'foveate\[video\]'"):
        frames_of(file)


def test_videos_in_a_file_of_dialogues(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", [STEP * i for i in range(20)])
    turns = [{"question": "?", "answer": "x"}]
    lines = [{"video": "a.mp4", "turns": turns}, {"video": "a.mp4", "frames": 2, "turns": turns}]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = from_jsonl(tmp_path / "data.jsonl")
    assert all(each.is_video for each in found)
    assert [len(each.pictures) for each in found] == [8, 2]
    assert shown(found[1].load()) == [5, 15]
    before = fingerprint(found)
    film(tmp_path / "a.mp4", [STEP * i for i in range(21)])
    assert fingerprint(from_jsonl(tmp_path / "data.jsonl")) != before


def test_a_batch_has_videos_of_one_length() -> None:
    image = Image.new("RGB", (4, 4))

    def of(count: int, is_video: bool = True) -> Dialogue:
        return Dialogue("", (image,) * count, (Turn("?", ("x",)),), is_video)

    mixed = [of(1, False), of(2, False), of(1), of(2), of(2), of(2), of(3)]
    found = [(part.start, part.stop) for part in parts(mixed, 2)]
    assert found == [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]
    assert not list(parts([], 2))


def test_videos_of_several_lengths_are_compared(tmp_path: Path) -> None:
    clips = [
        dataclasses.replace(each, name=f"{each.name} {frames}")
        for frames in (8, 8, 12)
        for each in from_clips(1, frames=frames)
    ]
    data = [dataclasses.replace(each, name=str(i)) for i, each in enumerate(clips)]
    found = compare(
        *reference.load("reference-tiles"), data, ["uniform"], [0.5], out=tmp_path, repeats=2
    )
    assert len(found.rows) == 1 and not found.skipped
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    counts = {each["dialogue"]: each["n"] for each in records if each.get("n")}
    assert counts["0"] == counts["1"] < counts["2"]
