"""Conversations to ids with a loss mask, and back. The one place that says which token is trained.

A turn is a header, which is always seen, and an output, which the assistant generates: its text and what closes it.

    <bos><start_of_turn>user\\n  What is 2+2?  <end_of_turn>  \\n<start_of_turn>model\\n  4  <end_of_turn><eos>
    header                      output                       header                     output, trained

Header, text and closing are encoded apart, so that a prompt is a prefix of every rendering that answers it. Text is
kept as it is; control spellings in it are broken (``spelling.py``). Gemma has no system role: a system message becomes
the head of the first user turn, a blank line between (ai.google.dev/gemma/docs/formatting).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from alignment.chat import spelling
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Message, Messages, Role, Train
from alignment.errors import UserError, nearest

HEADERS: dict[Role, str] = {"user": "user\n", "assistant": "model\n"}
SEPARATOR = "\n"
Closing = Literal["end_of_turn", "eos"]


@dataclass(frozen=True, slots=True)
class Schema:
    """How the last answer of a conversation closes. All turns before it close with ``<end_of_turn>``."""

    name: str
    last: tuple[Closing, ...]


SCHEMAS: dict[str, Schema] = {
    # The Gemma 2 report's remark on Gemma 1: "previously only <eos>".
    "gemma1": Schema("gemma1", ("eos",)),
    # Gemma 1's own Table 4 closes the model's turn like the user's.
    "gemma1_table4": Schema("gemma1_table4", ("end_of_turn",)),
    # Gemma 2 report, §4: "the model explicitly ends generations with <end_of_turn><eos>".
    "gemma2": Schema("gemma2", ("end_of_turn", "eos")),
}


class Rendered(NamedTuple):
    """``ids`` and, for each, whether it carries loss. Exactly one BOS, the first id."""

    ids: list[int]
    mask: list[bool]


class _Frame(NamedTuple):
    """Ids of everything that is not content, for one tokenizer."""

    headers: dict[Role, list[int]]
    separator: list[int]
    closings: dict[Closing, int]


@lru_cache(maxsize=16)
def _frame(tokenizer: Tokenizer) -> _Frame:
    headers = {role: [tokenizer.start_of_turn_id, *tokenizer.encode(text)] for role, text in HEADERS.items()}
    closings: dict[Closing, int] = {"end_of_turn": tokenizer.end_of_turn_id, "eos": tokenizer.eos_id}
    return _Frame(headers, tokenizer.encode(SEPARATOR), closings)


def schema_named(name: str) -> Schema:
    """The schema of that name; UserError where there is none."""
    if name not in SCHEMAS:
        raise UserError(f"there is no chat schema {name!r}", remedy=nearest(name, tuple(SCHEMAS)))
    return SCHEMAS[name]


def render(turns: Sequence[Message], tokenizer: Tokenizer, schema: str = "gemma2", train: Train = "all") -> Rendered:
    """A conversation that ends with the assistant, for training.

    ``train`` says which answers carry loss: ``all``, the ``last`` (Ghost Attention), or ``none``. An answer's loss
    covers its text and what closes it. UserError for turns that ``check_turns`` refuses.
    """
    check_turns(turns, ends_with="assistant")
    last = schema_named(schema).last
    frame = _frame(tokenizer)
    folded = fold_system(turns)
    contents = _encoded(folded, tokenizer)
    ids, mask = [tokenizer.bos_id], [False]
    for position, (turn, content) in enumerate(zip(folded, contents, strict=True)):
        final = position == len(folded) - 1
        head = frame.headers[turn.role] if position == 0 else frame.separator + frame.headers[turn.role]
        output = content + [frame.closings[name] for name in (last if final else ("end_of_turn",))]
        ids += head + output
        mask += [False] * len(head) + [_trained(turn, train, final)] * len(output)
    return Rendered(ids, mask)


def _trained(turn: Message, train: Train, final: bool) -> bool:
    return turn.role == "assistant" and (train == "all" or (train == "last" and final))


def prompt_ids(turns: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """A history that ends with the user, and the header of the answer to come. The same in every schema."""
    check_turns(turns, ends_with="user")
    frame = _frame(tokenizer)
    folded = fold_system(turns)
    ids = [tokenizer.bos_id]
    for turn, content in zip(folded, _encoded(folded, tokenizer), strict=True):
        ids += [*frame.headers[turn.role], *content, tokenizer.end_of_turn_id, *frame.separator]
    return ids + frame.headers["assistant"]


def answer_ids(answer: str, tokenizer: Tokenizer, schema: str = "gemma2") -> list[int]:
    """An answer and what closes it at the end of a conversation; an empty one is what closes it.

    Behind the :func:`prompt_ids` of its history it is what :func:`render` gives.
    """
    last = schema_named(schema).last
    (content,) = _encoded((Message("assistant", answer),), tokenizer)
    return content + [_frame(tokenizer).closings[name] for name in last]


def continue_ids(prompt: Sequence[int], answer: Sequence[int], user: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt of the next turn after an answer that was drawn, keeping the ids that were drawn.

    However the answer ended (``<end_of_turn><eos>``, ``<eos>``, or cut off), its turn closes with one
    ``<end_of_turn>`` (Gemma 2 report, §4: remove ``<eos>``, add the next user turn).
    """
    frame = _frame(tokenizer)
    (content,) = _encoded((Message("user", user),), tokenizer)
    turn = [*frame.separator, *frame.headers["user"], *content, tokenizer.end_of_turn_id, *frame.separator]
    spoken = _spoken(answer, tokenizer)
    return [*prompt, *spoken, tokenizer.end_of_turn_id, *turn, *frame.headers["assistant"]]


