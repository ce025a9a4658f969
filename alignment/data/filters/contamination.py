"""Contamination: rows that share word n-grams with the sets a model will be measured on (GPT-3, appendix C: n = 13)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from alignment.data.filters.filter import Finding, Judge
from alignment.data.filters.texts import answers_of, questions_of, texts_of, words
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.settings import Settings, identity


class Options(Settings):
    """What counts as the same."""

    ngram_words: int = identity("words that have to follow each other in both; 13 is usual", ge=5)
    whole_words: int = identity(
        "evaluation texts of fewer words than an n-gram are looked for whole from here on", ge=3
    )
    at_least: int = identity(
        "n-grams that a row has to share with one evaluation set; a text found whole is enough", ge=1
    )
    texts: Literal["all", "questions"] = identity("texts of the evaluation rows that count; documents always do")


def make(options: Options, against: Mapping[str, Sequence[Row]]) -> Judge:
    """Judge rows by the n-grams of all their texts.

    Words are compared without case, punctuation and spacing (:func:`~alignment.data.filters.texts.words`), each
    text by itself. Evaluation texts shorter than ``ngram_words`` are looked for as a whole; those shorter
    than ``whole_words`` as well are not looked for, since they may stand anywhere.
    """
    if not against:
        raise UserError("contamination: no evaluation set is given", remedy="Name them in the filter's `against`.")
    index = NgramIndex(options, against)

    def judge(row: Row) -> Finding | None:
        shared: Counter[int] = Counter()
        whole: set[int] = set()
        for text in texts_of(row):
            for length, owners in index.owners(words(text)):
                shared.update(owners)
                if length < options.ngram_words:
                    whole.update(owners)
        by_set: Counter[str] = Counter()
        for owner, count in shared.items():
            by_set[index.rows[owner][0]] += count
        for name, count in by_set.items():
            of_set = [owner for owner in shared if index.rows[owner][0] == name]
            found_whole = sorted(whole.intersection(of_set))
            if found_whole:
                return Finding(f"contaminated by {name}", f"the whole of {index.rows[found_whole[0]][1]}")
            if count >= options.at_least:
                nearest = min(of_set, key=lambda owner: (-shared[owner], owner))
                told = f"{options.ngram_words}-grams shared: {count}, most of them with {index.rows[nearest][1]}"
                return Finding(f"contaminated by {name}", told)
        return None

    return judge


class NgramIndex:
    """The distinct n-grams of every evaluation set as sorted 64-bit hashes, each with the first row that has it.

    12 bytes an n-gram: the 7,473 questions and answers of GSM8K's training set take 8 MB. Two different n-grams
    share a hash with a chance of 2⁻⁶⁴, which is 1 in 20,000 for a million n-grams against a thousand million.
    """

    def __init__(self, options: Options, against: Mapping[str, Sequence[Row]]) -> None:
        self.rows: list[tuple[str, str]] = []
        """The evaluation set and the id of every evaluation row."""
        self._n = options.ngram_words
        gathered: dict[tuple[int, str], list[tuple[np.ndarray, int]]] = {}
        for name, rows in against.items():
            for row in rows:
                chosen = questions_of(row) if options.texts == "questions" else [*questions_of(row), *answers_of(row)]
                for text in chosen or texts_of(row):
                    found = words(text)
                    length = min(len(found), self._n)
                    if length >= min(options.whole_words, self._n):
                        grams = ngram_hashes(word_hashes(found), length)
                        gathered.setdefault((length, name), []).append((grams, len(self.rows)))
                self.rows.append((name, row.id))
        self._tables = [(length, *_table(parts)) for (length, _), parts in sorted(gathered.items())]

    def owners(self, found: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """For every length in the index the evaluation rows met in these words, once for each distinct n-gram."""
        hashed = word_hashes(found)
        for length, grams, owners in self._tables:
            if len(found) < length:
                break
            looked_for = ngram_hashes(hashed, length)
            at = np.searchsorted(grams, looked_for)
            at[at == len(grams)] = 0
            hit = np.unique(at[grams[at] == looked_for])
            if len(hit):
                yield length, owners[hit].tolist()


def word_hashes(found: Sequence[str]) -> np.ndarray:
    """The 64-bit hash of every word."""
    from xxhash import xxh3_64_intdigest

    return np.fromiter((xxh3_64_intdigest(word.encode()) for word in found), dtype=np.uint64, count=len(found))


def ngram_hashes(hashed: np.ndarray, n: int) -> np.ndarray:
    """The 64-bit hashes of all n-grams of hashed words, in order: Σ h_(i+j) bʲ modulo 2⁶⁴, by prefix sums.

    As the words' hashes are random numbers, so are the sums: distinct n-grams meet with a chance of 2⁻⁶⁴.
    """
    size = 1 << len(hashed).bit_length()
    sums = np.zeros(len(hashed) + 1, np.uint64)
    np.cumsum(hashed * _powers(_BASE, size)[: len(hashed)], out=sums[1:])
    return (sums[n:] - sums[:-n]) * _powers(_INVERSE, size)[: len(hashed) - n + 1]


_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


@lru_cache
def _powers(base: int, size: int) -> np.ndarray:
    """``base`` to the powers 0 … size − 1, modulo 2⁶⁴."""
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _table(parts: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct hashes in order, and the first row that has each."""
    grams = np.concatenate([part for part, _ in parts])
    owners = np.repeat(np.array([row for _, row in parts], np.uint32), [len(part) for part, _ in parts])
    distinct, first = np.unique(grams, return_index=True)
    return distinct, owners[first]
