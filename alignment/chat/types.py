"""Messages, conversations, comparisons and prompts: what text is before it becomes tokens.

As ``datasets.Features`` these are the columns of every dataset artifact (``data/store.py``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
Train = Literal["all", "last", "none"]
Grade = Literal["significantly", "better", "slightly", "negligibly"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``assistant`` is spelled ``model`` in Gemma's turn header, and only there."""

    role: Role
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end with the assistant. ``train`` says which answers carry loss (``last``: Ghost Attention)."""

    messages: Messages
    id: str
    tags: tuple[str, ...] = ()
    train: Train = "all"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Turns that end with the user. ``category`` and ``attack`` place unsafe ones in the taxonomy."""

    messages: Messages
    id: str
    tags: tuple[str, ...] = ()
    category: str | None = None
    attack: str | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, the better first; ``grade`` says by how much (Llama 2 §3.2.1).

    A grade of None is that of a source which does not grade; a table of margins gives it 0.
    """

    prompt: Messages
    chosen: str
    rejected: str
    grade: Grade | None
    source: str
    id: str
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A document for language modelling."""

    text: str
    id: str


def messages(*turns: tuple[Role, str] | Message) -> Messages:
    """Build turns briefly: ``messages(("user", "Hi"), ("assistant", "Hello"))``."""
    return tuple(turn if isinstance(turn, Message) else Message(*turn) for turn in turns)


def prompt_key(turns: Sequence[Message]) -> str:
    """What makes two rows "the same prompt": the opening user message, case and spacing aside.

    Splits keep all rows of one key on one side, and an evaluation refuses a model that was
    trained on one of its keys. The opening message and not the whole history, so that a later
    turn of a conversation cannot leak its beginning. 16 hexadecimal digits.
    """
    opening = next((turn.content for turn in turns if turn.role == "user"), "")
    plain = re.sub(r"\s+", " ", opening).strip().casefold()
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


OPENING = "opening:"
"""Begins the tag of a row whose opening message was changed: what follows is the key of the message as it was."""


def row_key(row: Conversation | Prompt) -> str:
    """The :func:`prompt_key` of a row, or of what it was made from where an instruction was put into it."""
    changed = next((tag for tag in row.tags if tag.startswith(OPENING)), "")
    return changed.removeprefix(OPENING) or prompt_key(row.messages)
