"""Formats of conversations, and of prompts: what is asked, without the answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from alignment.chat.types import Message, Prompt, Role
from alignment.data import trees
from alignment.data.formats.shape import Shape, chat
from alignment.data.formats.turns import Markers, TurnsOptions, marked, read_dialogue, turns_of
from alignment.data.rows import Candidate, Raw, Reading, none, one
from alignment.errors import DataError
from alignment.settings import Settings, identity

_SHAREGPT: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


class MessagesOptions(TurnsOptions):
    """Where a turn keeps its role and text, and what the roles are called."""

    role: str = identity("key of a turn that holds its role")
    content: str = identity("key of a turn that holds its text")
    roles: dict[str, Role] = identity("the source's name of a role → system, user or assistant")


class ExchangesOptions(TurnsOptions):
    """Where an exchange keeps its question and its answer."""

    user: str = identity("key of an exchange that holds the question")
    assistant: str = identity("key of an exchange that holds the answer")


class MarkedOptions(TurnsOptions, Markers):
    """A dialogue inside one text."""


class QuestionOptions(Settings):
    """How a question's reference answer is read."""

    reference_after: str | None = identity(
        "for prompts: the reference is what follows the last of these words in its column, as in '####' of GSM8K; "
        "null takes all of it",
        default=None,
        min_length=1,
    )


class TreeOptions(Settings):
    """What is taken of a tree."""

    paths: Literal["best", "all"] = identity("best: one path along the best-ranked answers; all: every path")


def read_messages(raw: Raw, shape: Shape) -> Reading:
    """A list of turns, each with a role and a text: ``[{"role": "user", "content": "Hi"}, …]``."""
    options, column = shape.options, shape.columns["messages"]
    value = raw.column(column)
    if value is None:
        return none(f"no value in column {column!r}")
    turns = turns_of(raw, column, value, role=options.role, content=options.content, roles=options.roles)
    return read_dialogue(raw, shape, turns)


def read_sharegpt(raw: Raw, shape: Shape) -> Reading:
    """A list of ShareGPT's turns: ``[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]``."""
    column = shape.columns["messages"]
    value = raw.column(column)
    if value is None:
        return none(f"no value in column {column!r}")
    return read_dialogue(raw, shape, turns_of(raw, column, value, role="from", content="value", roles=_SHAREGPT))


def read_exchanges(raw: Raw, shape: Shape) -> Reading:
    """A list of questions with their answers: ``[{"user": "Hi", "bot": "Hello"}, …]``."""
    options, column = shape.options, shape.columns["exchanges"]
    value = raw.column(column)
    if value is None:
        return none(f"no value in column {column!r}")
    if not isinstance(value, list) or not all(isinstance(exchange, dict) for exchange in value):
        raise DataError(
            raw.where,
            f"column {column!r} holds no list of exchanges: {str(value)[:60]!r}",
            remedy="Check the recipe's `format` and `columns`.",
        )
    turns = []
    for number, exchange in enumerate(value):
        keys: dict[str, Role] = {options.user: "user", options.assistant: "assistant"}
        for key, role in keys.items():
            if key not in exchange or not isinstance(exchange[key], str | None):
                raise DataError(
                    raw.where,
                    f"exchange {number} has no text under {key!r}",
                    cause=f"It has {', '.join(sorted(exchange))}.",
                    remedy="Name the keys in the source's options `user` and `assistant`.",
                )
            turns.append(Message(role, exchange[key] or ""))
    return read_dialogue(raw, shape, tuple(turns))


def read_prompt_completion(raw: Raw, shape: Shape) -> Reading:
    """A question in one column, its answer in another; for prompts the question alone."""
    roles: dict[str, Role] = {"system": "system", "prompt": "user", "completion": "assistant"}
    turns = []
    for name, role in roles.items():
        if name in shape.columns:
            content = raw.text(shape.columns[name])
            if content is None and name != "system":
                return none(f"no value in column {shape.columns[name]!r}")
            if name != "system" or content:
                turns.append(Message(role, content or ""))
    return _answered(one(chat(raw, shape, tuple(turns))), shape)


def _answered(reading: Reading, shape: Shape) -> Reading:
    """A prompt whose reference is cut to what follows the words that announce the answer."""
    (candidate,) = reading.candidates
    row, words = candidate.row, shape.options.reference_after
    if words is None or not isinstance(row, Prompt) or row.reference is None:
        return reading
    _, found, answer = row.reference.rpartition(words)
    return one(replace(row, reference=answer.strip())) if found else none(f"no {words!r} in the reference")


def read_instruction(raw: Raw, shape: Shape) -> Reading:
    """An instruction, the input that it is about, and the response; an input follows after a blank line."""
    parts = []
    for name in ("instruction", "input", "response"):
        content = raw.text(shape.columns[name]) if name in shape.columns else ""
        if content is None and name != "input":
            return none(f"no value in column {shape.columns[name]!r}")
        parts.append(content or "")
    instruction, about, response = parts
    turns = [Message("user", f"{instruction}\n\n{about}" if about.strip() else instruction)]
    if "response" in shape.columns:
        turns.append(Message("assistant", response))
    return one(chat(raw, shape, tuple(turns)))


def read_human_assistant(raw: Raw, shape: Shape) -> Reading:
    """One text with marked turns, ``### Human: … ### Assistant: …``; the last answer may be a column of its own.

    The options say how turns are marked (:class:`Markers`). An empty marked answer at the end is a generation
    prompt: the column ``answer`` fills it, and for prompts it is left out. A column ``system`` comes first.
    """
    texts = {name: raw.text(shape.columns[name]) for name in ("text", "answer") if name in shape.columns}
    for name, value in texts.items():
        if value is None:
            return none(f"no value in column {shape.columns[name]!r}")
    before, turns = marked(texts["text"] or "", shape.options)
    if not turns:
        return none(f"no turn opens with {shape.options.user!r}")
    if before.strip():
        return none("text before the first turn")
    opened = turns[-1].role == "assistant" and not turns[-1].content
    if opened and ("answer" in texts or shape.kind == "prompts"):
        turns.pop()
    if "answer" in texts and shape.kind == "conversations":
        turns.append(Message("assistant", texts["answer"] or ""))
    if system := raw.text(shape.columns["system"]) if "system" in shape.columns else "":
        turns.insert(0, Message("system", system))
    return read_dialogue(raw, shape, tuple(turns))


def read_oasst_trees(raw: Raw, shape: Shape) -> Reading:
    """An Open-Assistant message tree, as the project exports it, or its flat messages joined by ``group``."""
    found = trees.paths(raw, best=shape.options.paths == "best", ends_with=trees.ENDS[shape.kind])
    return Reading(
        [Candidate(chat(raw, shape, path.turns), path.dropped) for path in found.paths], changed=found.left_out
    )
