"""The language a row is in."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from alignment.chat.types import Text
from alignment.errors import UserError

from . import real
from .options import make, talk

GERMAN = "Der Hund läuft über die Straße, und niemand sieht ihm dabei zu."
ENGLISH = "The dog runs across the street, and nobody watches him doing it."


def test_other_languages_are_named() -> None:
    judge = make("language")
    finding = judge(Text(GERMAN, "t"))
    assert finding is not None
    assert finding.reason == "language: de"
    assert judge(Text(ENGLISH, "t")) is None
    assert make("language", allowed=["en", "de"])(Text(GERMAN, "t")) is None
    assert make("language", allowed=["de"])(Text(ENGLISH, "t")) is not None


def test_texts_chooses_whose_words_count() -> None:
    row = talk(GERMAN * 3, ENGLISH)
    assert make("language", texts="answers")(row) is None
    assert make("language", texts="questions")(row) is not None
    # A document has neither questions nor answers, and is judged all the same.
    assert make("language", texts="answers")(Text(GERMAN, "t")) is not None


def test_short_texts_stay() -> None:
    letters = sum(map(str.isalpha, GERMAN))
    assert make("language", min_characters=letters + 1)(Text(GERMAN, "t")) is None
    assert make("language", min_characters=letters)(Text(GERMAN, "t")) is not None
    assert make("language")(Text("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 = ?", "t")) is None


def test_an_allowed_language_that_is_not_sure_says_so() -> None:
    finding = make("language", confidence=1.0)(Text("The dog, el perro, der Hund, le chien.", "t"))
    assert finding is not None
    assert finding.reason.startswith("language")


def test_wrong_codes_are_refused() -> None:
    with pytest.raises(UserError, match="'English' is no language"):
        make("language", allowed=["English"])


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert make("language")(Text(GERMAN, "t")) is not None


def test_english_is_told_in_real_conversations(shared_data: Path) -> None:
    """The set's makers count 419 English conversations of 953."""
    judge = make("language")
    rows = list(real.qlora(shared_data))
    english = sum(judge(row) is None for row in rows)
    assert abs(english - 419) <= 5
    assert [judge(row) for row in rows[:50]] == [make("language")(row) for row in rows[:50]]
