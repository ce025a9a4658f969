"""The values that travel between the parts of this room: raw rows with their place, and candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from alignment.chat.types import Comparison, Conversation, Prompt, Text
from alignment.errors import DataError

Kind = Literal["conversations", "prompts", "comparisons", "text"]
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

Row = Conversation | Prompt | Comparison | Text


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as its source has it. ``file`` is what the ledger calls it, ``place`` where a person finds it."""

    file: str
    line: int
    value: Any
    place: str
    split: Split | None = None
    """The side on which a source that brings its own splits has put it."""

    whole_file: bool = False
    """The row is a file read in one piece, so that its parts have lines of their own."""

    members: tuple[Raw, ...] = ()
    """The rows that were joined into this one, whose value is then ``{"rows": [their values]}``."""

    @property
    def where(self) -> str:
        """``file:line``, for errors."""
        return f"{self.place}:{self.line}"

    def column(self, name: str) -> Any:
        """The value of a column. Raises :class:`DataError` where there is none of that name."""
        if not isinstance(self.value, dict):
            raise DataError(
                self.where,
                f"a row with columns is wanted, not {type(self.value).__name__}",
                remedy="Check the source's `reader` and `format`.",
            )
        if name not in self.value:
            known = ", ".join(sorted(map(str, self.value))) or "none"
            raise DataError(
                self.where,
                f"there is no column {name!r}",
                cause=f"Columns of this row: {known}.",
                remedy="Map the column in the recipe's `columns`.",
            )
        return self.value[name]

    def text(self, name: str) -> str | None:
        """A column that holds text, or null. Raises :class:`DataError` for any other type."""
        value = self.column(name)
        if value is None or isinstance(value, str):
            return value
        raise DataError(
            self.where,
            f"column {name!r} holds {type(value).__name__}, not text: {str(value)[:60]!r}",
            remedy="Check the recipe's `format` and `columns`.",
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a format made of a raw row, or of a part of it: a row without an id, or why there is none."""

    row: Row | None = None
    dropped: str = ""
    line: int | None = None
    """Where the part begins, where that is not the raw row's own line."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All candidates of one raw row, and what was left out or altered on the way to them."""

    candidates: list[Candidate]
    changed: str = ""


def one(row: Row) -> Reading:
    """The usual case: a raw row that is a row."""
    return Reading([Candidate(row)])


def none(reason: str) -> Reading:
    """A raw row that cannot become a row."""
    return Reading([Candidate(dropped=reason)])
