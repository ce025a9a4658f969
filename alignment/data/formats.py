"""What a raw row looks like: one function per declared format, in one table.

A format turns a raw row into candidates (chat types without an id). Most give one; a tree gives its
paths and a book its passages. What cannot become a row is a candidate too, with the reason, so that
nothing is lost between reading and the ledger. A raw row that does not have the declared shape at
all (a column missing, a list where a text belongs) is a :class:`DataError` with its ``file:line``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from alignment.chat.types import Conversation, Message, Messages, Prompt, Role, Text
from alignment.data import passages, trees
from alignment.data.rows import Candidate, Kind, Raw, Reading, none, one
from alignment.errors import DataError, nearest
from alignment.settings import Settings, identity


@dataclass(frozen=True, slots=True)
class Shape:
    """How a recipe's source fills in a format: the kind wanted, our column names → theirs, options."""

    kind: Kind
    columns: Mapping[str, str]
    options: Any


@dataclass(frozen=True, slots=True)
class Format:
    """A way to read raw rows. ``columns`` gives the columns to be mapped, by the kind of row wanted."""

    read: Callable[[Raw, Shape], Reading]
    columns: Mapping[Kind, tuple[str, ...]]
    optional: tuple[str, ...]
    options: type[Settings]


class NoOptions(Settings):
    """A format that has nothing to be set."""


class MessagesOptions(Settings):
    """Where a turn keeps its role and text, and what the roles are called."""

    role: str = identity("key of a turn that holds its role")
    content: str = identity("key of a turn that holds its text")
    roles: dict[str, Role] = identity("the source's name of a role → system, user or assistant")


class MarkedOptions(Settings):
    """The words that open a turn inside one text."""

    user: str = identity("opens a user's turn, such as '### Human:'", min_length=1)
    assistant: str = identity("opens an answer, such as '### Assistant:'", min_length=1)


class TreeOptions(Settings):
    """What is taken of a tree."""

    paths: Literal["best", "all"] = identity("best: one path along the best-ranked answers; all: every path")


class TextOptions(Settings):
    """How a document is cut."""

    gutenberg: bool = identity("take off Project Gutenberg's header and footer, which must be there")
    passage_chars: int | None = identity("least characters of a passage; null keeps documents whole", ge=1)


class WikitextOptions(Settings):
    """How an article is cut."""

    passage_chars: int | None = identity("least characters of a passage; null keeps articles whole", ge=1)


def chat(kind: Kind, turns: Messages) -> Conversation | Prompt:
    """Turns as the kind of row that is wanted."""
    return Conversation(turns, id="") if kind == "conversations" else Prompt(turns, id="")


def read_messages(raw: Raw, shape: Shape) -> Reading:
    """A list of turns, each with a role and a text: ``[{"role": "user", "content": "Hi"}, …]``."""
    options, column = shape.options, shape.columns["messages"]
    value = raw.column(column)
    if value is None:
        return none(f"no value in column {column!r}")
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DataError(
            raw.where,
            f"column {column!r} holds no list of turns: {str(value)[:60]!r}",
            remedy="Check the recipe's `format` and `columns`.",
        )
    turns = []
    for number, turn in enumerate(value):
        for key in (options.role, options.content):
            if key not in turn:
                raise DataError(
                    raw.where,
                    f"turn {number} has no {key!r}",
                    cause=f"It has {', '.join(sorted(turn))}.",
                    remedy="Name the keys in the source's options `role` and `content`.",
                )
        role, content = turn[options.role], turn[options.content]
        if role not in options.roles:
            raise DataError(
                raw.where,
                f"turn {number} has the role {role!r}",
                cause="The recipe does not map it.",
                remedy=nearest(str(role), list(options.roles)),
            )
        if content is not None and not isinstance(content, str):
            raise DataError(
                raw.where,
                f"turn {number} holds {type(content).__name__}, not text",
                remedy="Turns with images or tool calls are not supported.",
            )
        turns.append(Message(options.roles[role], content or ""))
    return one(chat(shape.kind, tuple(turns)))


def read_prompt_completion(raw: Raw, shape: Shape) -> Reading:
    """A question in one column, its answer in another; for prompts the question alone."""
    roles: dict[str, Role] = {"prompt": "user", "completion": "assistant"}
    turns = []
    for name, role in roles.items():
        if name in shape.columns:
            content = raw.text(shape.columns[name])
            if content is None:
                return none(f"no value in column {shape.columns[name]!r}")
            turns.append(Message(role, content))
    return one(chat(shape.kind, tuple(turns)))


