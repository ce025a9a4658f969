"""Datasets' columns: the four types as ``datasets.Features`` and as plain rows, always in the same order."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from datasets import Features, List, Value

from alignment.chat.types import Comparison, Conversation, Message, Prompt, Text
from alignment.errors import UserError, nearest

Item = Conversation | Prompt | Comparison | Text
Row = dict[str, Any]

KINDS: dict[str, type[Item]] = {
    "conversations": Conversation,
    "prompts": Prompt,
    "comparisons": Comparison,
    "text": Text,
}

_TURNS = List({"role": Value("string"), "content": Value("string")})
_COLUMNS: dict[str, Any] = {
    "messages": _TURNS,
    "prompt": _TURNS,
    "tags": List(Value("string")),
    "chosen_safe": Value("bool"),
    "rejected_safe": Value("bool"),
}
"""Columns that are not plain strings. A type's field of that name is such a column in every dataset."""


def features(kind: str) -> Features:
    """The columns of a dataset of ``conversations``, ``prompts``, ``comparisons`` or ``text``."""
    names = [field.name for field in fields(_type(kind))]
    return Features({name: _COLUMNS.get(name, Value("string")) for name in names})


def to_row(item: Item) -> Row:
    """A plain dictionary with the columns of ``features``."""
    row = {field.name: getattr(item, field.name) for field in fields(item)}
    for name in ("messages", "prompt"):
        if name in row:
            row[name] = [{"role": turn.role, "content": turn.content} for turn in row[name]]
    if "tags" in row:
        row["tags"] = list(row["tags"])
    return row


def from_row(kind: str, row: Row) -> Item:
    """The inverse of ``to_row``. UserError that names the columns where they are not the kind's."""
    made = _type(kind)
    names = {field.name for field in fields(made)}
    if set(row) != names:
        missing, strange = sorted(names - set(row)), sorted(set(row) - names)
        raise UserError(
            f"a row is not one of {kind!r}",
            cause="; ".join(
                part
                for part in (missing and f"missing: {', '.join(missing)}", strange and f"unknown: {', '.join(strange)}")
                if part
            ),
        )
    values = dict(row)
    for name in ("messages", "prompt"):
        if name in values:
            values[name] = tuple(Message(turn["role"], turn["content"]) for turn in values[name])
    if "tags" in values:
        values["tags"] = tuple(values["tags"])
    return made(**values)


def _type(kind: str) -> type[Item]:
    if kind not in KINDS:
        raise UserError(f"there is no kind of dataset {kind!r}", remedy=nearest(kind, tuple(KINDS)))
    return KINDS[kind]
