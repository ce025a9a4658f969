"""Text in which control tokens are spelled out, read back into turns.

Other programs hand a dialogue on as one string: what a chat template writes, or what a tokenizer decodes without
leaving its control tokens out. ``render.parse`` is the same for ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignment.chat import spelling
from alignment.chat.render import HEADERS, SEPARATOR
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Message, Messages
from alignment.errors import UserError


def read(text: str, tokenizer: Tokenizer, prompt: str = "") -> Messages:
    """The turns of a spelled-out dialogue that ends with the assistant (a system message inside the first of them).

    Padding at either end is passed over, and a BOS may be missing, since a tokenizer may put it there later. The last
    answer may be closed as in any schema, cut off, or empty.

    Where ``text`` begins with ``prompt``, which ends with the header of the answer, all behind it is the answer: its
    text up to the first terminator, whatever else a policy may have drawn. :class:`UserError` for what is no such
    dialogue.
    """
    body, before = _bare(text, tokenizer), _bare(prompt, tokenizer)
    if not before or not body.startswith(before):
        before = body
    turns = _turns(before, tokenizer)
    if turns[-1].role != "assistant":
        raise _unreadable("it does not end with the model's turn")
    if before != body:
        if turns[-1].content:
            raise _unreadable("its prompt ends with an answer, not with the header of one")
        answer, _ = _divided(body[len(before) :], _closings(tokenizer))
        turns[-1] = Message("assistant", _plain(_without(answer, tokenizer.control_spellings), tokenizer))
    return tuple(turns)


def _turns(body: str, tokenizer: Tokenizer) -> list[Message]:
    start = tokenizer.spelling(tokenizer.start_of_turn_id)
    before, *parts = body.split(start)
    if before or not parts:
        raise _unreadable(f"it does not begin with {start}")
    return [_turn(part, number, tokenizer, last=number == len(parts)) for number, part in enumerate(parts, 1)]


def _turn(part: str, number: int, tokenizer: Tokenizer, *, last: bool) -> Message:
    """One turn: its header, its text, what closes it, and the separator from the next."""
    role = next((role for role, header in HEADERS.items() if part.startswith(header)), None)
    if role is None:
        raise _unreadable(f"turn {number} is neither the user's nor the model's")
    content, behind = _divided(part.removeprefix(HEADERS[role]), _closings(tokenizer))
    if not behind and not last:
        raise _unreadable(f"turn {number} is not closed")
    if _without(behind, (*_closings(tokenizer), SEPARATOR)):
        raise _unreadable(f"turn {number} goes on after it was closed")
    if any(name in content for name in tokenizer.control_spellings):
        raise _unreadable(f"a control token stands in the text of turn {number}")
    return Message(role, _plain(content, tokenizer))


def _bare(text: str, tokenizer: Tokenizer) -> str:
    """``text`` without padding at either end, and without BOS."""
    pad = re.escape(tokenizer.spelling(tokenizer.pad_id))
    return re.sub(rf"^(?:{pad})+|(?:{pad})+$", "", text).removeprefix(tokenizer.spelling(tokenizer.bos_id))


def _closings(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.spelling(tokenizer.end_of_turn_id), tokenizer.spelling(tokenizer.eos_id)]


def _divided(text: str, marks: Sequence[str]) -> tuple[str, str]:
    """What stands before the first of some marks, and the rest, which begins with it."""
    found = re.search("|".join(map(re.escape, marks)), text)
    return (text, "") if found is None else (text[: found.start()], text[found.start() :])


def _without(text: str, marks: Sequence[str]) -> str:
    return re.sub("|".join(map(re.escape, marks)), "", text)


def _plain(text: str, tokenizer: Tokenizer) -> str:
    """Text as it was before its control spellings were broken."""
    return spelling.whole(text, tokenizer.control_spellings)


def _unreadable(cause: str) -> UserError:
    return UserError("this text is not a conversation with its control tokens", cause=cause)
