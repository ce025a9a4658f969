"""Turns written out as text, for models that know no chat."""

from __future__ import annotations

from typing import NamedTuple

from alignment.chat.spelling import broken
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Messages


class Transcript(NamedTuple):
    """What stands before the words of each side, at the beginning of a line: ``Question:`` and ``Answer:``."""

    user: str
    assistant: str

    def written(self, turns: Messages) -> str:
        """The turns as text, up to where the answer begins; a blank line stands before each of the user's."""
        text = ""
        for turn in turns:
            if turn.role == "assistant":
                text += f"\n{self.assistant} {turn.content}"
            else:
                text += "\n\n" * bool(text) + (f"{self.user} " if turn.role == "user" else "") + turn.content
        return f"{text}\n{self.assistant}"


def encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of text in which no control token can be spelled."""
    return tokenizer.encode(broken(text, tokenizer.control_spellings))
