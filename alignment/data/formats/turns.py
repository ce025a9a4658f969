"""Turns, as sources hold them: lists of messages, and texts in which words mark where a turn opens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from alignment.chat.types import Message, Messages, Role
from alignment.data.formats.shape import Shape, chat
from alignment.data.rows import Candidate, Raw, Reading, one
from alignment.errors import DataError, nearest
from alignment.settings import Settings, identity

ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


class TurnsOptions(Settings):
    """What becomes of a dialogue's turns."""

    prompts: Literal["first", "every"] | None = identity(
        "for prompts: first is the opening question alone, every is each question with the turns before it; "
        "null takes all turns, which then have to end with a question",
        default=None,
    )
    unanswered: Literal["cut"] | None = identity(
        "for conversations: cut leaves out a last question that has no answer; null drops such a conversation",
        default=None,
    )


class Markers(Settings):
    """The words that open a turn inside one text.

    A marker counts at the start of the text and after white space. One that begins with white space itself,
    such as ``"\\n\\nHuman:"``, counts only where it is spelled like this, or without it at the start of the text.
    """

    user: str = identity("opens a user's turn, such as '### Human:'", min_length=1)
    assistant: str = identity("opens an answer, such as '### Assistant:'", min_length=1)


def read_dialogue(raw: Raw, shape: Shape, turns: Messages) -> Reading:
    """A whole dialogue as the rows that are wanted of it, by its :class:`TurnsOptions`."""
    options = shape.options
    if shape.kind == "conversations":
        answered = any(turn.role == "assistant" for turn in turns)
        if options.unanswered == "cut" and answered and turns[-1].role == "user":
            return Reading([Candidate(chat(raw, shape, turns[:-1]))], "last question, which has no answer, cut")
        return one(chat(raw, shape, turns))
    questions = [number for number, turn in enumerate(turns, 1) if turn.role == "user"]
    if options.prompts is None or not questions:
        return one(chat(raw, shape, turns))
    wanted = questions[:1] if options.prompts == "first" else questions
    return Reading([Candidate(chat(raw, shape, turns[:end])) for end in wanted])


def turns_of(raw: Raw, column: str, value: Any, *, role: str, content: str, roles: Mapping[str, Role]) -> Messages:
    """A list of turns, each with the keys ``role`` and ``content``. Raises :class:`DataError` for anything else."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DataError(
            raw.where,
            f"column {column!r} holds no list of turns: {str(value)[:60]!r}",
            remedy="Check the recipe's `format` and `columns`.",
        )
    return tuple(_turn(raw, number, turn, role, content, roles) for number, turn in enumerate(value))


def _turn(
    raw: Raw, number: int, turn: Mapping[str, Any], role: str, content: str, roles: Mapping[str, Role]
) -> Message:
    for key in (role, content):
        if key not in turn:
            raise DataError(
                raw.where,
                f"turn {number} has no {key!r}",
                cause=f"It has {', '.join(sorted(turn))}.",
                remedy="Name the keys in the source's options, where the format has them, or declare another format.",
            )
    speaker, said = turn[role], turn[content]
    if speaker not in roles:
        raise DataError(
            raw.where,
            f"turn {number} has the role {speaker!r}",
            cause="It is none that the format or the recipe maps.",
            remedy=nearest(str(speaker), list(roles)),
        )
    if said is not None and not isinstance(said, str):
        raise DataError(
            raw.where,
            f"turn {number} holds {type(said).__name__}, not text",
            remedy="Turns with images or tool calls are not supported.",
        )
    return Message(roles[speaker], said or "")


def marked(text: str, markers: Markers) -> tuple[str, list[Message]]:
    """What stands before the first marker, and the turns after it; the white space around a turn is not its own."""
    found = list(_pattern(markers).finditer(text))
    if not found:
        return text, []
    ends = [*(match.start() for match in found[1:]), len(text)]
    turns = [
        Message("user" if match.lastgroup == "user" else "assistant", text[match.end() : end].strip())
        for match, end in zip(found, ends, strict=True)
    ]
    return text[: found[0].start()], turns


def _pattern(markers: Markers) -> re.Pattern[str]:
    def spelled(marker: str) -> str:
        bare = marker.lstrip()
        if bare == marker:
            return rf"(?:\A|(?<=\s)){re.escape(marker)}"
        return rf"{re.escape(marker)}|\A\s*{re.escape(bare)}"

    return re.compile(rf"(?P<user>{spelled(markers.user)})|(?P<assistant>{spelled(markers.assistant)})")


def prompt_of(raw: Raw, column: str, markers: Markers | None) -> Messages | None:
    """The prompt of a comparison: a list of ``{"role", "content"}`` turns, or a text; None where it is null.

    A text is one question, or with ``markers`` turns of which the first need not be marked: it is the user's.
    """
    value = raw.column(column)
    if isinstance(value, list):
        return turns_of(raw, column, value, role="role", content="content", roles=ROLES)
    text = raw.text(column)
    if text is None:
        return None
    if markers is None:
        return (Message("user", text),)
    before, turns = marked(text, markers)
    opening = [Message("user", before.strip())] if before.strip() else []
    return (*opening, *turns)


def without_last_answer(turns: Sequence[Message]) -> tuple[Messages, str] | None:
    """A dialogue as its history and its last answer; None where it does not end with an answer."""
    if not turns or turns[-1].role != "assistant":
        return None
    return tuple(turns[:-1]), turns[-1].content
