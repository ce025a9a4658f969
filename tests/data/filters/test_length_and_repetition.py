"""Texts that are too long, too short, or say the same again."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.chat.types import Comparison, Conversation, Text, messages
from alignment.data.filters.repetition import repeated_lines, repeated_ngrams
from alignment.data.filters.texts import words

from . import real
from .options import make, talk

NO_BOUNDS = {"question_min": None, "answer_min": None, "text_max": None, "turns_max": None}


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        ({"answer_min": 6}, "answer too short"),
        ({"answer_max": 4}, "answer too long"),
        ({"question_min": 4}, "question too short"),
        ({"question_max": 2}, "question too long"),
        ({"text_max": 4}, "text too long"),
    ],
)
def test_bounds_are_inclusive(bound: dict[str, int], reason: str) -> None:
    row = talk("abc", "abcde")
    finding = make("length", **NO_BOUNDS | bound)(row)
    assert finding is not None
    assert finding.reason == reason
    name, value = next(iter(bound.items()))
    nearer = {name: value - 1 if name.endswith("min") else value + 1}
    assert make("length", **NO_BOUNDS | nearer)(row) is None


def test_words_are_counted_in_every_script() -> None:
    judge = make("length", **NO_BOUNDS | {"unit": "words", "answer_max": 5})
    assert judge(talk("?", "One, two; three - four (five)!")) is None
    assert judge(talk("?", "One two three four five six")) is not None
    assert judge(talk("?", "私は学生です")) is not None
    assert words("It’s ＦＵＬＬ width, naïve_Ünïcode 3.5") == ["it", "s", "full", "width", "naïve", "ünïcode", "3", "5"]


def test_turns_and_both_answers_of_a_comparison() -> None:
    turns = messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    assert make("length", **NO_BOUNDS | {"turns_max": 3})(Conversation(turns, "c")) is None
    finding = make("length", **NO_BOUNDS | {"turns_max": 2})(Conversation(turns, "c"))
    assert finding is not None
    assert (finding.reason, finding.detail) == ("too many turns", "3, at most 2")
    pair = Comparison(turns, "short", "a longer one", "better", "s", "c")
    assert make("length", **NO_BOUNDS | {"answer_max": 6})(pair) is not None


def test_documents_have_bounds_of_their_own() -> None:
    assert make("length", **NO_BOUNDS | {"text_min": 4})(Text("abc", "t")) is not None
    assert make("length", **NO_BOUNDS | {"answer_min": 4, "question_min": 4})(Text("abc", "t")) is None


def test_repeated_ngrams_by_hand() -> None:
    # a b c a b c: of the six letters, the second `a b` and then `c` repeat the 2-grams `a b` and `b c`.
    assert repeated_ngrams(list("abcabc"), 2) == 3 / 6
    assert repeated_ngrams(["long", "word", "x", "long", "word"], 2) == 8 / 17
    assert repeated_ngrams(list("aaaa"), 2) == 3 / 4
    assert repeated_ngrams(list("abcdef"), 2) == 0
    assert repeated_ngrams(list("ab"), 3) == 0


def test_repeated_lines_by_hand() -> None:
    assert repeated_lines("abcd\n\nxy\n  abcd\n\n") == 4 / 10
    assert repeated_lines("") == 0


def test_repetition_finds_loops_and_leaves_prose(shared_data: Path) -> None:
    judge = make("repetition")
    assert judge(talk("?", "Yes, of course I can help you with that today. " * 20)).reason == "repeated 8-grams"  # type: ignore[union-attr]
    # Lines that count up repeat no phrase of eight words, and the line between them stands alone.
    song = "".join(f"{bottles} bottles of beer\nTake one down and pass it around\n" for bottles in range(40, 20, -1))
    assert judge(talk("?", song)).reason == "repeated lines"  # type: ignore[union-attr]
    assert judge(talk("?", "No" + "o" * 300)).reason == "repeated character"  # type: ignore[union-attr]
    assert judge(talk("Yes, of course I can help you with that today. " * 20, "Fine.")) is None
    assert sum(judge(row) is not None for row in real.wikitext(shared_data)) == 0
    assert sum(judge(row) is not None for row in real.gpteacher(shared_data)) == 0


def test_thresholds_that_are_null_do_not_look() -> None:
    nothing = {"character_run": None, "line_share": None, "ngram_share": None}
    assert make("repetition", **nothing)(talk("?", "again and again " * 99)) is None
    assert make("repetition", min_words=400)(talk("?", "again and again " * 99)) is None
