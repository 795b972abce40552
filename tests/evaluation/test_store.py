"""Stored answers: what comes back, what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from foveate.errors import SavedFileError
from foveate.evaluation.store import Store


def test_reading_stored_answers_takes_none_from_a_run_that_goes_on(tmp_path: Path) -> None:
    running = Store(tmp_path / "answers.jsonl", {"model": "m"})
    running.add("s", "1", answers=["x"])
    seen = Store.existing(running.path)
    assert seen.facts == {"model": "m"} and seen["s", "1"]["answers"] == ["x"]
    running.add("s", "2", answers=["y"])
    running.close()
    assert ("s", "2") in Store.existing(running.path)


@pytest.mark.parametrize("content", [b"[1]\n", b"3\n", b"\xff\xfe", b"", b"no json"])
def test_another_file_is_no_stored_answers(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    for read in (Store.existing, lambda at: Store(at, {"model": "m"})):
        with pytest.raises(SavedFileError, match="is no file of stored answers"):
            read(path)
    assert path.read_bytes() == content
    with pytest.raises(SavedFileError, match="is no file of stored answers"):
        Store.existing(tmp_path / "absent.jsonl")


def test_stored_answers_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "answers.jsonl", {"model": "m"})
    store.add("s", "1", answers=["x"])
    store.close()
    again = Store(store.path, {"model": "m"})
    assert ("s", "1") in again
    assert again["s", "1"]["answers"] == ["x"]
    assert ("s", "2") not in again
    again.close()


def test_a_file_of_answers_is_added_to_by_one_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "answers.jsonl", {"model": "m"})
    store.add("s", "1", answers=["x"])
    for fresh in (False, True):
        with pytest.raises(SavedFileError, match="Another run is adding to") as error:
            Store(store.path, {"model": "m"}, fresh=fresh)
        assert len(str(error.value).splitlines()) <= 4
    store.add("s", "2", answers=["y"])
    store.close()
    again = Store(store.path, {"model": "m"})
    assert list(again.records) == [("s", "1"), ("s", "2")]
    again.close()
    # Whichever thread closes it.
    third = Store(store.path, {"model": "m"})
    other = threading.Thread(target=third.close)
    other.start()
    other.join()
    assert ("s", "2") in third
    # One that is refused for what it is about lets go, too.
    with pytest.raises(SavedFileError, match="made with"):
        Store(store.path, {"model": "other"})
    Store(store.path, {"model": "other"}, fresh=True).close()
    assert not Store.existing(store.path).records


def test_a_line_cut_in_two_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "answers.jsonl", {"model": "m"})
    store.add("s", "1", answers=["x"])
    store.close()
    with store.path.open("a") as file:
        file.write('{"setting": "s", "dialo')
    again = Store(store.path, {"model": "m"})
    assert list(again.records) == [("s", "1")]
    again.add("s", "2", answers=["y"])
    again.close()
    last = Store(store.path, {"model": "m"})
    assert list(last.records) == [("s", "1"), ("s", "2")]
    last.close()


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("notes of mine\n")
    with pytest.raises(SavedFileError, match="no file of stored answers"):
        Store(tmp_path / "answers.jsonl", {"model": "m"})
    assert (tmp_path / "answers.jsonl").read_text() == "notes of mine\n"


def test_answers_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    Store(tmp_path / "answers.jsonl", {"model": "m", "data": "d"}).close()
    with pytest.raises(SavedFileError, match=r"model 'm' \(now 'other'\)") as error:
        Store(tmp_path / "answers.jsonl", {"model": "other", "data": "d"})
    assert "--fresh" in str(error.value)
    assert "data" not in str(error.value).splitlines()[0].partition("made with")[2]
