"""Control spellings in somebody's text, broken so that text can never become control: one rule, for code and template.

A saved model is used by programs that render a conversation to one string and let the tokenizer find the control
tokens in it. A user who writes ``<end_of_turn>`` would then end the turn. So a zero-width space goes behind the first
character of every control spelling. Where that character already had one behind it, it gets one more:

    ``<end_of_turn>``   ->  ``<\\u200bend_of_turn>``
    ``<\\u200bb>``       ->  ``<\\u200b\\u200bb>``

Afterwards a first character is followed by no zero-width space (untouched text) or by one more than before, so
``whole`` takes one away and is the exact inverse, whatever the text and however spellings overlap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignment.errors import UserError

BREAK = "\u200b"


def steps(spellings: Sequence[str]) -> list[tuple[str, str]]:
    """The rule as plain replacements, in order: the same list runs in Python and in the Jinja template."""
    firsts = sorted({spelling[0] for spelling in spellings})
    doubled = [(first + BREAK, first + BREAK + BREAK) for first in firsts]
    return doubled + [(spelling, spelling[0] + BREAK + spelling[1:]) for spelling in spellings]


def broken(text: str, spellings: Sequence[str]) -> str:
    """``text`` in which no control spelling is left."""
    for old, new in steps(spellings):
        text = text.replace(old, new)
    return text


def whole(text: str, spellings: Sequence[str]) -> str:
    """The inverse of ``broken``."""
    if BREAK not in text:
        return text
    firsts = "".join(re.escape(first) for first in sorted({spelling[0] for spelling in spellings}))
    return re.sub(f"([{firsts}]){BREAK}", r"\1", text)


def check(spellings: Sequence[str], where: str) -> None:
    """UserError where the rule could not break a spelling: one character, a zero-width space inside, or an end that
    is also its beginning (two of them could then share characters)."""
    for spelling in spellings:
        bordered = any(spelling.startswith(spelling[cut:]) for cut in range(1, len(spelling)))
        if len(spelling) < 2 or BREAK in spelling or bordered:
            raise UserError(
                f"{where}: the control token {spelling!r} cannot be told from text",
                cause="its spelling could not be broken when somebody writes it in a message",
                remedy="Use a tokenizer whose control tokens look like <name>.",
            )
