"""What a format is, and what all of them share: the shape that a recipe asks for, and a row's labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.chat.types import Conversation, Messages, Prompt
from alignment.data.rows import Kind, Raw, Reading
from alignment.errors import DataError
from alignment.settings import Settings


@dataclass(frozen=True, slots=True)
class Shape:
    """How a recipe's source fills in a format: the kind wanted, our column names → theirs, options."""

    kind: Kind
    columns: Mapping[str, str]
    options: Any
    source: str = ""
    """What the recipe calls the source; a comparison carries it."""


@dataclass(frozen=True, slots=True)
class Format:
    """A way to read raw rows. ``columns`` have to be mapped, ``beside`` may be, by the kind of row wanted."""

    read: Callable[[Raw, Shape], Reading]
    columns: Mapping[Kind, tuple[str, ...]]
    options: type[Settings]
    beside: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)

    def may_map(self, kind: Kind) -> tuple[str, ...]:
        """The columns that a source of this kind may map, but need not."""
        return self.beside.get(kind, ())


class NoOptions(Settings):
    """A format that has nothing to be set."""


LABELS: Mapping[Kind, tuple[str, ...]] = {
    "conversations": ("id", "tags"),
    "prompts": ("id", "tags", "category", "attack", "reference"),
    "comparisons": ("id",),
}
"""Columns that may be mapped beside those with the turns. ``tags`` and ``reference`` may name several, divided by
commas; a reference is then an object of their values."""


def with_labels(*names: str, kinds: tuple[Kind, ...] = ("conversations", "prompts")) -> dict[Kind, tuple[str, ...]]:
    """The optional columns of a format: ``names`` and the labels of each kind."""
    return {kind: (*names, *LABELS[kind]) for kind in kinds}


def chat(raw: Raw, shape: Shape, turns: Messages) -> Conversation | Prompt:
    """Turns as the kind of row that is wanted, with the labels that the source maps."""
    known, tags = label(raw, shape, "id") or "", _tags(raw, shape)
    if shape.kind == "conversations":
        return Conversation(turns, known, tags)
    category, attack = label(raw, shape, "category"), label(raw, shape, "attack")
    return Prompt(turns, known, tags, category, attack, _reference(raw, shape))


def label(raw: Raw, shape: Shape, name: str) -> str | None:
    """A label that is a text or a whole number; None where it is not mapped, null or empty.

    Raises :class:`DataError` for a value of another type.
    """
    if name not in shape.columns:
        return None
    value = raw.column(shape.columns[name])
    return None if value is None else _text(raw, shape.columns[name], value) or None


def _tags(raw: Raw, shape: Shape) -> tuple[str, ...]:
    """The tags of every column that is mapped: a text, a whole number, or a list of these."""
    found: list[str] = []
    for column in shape.columns["tags"].split(",") if "tags" in shape.columns else ():
        value = raw.column(column.strip())
        values = value if isinstance(value, list) else [] if value is None else [value]
        found += [tag for tag in (_text(raw, column.strip(), each) for each in values) if tag]
    return tuple(found)


def _reference(raw: Raw, shape: Shape) -> str | None:
    """The reference answer; what is not text is written as JSON, so that a checker can read it back."""
    if "reference" not in shape.columns:
        return None
    columns = [column.strip() for column in shape.columns["reference"].split(",")]
    value = {column: raw.column(column) for column in columns} if len(columns) > 1 else raw.column(columns[0])
    try:
        return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise DataError(
            raw.where,
            f"column {shape.columns['reference']!r}: {error}",
            remedy="Bytes, dates and decimals are no references; write the column as text or as numbers.",
        ) from None


def _text(raw: Raw, column: str, value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        raw.where,
        f"column {column!r} holds {type(value).__name__}, not text or a whole number: {str(value)[:60]!r}",
        remedy="Map another column in the recipe's `columns`, or none.",
    )
