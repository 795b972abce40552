"""Answers on disk, one JSON line each, so that an interrupted comparison goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveate.errors import SavedFileError


class Store:
    """A file of records by (setting, dialogue), opened for adding.

    Args:
        path: the JSONL file; made with its folder if absent.
        facts: what all records must share: model, data, versions.
        anew: how the command starts over, for errors.

    Raises:
        SavedFileError: the file holds answers that were made under other facts.
    """

    def __init__(
        self, path: Path, facts: dict[str, Any], anew: str = "start over with --fresh"
    ) -> None:
        self.path, self.facts, self.anew = path, facts, anew
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read() if path.exists() else []
        # Rewritten once: the line that an interruption cut in two goes.
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in [facts, *kept]))
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    @classmethod
    def existing(cls, path: Path) -> Store:
        """What is stored in a file, whatever it was made under (`facts` says that), for reading.

        Raises:
            SavedFileError: there is no such file, or it is none of stored answers.
        """
        try:
            with path.open(encoding="utf-8") as file:
                facts = json.loads(file.readline())
        except (OSError, json.JSONDecodeError) as error:
            raise SavedFileError(
                f"{path} is no file of stored answers.\nRun what makes them first."
            ) from error
        found = cls(path, facts)
        found.close()
        return found

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
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
        for line in lines[1:]:
            self.records[line["setting"], line["dialogue"]] = line
        return lines[1:]

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.records

    def __getitem__(self, key: tuple[str, str]) -> dict[str, Any]:
        return self.records[key]

    def add(self, setting: str, dialogue: str, **values: Any) -> None:
        """Write one record at once."""
        record = {"setting": setting, "dialogue": dialogue, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.records[setting, dialogue] = record

    def close(self) -> None:
        """Close the file."""
        self._file.close()
