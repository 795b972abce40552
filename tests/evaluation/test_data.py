"""Dialogues as data: files, names, fingerprints, what counts as right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate import catalog
from foveate.errors import InputError
from foveate.evaluation import from_jsonl, from_reference
from foveate.evaluation.data import Dialogue, Turn, fingerprint, normalised, others
from foveate.evaluation.settings import Setting
from foveate.evaluation.summary import majority
from tests.families.models import FAMILIES


def test_answers_are_compared_without_case_articles_and_punctuation() -> None:
    assert normalised(" The  Red, star. ") == "red star"
    assert normalised("3.5 km/h") == "3.5 km/h"
    assert normalised("4 7") != normalised("47")
    assert Turn("?", ("a dog", "puppy")).right("Dog.")
    assert not Turn("?", ("a dog",)).right("dogs")
    # An article may be the choice that was asked for.
    assert Turn("?", ("A",)).right("a.") and not Turn("?", ("A",)).right("")


def write(folder: Path, *lines: Any) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "data.jsonl").write_text(text)
    return folder / "data.jsonl"


GOOD = {"image": "a.png", "turns": [{"question": "what ?", "answer": "red"}]}


def test_data_from_a_file(tmp_path: Path) -> None:
    two = {**GOOD, "id": "b", "image": ["a.png", "a.png"]}
    video = {"frames": ["a.png"] * 3, "turns": [{"question": "?", "answers": ["x", "y"]}]}
    found = from_jsonl(write(tmp_path, GOOD, "", two, video))
    assert [each.name for each in found] == ["1", "b", "4"]
    assert [len(each.load()) for each in found] == [1, 2, 3]
    assert [each.is_video for each in found] == [False, False, True]
    assert found[2].turns == (Turn("?", ("x", "y")),)


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    lines = [{**GOOD, "id": None}, {**GOOD, "id": 0}, {**GOOD, "id": None}]
    assert [each.name for each in from_jsonl(write(tmp_path, *lines))] == ["1", "0", "3"]


def test_one_answer_is_no_list_of_letters(tmp_path: Path) -> None:
    turns = [
        {"question": "?", "answers": "blue"},
        {"question": "?", "answers": None, "answer": "x"},
        {"question": "?", "answers": ["x", "y"], "answer": "x"},  # all that count as right
    ]
    (found,) = from_jsonl(write(tmp_path, {**GOOD, "turns": turns}))
    assert found.turns == (Turn("?", ("blue",)), Turn("?", ("x",)), Turn("?", ("x", "y")))


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    odd = {"image": "a.png", "turns": [{"question": "a\u2028b\x85c ?", "answer": "x"}]}
    text = "\ufeff" + json.dumps(odd, ensure_ascii=False) + "\r\n" + json.dumps(GOOD)
    file = write(tmp_path, GOOD)
    file.write_text(text, encoding="utf-8", newline="")
    found = from_jsonl(file)
    assert [each.name for each in found] == ["1", "2"]
    assert found[0].turns[0].question == "a\u2028b\x85c ?"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "data.jsonl:2 is no JSON"),
        ([], r'data.jsonl:2 needs "image"'),
        ({**GOOD, "image": 3}, "data.jsonl:2: .* must be a path"),
        ({**GOOD, "image": "b.png"}, "data.jsonl:2: no picture .*b.png"),
        ({**GOOD, "frames": []}, 'data.jsonl:2: "frames" must be a path or a list'),
        ({**GOOD, "video": 3}, 'data.jsonl:2: "video" must be a path'),
        ({**GOOD, "video": "b.mp4"}, "data.jsonl:2: no picture .*b.mp4"),
        ({**GOOD, "video": "a.png", "frames": "8"}, 'data.jsonl:2: expected one path as "video"'),
        ({**GOOD, "video": ["a.png"]}, 'data.jsonl:2: expected one path as "video"'),
        ({**GOOD, "video": "a.png", "frames": 0}, 'data.jsonl:2: expected one path as "video"'),
        ({**GOOD, "turns": []}, 'data.jsonl:2: "turns" must be a list'),
        ({**GOOD, "turns": [{"question": "?"}]}, 'data.jsonl:2: expected "question"'),
        ({**GOOD, "turns": [{"question": 5, "answer": "a"}]}, 'data.jsonl:2: expected "question"'),
        ({**GOOD, "turns": [{"question": "?", "answers": 5}]}, 'data.jsonl:2: expected "question"'),
        ({**GOOD, "turns": [{"question": "?", "answers": ["a", 5]}]}, "data.jsonl:2: expected"),
        ({**GOOD, "id": "1"}, "uses the id '1' twice"),
    ],
)
def test_broken_data_is_named_by_its_line(line: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        from_jsonl(write(tmp_path, GOOD, line))
    assert len(str(error.value).splitlines()) <= 4


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No data file"):
        from_jsonl(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="holds no dialogue"):
        from_jsonl(write(tmp_path, ""))


def test_the_fingerprint_sees_questions_answers_and_pictures() -> None:
    image = Image.new("RGB", (4, 4))
    base = Dialogue("a", (image,), (Turn("?", ("x",)),))
    others = [
        Dialogue("a", (image,), (Turn("?", ("y",)),)),
        Dialogue("a", (Image.new("RGB", (4, 4), (1, 0, 0)),), (Turn("?", ("x",)),)),
        Dialogue("b", (image,), (Turn("?", ("x",)),)),
        Dialogue("a", (image,), (Turn("?", ("x",)),), is_video=True),
    ]
    found = {fingerprint([each]) for each in [base, *others]}
    assert len(found) == 5
    assert fingerprint([base]) == fingerprint([base])


def test_the_fingerprint_sees_that_a_file_has_changed(tmp_path: Path) -> None:
    """By the time of it: files of one size may show different things."""
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    of = [Dialogue("a", (file,), (Turn("?", ("x",)),))]
    before = fingerprint(of)
    os.utime(file, ns=(0, file.stat().st_mtime_ns))
    assert fingerprint(of) == before
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 10**18))
    assert fingerprint(of) != before


def test_a_palette_belongs_to_what_a_picture_shows() -> None:
    red, blue = (Image.new("P", (4, 4)) for _ in range(2))
    red.putpalette([200, 0, 0])
    blue.putpalette([0, 0, 200])
    assert red.tobytes() == blue.tobytes()
    data = [Dialogue("a", (one,), (Turn("?", ("x",)),)) for one in (red, blue)]
    assert fingerprint(data[:1]) != fingerprint(data[1:])
    assert others(data) == [1, 0]


def test_a_saved_compressor_that_was_trained_on_has_other_answers(tmp_path: Path) -> None:
    model = FAMILIES["llava"].build()
    made = catalog.make("metacompress").initialised(model)  # type: ignore[attr-defined]
    keys = []
    for _ in range(2):
        foveate.save(made, tmp_path, model=model)
        keys.append(Setting(str(tmp_path), 0.5).key)
        with torch.no_grad():
            made.net.query[0, 0] += 1e-6
    assert keys[0] != keys[1]


def test_a_wrong_picture_is_never_the_right_one() -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ((9, 0, 0), (0, 0, 9)))
    data = [Dialogue(str(i), (one,), ()) for i, one in enumerate([red, red, blue, red])]
    assert others(data) == [2, 2, 3, 2]
    assert others(data[:2]) == []
    # The same bytes in another shape are another picture.
    assert others([data[0], Dialogue("w", (red.resize((8, 2)),), ())]) == [1, 0]


def test_the_shipped_scenes_are_data() -> None:
    found = from_reference(2)
    assert [len(each.turns) for each in found] == [3, 3]
    assert all(turn.kind for each in found for turn in each.turns)


def test_majority_by_hand() -> None:
    turns = [Turn("?", (a,), k) for a, k in [("x", "p"), ("x", "p"), ("y", "p"), ("z", "q")]]
    # Two of three p-questions are x, the one q-question is z: three of four.
    assert majority([Dialogue("a", (), tuple(turns))]) == 0.75
    # Answers are counted as they are compared.
    same = [Turn("?", (a,)) for a in ("Yes", "yes.", "the yes", "no")]
    assert majority([Dialogue("a", (), tuple(same))]) == 0.75
