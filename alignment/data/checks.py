"""What makes a row sound, the same as another, or worth a mark; pure functions from a row to an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from alignment.chat.types import Comparison, Conversation, Message, Messages, Text, prompt_key, row_key
from alignment.data.rows import Row

TURN_SPELLINGS = ("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>")
"""Spellings of control tokens that look like a forged turn. They are encoded as plain text."""


def trimmed(row: Row) -> Row:
    """The row without white space around its texts."""
    if isinstance(row, Text):
        return replace(row, text=row.text.strip())
    if isinstance(row, Comparison):
        return replace(row, prompt=_strip(row.prompt), chosen=row.chosen.strip(), rejected=row.rejected.strip())
    return replace(row, messages=_strip(row.messages))


def flaw(row: Row) -> str:
    """Why a trimmed row cannot be used, or an empty text."""
    if isinstance(row, Text):
        return "" if row.text else "empty text"
    if isinstance(row, Comparison):
        if not row.chosen or not row.rejected:
            return "empty answer"
        return "both answers are the same" if row.chosen == row.rejected else turns_flaw(row.prompt, "user")
    return turns_flaw(row.messages, "assistant" if isinstance(row, Conversation) else "user")


def turns_flaw(turns: Sequence[Message], ends_with: str) -> str:
    """Why turns are not a conversation: after at most one system message, user and assistant alternate."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken:
        return "no turns"
    if any(turn.role == "system" for turn in spoken):
        return "system message after the beginning"
    if spoken[0].role == "assistant":
        return "starts with the assistant"
    if any(one.role == other.role for one, other in pairwise(spoken)):
        return "turns do not alternate"
    empty = next((turn.role for turn in turns if not turn.content), None)
    if empty:
        return {"assistant": "empty answer", "user": "empty question", "system": "empty system message"}[empty]
    return "" if spoken[-1].role == ends_with else f"ends with the {spoken[-1].role}"


def mark(row: Row) -> str:
    """What a reader should know of a sound row, or an empty text."""
    texts = _texts(row)
    found = [spelling for spelling in TURN_SPELLINGS if any(spelling in text for text in texts)]
    return f"spells {' and '.join(found)}" if found else ""


def content_digest(row: Row) -> bytes:
    """16 bytes that are equal for rows with the same texts in the same roles."""
    return hashlib.sha256(json.dumps(_texts(row)).encode()).digest()[:16]


def split_key(row: Row) -> str:
    """What all rows of one prompt share, so that they fall on one side. A document is its own prompt."""
    if isinstance(row, Text):
        return content_digest(row).hex()
    return prompt_key(row.prompt) if isinstance(row, Comparison) else row_key(row)


def _strip(turns: Messages) -> Messages:
    return tuple(Message(turn.role, turn.content.strip()) for turn in turns)


def _texts(row: Row) -> list[str]:
    """The texts of a row, each turn's role before its own."""
    if isinstance(row, Text):
        return [row.text]
    turns = row.prompt if isinstance(row, Comparison) else row.messages
    spoken = [text for turn in turns for text in (turn.role, turn.content)]
    return [*spoken, row.chosen, row.rejected] if isinstance(row, Comparison) else spoken