def parse(ids: Sequence[int], tokenizer: Tokenizer) -> Messages:
    """The turns that ``render`` or ``prompt_ids`` was given (a system message inside the first of them).

    A last turn that is cut off is returned as far as it goes, the bare header of an answer to come not at all.
    UserError for ids that no conversation gives.
    """
    if not ids or ids[0] != tokenizer.bos_id or tokenizer.bos_id in ids[1:]:
        raise _unparsable("a conversation begins with <bos>, and has no other")
    frame = _frame(tokenizer)
    starts = [index for index, value in enumerate(ids) if value == tokenizer.start_of_turn_id]
    found: list[Message] = []
    ends = [*starts, len(ids)][1:]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        part = list(ids[start:end])
        role = next((role for role, head in frame.headers.items() if part[: len(head)] == head), None)
        if role is None:
            raise _unparsable(f"turn {number + 1} is neither the user's nor the model's")
        body = part[len(frame.headers[role]) :]
        if end == len(ids) and role == "assistant" and not body:
            break
        found.append(Message(role, answer_text(body, tokenizer)))
    if not found:
        raise _unparsable("there is no turn in it")
    return tuple(found)


def answer_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """What a drawn answer says: its text up to the first terminator."""
    return spelling.whole(tokenizer.decode(_spoken(ids, tokenizer)), tokenizer.control_spellings)


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer, in every schema: ``<eos>`` and ``<end_of_turn>``."""
    return (tokenizer.eos_id, tokenizer.end_of_turn_id)


def fold_system(turns: Sequence[Message]) -> Messages:
    """The turns as Gemma sees them: a system message becomes the head of the first user turn."""
    if turns[0].role != "system":
        return tuple(turns)
    return (Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:])


def check_turns(turns: Sequence[Message], ends_with: Literal["assistant", "user"] = "assistant") -> None:
    """UserError unless turns alternate from the user on (after at most one system message) and end as asked.

    An empty answer is refused: it would teach the model to say nothing. An empty user message is not.
    """
    roles = [turn.role for turn in turns]
    shown = " → ".join(roles) or "no turns"
    unknown = [role for role in roles if role not in ("system", "user", "assistant")]
    if unknown:
        raise UserError(
            f"the role {unknown[0]!r} is unknown", remedy=nearest(unknown[0], ("system", "user", "assistant"))
        )
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken:
        raise UserError(f"a conversation has {shown}", cause="there is nothing to answer", remedy="Give a user turn.")
    if spoken[0] != "user":
        raise UserError(
            f"turns must begin with the user: {shown}", remedy="Drop what comes before the first user turn."
        )
    for position, role in enumerate(spoken):
        if role != ("user", "assistant")[position % 2]:
            raise UserError(
                f"turns must alternate between user and assistant: {shown}",
                cause=f"turn {position + 1} is {role}",
                remedy="Join or drop turns of the same role; a system message may only come first.",
            )
    if spoken[-1] != ends_with:
        raise UserError(
            f"turns end with {spoken[-1]}, not {ends_with}: {shown}",
            cause="a conversation to learn from ends with an answer, a prompt with the user",
            remedy="Drop the last turn." if len(spoken) > 1 else "",
        )
    for position, turn in enumerate(turns):
        if turn.role == "assistant" and not turn.content:
            raise UserError(f"the answer in turn {position + 1} is empty", cause=shown, remedy="Drop the conversation.")


def _encoded(turns: Sequence[Message], tokenizer: Tokenizer) -> list[list[int]]:
    names = tokenizer.control_spellings
    return tokenizer.encode_many([spelling.broken(turn.content, names) for turn in turns])


def _spoken(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Ids up to the first terminator."""
    stops = stop_ids(tokenizer)
    end = next((position for position, value in enumerate(ids) if value in stops), len(ids))
    return list(ids[:end])


def _unparsable(cause: str) -> UserError:
    return UserError("these ids are not a conversation", cause=cause)
