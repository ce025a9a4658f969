"""The texts of a row of any kind, and the words of a text, as all filters understand them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from alignment.chat.types import Comparison, Message, Messages, Prompt, Role, Text
from alignment.data.rows import Row
from alignment.errors import UserError

# Scripts that are written without spaces: Thai to Myanmar, Khmer, kana, Han. Each of their letters is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ASCII_WORD = re.compile("[a-z0-9]+")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text without case, punctuation and spacing: ``"It’s 1,5 °C"`` → ``it s 1 5 c``.

    A word is a run of letters and digits after Unicode's compatibility folding (NFKC) and case folding;
    in scripts without spaces every letter is one.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def texts_of(row: Row) -> list[str]:
    """Every text of a row in reading order; a comparison's two answers and a prompt's reference come last."""
    if isinstance(row, Text):
        return [row.text]
    spoken = [turn.content for turn in turns_of(row)]
    if isinstance(row, Comparison):
        return [*spoken, row.chosen, row.rejected]
    return [*spoken, row.reference] if isinstance(row, Prompt) and row.reference is not None else spoken


def answers_of(row: Row) -> list[str]:
    """What the assistant says: its turns, and both answers of a comparison. A document is none."""
    if isinstance(row, Text):
        return []
    spoken = _said_by("assistant", turns_of(row))
    return [*spoken, row.chosen, row.rejected] if isinstance(row, Comparison) else spoken


def questions_of(row: Row) -> list[str]:
    """What the user says."""
    return [] if isinstance(row, Text) else _said_by("user", turns_of(row))


def turns_of(row: Row) -> Messages:
    """The turns of a row; of a comparison those that both answers follow. A document has none."""
    if isinstance(row, Text):
        return ()
    return row.prompt if isinstance(row, Comparison) else row.messages


def mapped(row: Row, change: Callable[[str], str]) -> Row:
    """The row with every text of :func:`texts_of` changed."""
    if isinstance(row, Text):
        return replace(row, text=change(row.text))
    turns = tuple(Message(turn.role, change(turn.content)) for turn in turns_of(row))
    if isinstance(row, Comparison):
        return replace(row, prompt=turns, chosen=change(row.chosen), rejected=change(row.rejected))
    if isinstance(row, Prompt) and row.reference is not None:
        return replace(row, messages=turns, reference=change(row.reference))
    return replace(row, messages=turns)


@contextmanager
def library(name: str, needed_by: str) -> Iterator[None]:
    """Import inside of it: raises :class:`UserError` with the remedy where the library is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{needed_by}: the package {name} is not installed",
            cause=str(error),
            remedy='`pip install "alignment[data]"` brings it.',
        ) from None


def _said_by(role: Role, turns: Messages) -> list[str]:
    return [turn.content for turn in turns if turn.role == role]
