"""What a server has answered, on disk line by line, so that a run that was stopped pays for none of it again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from alignment import files
from alignment.errors import DataError

Told = dict[str, Any]
"""An answer as JSON: values by name."""


class Journal:
    """Answers of one kind, one JSON line each, found by the digest of what was asked.

    ``kinds`` are the names and types of an answer's values. Lines without the first of them are what nonsense has cost,
    or answers of another kind: of these the cost alone is read. A last line that was cut off is forgotten. Only the
    places of the lines are held in memory.
    """

    def __init__(self, path: Path, kinds: Mapping[str, type]) -> None:
        self.path, self.kinds, self.spent = path, dict(kinds), 0
        self._places: dict[str, int] = {}
        files.make_folder(path.parent)
        path.touch()
        self._read()

    def _read(self) -> None:
        place = 0
        with open(self.path, "r+b") as file:
            for number, line in enumerate(file, start=1):
                try:
                    kept = json.loads(line) if line.endswith(b"\n") else None
                except (ValueError, RecursionError):
                    kept = None
                if not self._is_kept(kept):
                    if file.read(1):
                        raise DataError(
                            f"{self.path}:{number}",
                            "is not a line of a journal",
                            remedy="Remove the line; its answer is asked for again.",
                        )
                    file.truncate(place)
                    break
                self._note(kept, place)
                place += len(line)

    def _is_kept(self, line: Any) -> TypeGuard[Told]:
        """Whether a line is one that a journal writes."""
        if not isinstance(line, dict) or not isinstance(line.get("digest"), str):
            return False
        if type(line.get("spent")) is not int or line["spent"] < 0:
            return False
        return self._mark not in line or all(isinstance(line.get(name), kind) for name, kind in self.kinds.items())

    @property
    def _mark(self) -> str:
        return next(iter(self.kinds))

    def _note(self, kept: Told, place: int) -> None:
        self.spent += kept["spent"]
        if self._mark in kept:
            self._places[kept["digest"]] = place

    def answers(self, digests: Iterable[str]) -> dict[str, Told]:
        """Those of ``digests`` that are here."""
        found = {}
        with open(self.path, "rb") as file:
            for digest in digests:
                if digest in self._places:
                    file.seek(self._places[digest])
                    kept = json.loads(file.readline())
                    found[digest] = {name: kept[name] for name in self.kinds}
        return found

    def add(self, digest: str, told: Told | None, spent: int) -> None:
        """Keep an answer, or what an unusable one has cost; on disk when this returns."""
        kept = {"digest": digest, "spent": spent, **(told or {})}
        place = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # Another answer may still come, and must not be written behind half a line.
            with contextlib.suppress(OSError):
                os.truncate(self.path, place)
            raise files.disk_error(error, self.path) from None
        self._note(kept, place)
