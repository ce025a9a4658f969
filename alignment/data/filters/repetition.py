"""Text that says the same again: one character, one line or one phrase over and over (Gopher, Rae et al. 2021, A.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.texts import answers_of, texts_of, words
from alignment.data.rows import Row
from alignment.settings import Settings, identity


class Options(Settings):
    """What is too much. A share is of the characters of one text; null does not look."""

    texts: Literal["answers", "all"] = identity("which are judged, each by itself; documents always are")
    min_words: int = identity("texts with fewer words are judged by `character_run` alone", ge=0)
    character_run: int | None = identity("longest run of one character that may stand", default=None, ge=2)
    line_share: float | None = identity("greatest share in lines that stood before", default=None, ge=0, le=1)
    ngram_words: int = identity("words of a phrase", ge=2)
    ngram_share: float | None = identity("greatest share in words of repeated phrases", default=None, ge=0, le=1)


def make(options: Options, against: Mapping[str, Sequence[Row]]) -> Judge:
    """Judge each text by itself; the first that is too repetitive is reported."""
    run = options.character_run and re.compile(rf"(?s)(.)\1{{{options.character_run},}}")

    def judge(row: Row) -> Finding | None:
        chosen = answers_of(row) if options.texts == "answers" else texts_of(row)
        for text in chosen or texts_of(row):
            if run and (match := run.search(text)):
                return Finding("repeated character", f"{match[1]!r} {len(match[0]):,} times")
            found = words(text) if options.line_share is not None or options.ngram_share is not None else []
            if len(found) < max(options.min_words, 1):
                continue
            if options.line_share is not None and (share := repeated_lines(text)) > options.line_share:
                return Finding("repeated lines", f"{share:.2f} of the characters, at most {options.line_share:.2f}")
            if options.ngram_share is not None:
                share = repeated_ngrams(found, options.ngram_words)
                if share > options.ngram_share:
                    told = f"{share:.2f} of the characters, at most {options.ngram_share:.2f}"
                    return Finding(f"repeated {options.ngram_words}-grams", told)
        return None

    return judge


def repeated_lines(text: str) -> float:
    """The share of a text's characters that stand in lines which stood before; empty lines do not count."""
    seen: set[str] = set()
    total = again = 0
    for line in map(str.strip, text.splitlines()):
        total += len(line)
        if line in seen:
            again += len(line)
        seen.add(line)
    return again / total if total else 0.0


def repeated_ngrams(found: Sequence[str], n: int) -> float:
    """The share of the words' characters that lie in an n-gram which stood before; each character counts once."""
    seen: set[tuple[str, ...]] = set()
    again, covered = 0, 0
    for start in range(len(found) - n + 1):
        gram = tuple(found[start : start + n])
        if gram in seen:
            again += sum(map(len, found[max(start, covered) : start + n]))
            covered = start + n
        seen.add(gram)
    return again / sum(map(len, found)) if again else 0.0
