"""Broken turns: answers that go on as the user, foreign control tokens, code that is not closed, echoes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from alignment.chat.types import Comparison
from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.texts import answers_of, texts_of, turns_of
from alignment.data.rows import Row
from alignment.settings import Settings, identity

MIN_WORDS = 5
"""Shorter answers may echo a greeting, or be a name without a full stop."""

_ENDS = tuple(".!?…。！？।:;)]}>\"'”’»*`_|~")
"""What a finished answer may end with, beside emoji and other signs that are no letters."""


class Options(Settings):
    """What counts as broken."""

    markers: list[str] = identity("openings of a turn that must not start a line of an answer: 'Human:', '### Human'")
    tokens: list[str] = identity(
        "control tokens of other models that must not stand in any text: '<|im_end|>', '[INST]'"
    )
    unclosed_code: bool = identity("an answer opens a ``` block and does not close it")
    cut_off: bool = identity("the last answer, of five words or more, ends in a letter or a comma")
    echo: bool = identity("an answer of five words or more says what its question says")


def make(options: Options, against: Mapping[str, Sequence[Row]]) -> Judge:
    """Judge a row; the first thing that is broken is reported."""
    token = _any_of(options.tokens) if options.tokens else None
    marker = re.compile(rf"(?mi)^[ \t]*(?:\*\*)?(?:{_any_of(options.markers).pattern})") if options.markers else None

    def judge(row: Row) -> Finding | None:
        if token:
            for text in texts_of(row):
                if match := token.search(text):
                    return Finding("control token in a text", f"{match[0]!r}")
        for answer in answers_of(row):
            if marker and (match := marker.search(answer)):
                return Finding("answer goes on as the user", f"{match[0].strip()!r} at {match.start()}")
            if options.unclosed_code and len(re.findall(r"(?m)^[ \t]*```", answer)) % 2:
                return Finding("unclosed code block")
        if options.echo and any(_same(question, answer) for question, answer in _exchanges(row)):
            return Finding("answer repeats the question")
        if options.cut_off:
            for answer in _last_answers(row):
                if _is_cut_off(answer):
                    return Finding("answer cut off", f"ends with {answer.rstrip()[-20:]!r}")
        return None

    return judge


def _any_of(spellings: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True)))


def _exchanges(row: Row) -> Iterator[tuple[str, str]]:
    """Every question with its answer."""
    turns = turns_of(row)
    for asked, said in pairwise(turns):
        if (asked.role, said.role) == ("user", "assistant"):
            yield asked.content, said.content
    if isinstance(row, Comparison) and turns and turns[-1].role == "user":
        yield turns[-1].content, row.chosen
        yield turns[-1].content, row.rejected


def _last_answers(row: Row) -> list[str]:
    """The answers that end a row; a prompt's earlier ones were answered by the user and so were whole."""
    if isinstance(row, Comparison):
        return [row.chosen, row.rejected]
    turns = turns_of(row)
    return [turns[-1].content] if turns and turns[-1].role == "assistant" else []


def _same(question: str, answer: str) -> bool:
    said = answer.casefold().split()
    return len(said) >= MIN_WORDS and said == question.casefold().split()


def _is_cut_off(answer: str) -> bool:
    ended = answer.rstrip()
    return len(ended.split()) >= MIN_WORDS and not ended.endswith(_ENDS) and (ended[-1].isalpha() or ended[-1] == ",")
