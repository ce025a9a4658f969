"""How long the texts of a row are, and how many turns it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from alignment.chat.types import Text
from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.texts import answers_of, questions_of, texts_of, turns_of, words
from alignment.data.rows import Row
from alignment.settings import Settings, identity


class Options(Settings):
    """Bounds, each of which may be null. All are inclusive."""

    unit: Literal["characters", "words"] = identity("what is counted")
    question_min: int | None = identity("least length of every user turn", default=None, ge=1)
    question_max: int | None = identity("greatest length of any user turn", default=None, ge=1)
    answer_min: int | None = identity("least length of every answer", default=None, ge=1)
    answer_max: int | None = identity("greatest length of any answer", default=None, ge=1)
    text_min: int | None = identity("least length of a document", default=None, ge=1)
    text_max: int | None = identity("greatest length of any text at all, system messages included", default=None, ge=1)
    turns_max: int | None = identity("most turns, a system message not counted", default=None, ge=1)


def make(options: Options, against: Mapping[str, Sequence[Row]]) -> Judge:
    """Judge a row by its shortest and longest texts."""
    measure: Callable[[str], int] = len if options.unit == "characters" else lambda text: len(words(text))
    bounds: list[tuple[str, Callable[[Row], list[str]], int | None, int | None]] = [
        ("text", texts_of, None, options.text_max),
        ("text", lambda row: [row.text] if isinstance(row, Text) else [], options.text_min, None),
        ("question", questions_of, options.question_min, options.question_max),
        ("answer", answers_of, options.answer_min, options.answer_max),
    ]
    wanted = [bound for bound in bounds if bound[2:] != (None, None)]

    def judge(row: Row) -> Finding | None:
        turns = sum(turn.role != "system" for turn in turns_of(row))
        if options.turns_max is not None and turns > options.turns_max:
            return Finding("too many turns", f"{turns}, at most {options.turns_max}")
        for name, choose, least, greatest in wanted:
            for length in map(measure, choose(row)):
                if greatest is not None and length > greatest:
                    return Finding(f"{name} too long", f"{length:,} {options.unit}, at most {greatest:,}")
                if least is not None and length < least:
                    return Finding(f"{name} too short", f"{length:,} {options.unit}, at least {least:,}")
        return None

    return judge
