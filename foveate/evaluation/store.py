"""Answers on disk, one JSON line each, so that an interrupted comparison goes on where it was."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from foveate.errors import SavedFileError
from foveate.holding import hold


class Store:
    """A file of records by (setting, dialogue), opened for adding until it is closed.

    Args:
        path: the JSONL file; made with its folder if absent.
        facts: what all records must share: model, data, versions.
        anew: how the command starts over, for errors.
        fresh: forget what is stored.

    Raises:
        SavedFileError: the file holds answers that were made under other facts, or another run
            is adding to it.
    """

    def __init__(
        self,
        path: Path,
        facts: dict[str, Any],
        anew: str = "start over with --fresh",
        fresh: bool = False,
    ) -> None:
        self.path, self.facts, self.anew = path, facts, anew
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        self._file: TextIO | None = None
        # The file is replaced here: what another run still adds to the old one would be lost.
        lock = path.with_name(f".{path.stem}.lock")
        self._held: ExitStack | None = hold(lock, f"adding to {path}")
        try:
            kept = self._read() if path.exists() and not fresh else []
            # Rewritten once: the line that an interruption cut in two goes.
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in [facts, *kept]))
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except BaseException:
            self.close()
            raise

    @classmethod
    def existing(cls, path: Path) -> Store:
        """What is stored in a file, whatever it was made under (`facts` says that), for reading.

        The file is left as it is: a run that goes on may be adding to it.

        Raises:
            SavedFileError: there is no such file, or it is none of stored answers.
        """
        found = cls.__new__(cls)
        found.path, found.anew, found.records = path, "", {}
        found._file = found._held = None
        lines = found._lines()
        if not lines:
            raise SavedFileError(
                f"{path} is no file of stored answers.\nRun what makes them first."
            )
        found.facts = lines[0]
        found._take(lines[1:])
        return found

    def _lines(self) -> list[dict[str, Any]]:
        """Everything up to the first line that is whole no longer; none if it is another file."""
        lines: list[dict[str, Any]] = []
        try:
            for text in self.path.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if type(line) is not dict or (lines and not {"setting", "dialogue"} <= set(line)):
                    break
                lines.append(line)
        except (OSError, UnicodeDecodeError):
            return []
        except json.JSONDecodeError:
            pass
        return lines

    def _read(self) -> list[dict[str, Any]]:
        lines = self._lines()
        if not lines:
            raise SavedFileError(
                f"{self.path} is no file of stored answers.\nChoose another folder, or {self.anew}."
            )
        if lines[0] != self.facts:
            differing = [
                f"{key} {lines[0].get(key)!r} (now {self.facts.get(key)!r})"
                for key in {**lines[0], **self.facts}
                if lines[0].get(key) != self.facts.get(key)
            ]
            raise SavedFileError(
                f"{self.path} holds answers made with {'; '.join(differing)}.\n"
                f"Choose another folder, or {self.anew}."
            )
        self._take(lines[1:])
        return lines[1:]

    def _take(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            self.records[line["setting"], line["dialogue"]] = line

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.records

    def __getitem__(self, key: tuple[str, str]) -> dict[str, Any]:
        return self.records[key]

    def add(self, setting: str, dialogue: str, **values: Any) -> None:
        """Write one record at once."""
        assert self._file is not None, "opened for reading"
        record = {"setting": setting, "dialogue": dialogue, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.records[setting, dialogue] = record

    def close(self) -> None:
        """Close the file, and let others add to it."""
        if self._file is not None:
            self._file.close()
        if self._held is not None:
            self._held.close()