def read_human_assistant(raw: Raw, shape: Shape) -> Reading:
    """One text with marked turns, ``### Human: … ### Assistant: …``; the last answer may be a column of its own.

    A marker counts at the start of the text and after white space, and the white space around it
    belongs to it. An empty marked answer at the
    end is a generation prompt: the column ``answer`` fills it, and for prompts it is left out.
    """
    text = raw.text(shape.columns["text"])
    answer = raw.text(shape.columns["answer"]) if "answer" in shape.columns else ""
    if text is None or answer is None:
        return none(f"no value in column {shape.columns['text' if text is None else 'answer']!r}")
    roles: dict[str, Role] = {shape.options.user: "user", shape.options.assistant: "assistant"}
    markers = "|".join(re.escape(marker) for marker in roles)
    before, *marked = re.split(rf"(?:^|(?<=\s))({markers})", text)
    if not marked:
        return none(f"no turn opens with {shape.options.user!r}")
    if before.strip():
        return none("text before the first turn")
    turns = [Message(roles[marker], content.strip()) for marker, content in zip(marked[::2], marked[1::2], strict=True)]
    opened = turns[-1].role == "assistant" and not turns[-1].content
    if opened and ("answer" in shape.columns or shape.kind == "prompts"):
        turns.pop()
    if "answer" in shape.columns and shape.kind == "conversations":
        turns.append(Message("assistant", answer))
    return one(chat(shape.kind, tuple(turns)))


def read_oasst_trees(raw: Raw, shape: Shape) -> Reading:
    """An Open-Assistant message tree, as the project exports them."""
    found = trees.paths(raw, best=shape.options.paths == "best", ends_with=trees.ENDS[shape.kind])
    return Reading(
        [Candidate(chat(shape.kind, path.turns), path.dropped) for path in found.paths], changed=found.left_out
    )


def read_text(raw: Raw, shape: Shape) -> Reading:
    """A document, whole or in passages."""
    text = raw.text(shape.columns["text"])
    if text is None:
        return none(f"no value in column {shape.columns['text']!r}")
    start, changed = 1, ""
    if shape.options.gutenberg:
        text, start, changed = passages.strip_gutenberg(text, raw.where)
    return _documents(raw, [passages.Part(text, start)], passages.paragraphs, shape.options.passage_chars, changed)


def read_wikitext(raw: Raw, shape: Shape) -> Reading:
    """A WikiText file: articles that open with `` = Title = ``, each whole or in passages of whole lines."""
    text = raw.text(shape.columns["text"])
    if text is None:
        return none(f"no value in column {shape.columns['text']!r}")
    return _documents(raw, passages.articles(text, raw.where), passages.lines, shape.options.passage_chars, "")


def _documents(
    raw: Raw,
    documents: list[passages.Part],
    cut: Callable[[passages.Part], list[passages.Part]],
    passage_chars: int | None,
    changed: str,
) -> Reading:
    parts = (
        documents
        if passage_chars is None
        else [passage for document in documents for passage in passages.group(cut(document), passage_chars)]
    )
    # A file read whole is one raw row, and its parts have lines of their own; a row of a table has not.
    at = [raw.line + part.line - 1 if raw.whole_file else None for part in parts]
    return Reading(
        [Candidate(Text(part.text.strip("\n"), id=""), line=line) for part, line in zip(parts, at, strict=True)],
        changed,
    )


def read_miniature(raw: Raw, shape: Shape) -> Reading:
    """A row of the miniature world, which is a chat type already."""
    return one(raw.value)


FORMATS: dict[str, Format] = {
    "messages": Format(read_messages, {"conversations": ("messages",), "prompts": ("messages",)}, (), MessagesOptions),
    "prompt_completion": Format(
        read_prompt_completion, {"conversations": ("prompt", "completion"), "prompts": ("prompt",)}, (), NoOptions
    ),
    "human_assistant": Format(
        read_human_assistant, {"conversations": ("text",), "prompts": ("text",)}, ("answer",), MarkedOptions
    ),
    "oasst_trees": Format(read_oasst_trees, {"conversations": (), "prompts": ()}, (), TreeOptions),
    "text": Format(read_text, {"text": ("text",)}, (), TextOptions),
    "wikitext": Format(read_wikitext, {"text": ("text",)}, (), WikitextOptions),
    "miniature": Format(read_miniature, dict.fromkeys(get_args(Kind), ()), (), NoOptions),
}
"""By the name that a recipe declares."""
