"""What the rows of a dataset are like, counted while they pass: the part of its card that no recipe can tell.

Volume by source and licence, turns, lengths, languages, grades and safety labels, tags, kinds of unsafe
prompts, pronouns and demographic axes, scores. Memory is that of the counters whatever the number of rows:
open-ended names (tags, categories, flags, languages) are told apart up to ``MOST`` of them, and texts that
wait to be counted in tokens are ``TEXTS_AT_ONCE``. The same rows in the same order give the same summary.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.chat.types import OPENING, Comparison, Conversation, Messages, Prompt
from alignment.data import lists
from alignment.data.rows import Row
from alignment.errors import UserError
from alignment.settings import Settings, text

MOST = 1_000
"""Distinct names a counter tells apart; what comes after them is counted under ``OTHERS``."""
OTHERS = "(others)"
NONE = "(none)"
NOT_GRADED, NOT_LABELLED = "not graded", "not labelled"
TEXTS_AT_ONCE = 256
TOP_TERMS = 10
SCORE_BINS = 20

WORD = re.compile(r"[^\W_]+")
PARTS = {"system": "system", "user": "prompt", "assistant": "answer"}
"""What a turn's text is counted as, by its role."""

CountTokens = Callable[[Sequence[str]], list[int]]
"""The number of tokens of each text."""
Detect = Callable[[str], str]
"""The code of the language that a text is in."""


class Terms(Settings):
    """Words to look for. A term may be several words; case, and what stands between the words, do not matter."""

    pronouns: dict[str, list[str]] = text("groups of pronouns, each with its forms")
    axes: dict[str, list[str]] = text("demographic axes, each with the terms that mention it")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "terms") -> Terms:
        """Validate a plain mapping. Raises :class:`UserError` for an empty group or a term that cannot match."""
        terms: Terms = super().parse(values, where)
        for part in ("pronouns", "axes"):
            for name, listed in getattr(terms, part).items():
                _check_terms(f"{part}.{name}", listed, where)
        return terms


def _check_terms(key: str, listed: list[str], where: str) -> None:
    if not listed:
        raise UserError(f"{key}: has no terms", cause=f"({where})", remedy="Give it some, or take it out.")
    seen: set[str] = set()
    for term in listed:
        spelled = " ".join(words(term))
        if not spelled:
            raise UserError(f"{key}: {term!r} has no letter or digit", cause=f"({where})", remedy="Take it out.")
        if spelled in seen:
            raise UserError(f"{key}: {term!r} stands twice", cause=f"({where})", remedy="Take one out.")
        seen.add(spelled)


def load_terms(path: Path) -> Terms:
    """Read a term list. Raises :class:`UserError` with the key, or with ``file:line`` for broken YAML."""
    return Terms.parse(lists.read(path), str(path))


def words(told: str) -> list[str]:
    """The runs of letters and digits in a text, case-folded: ``She's Jewish-born`` → she, s, jewish, born."""
    return WORD.findall((told if told.isascii() else unicodedata.normalize("NFC", told)).casefold())


class Histogram:
    """Whole numbers from 0, in bins that widen with the value: 0 to 31 one by one, then 16 bins an octave.

    Count, least, greatest and mean are exact; a quantile is exact below 32 and within 1/16 of itself above.
    """

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.count = self.total = self.greatest = 0
        self.least: int | None = None

    def add(self, value: int) -> None:
        """Count one value."""
        shift = value.bit_length() - 5
        low = value >> shift << shift if shift > 0 else value
        self.bins[low] = self.bins.get(low, 0) + 1
        self.count += 1
        self.total += value
        if value > self.greatest:
            self.greatest = value
        if self.least is None or value < self.least:
            self.least = value

    def quantile(self, share: float) -> int:
        """The least value that ``share`` of all do not exceed, taken to lie evenly within its bin."""
        assert self.least is not None, "a quantile needs values"
        rank, below = max(1, math.ceil(share * self.count)), 0
        for low, inside in sorted(self.bins.items()):
            if below + inside >= rank:
                width = 1 << max(0, low.bit_length() - 5)
                value = low + (width - 1) * (rank - below) // inside
                return min(max(value, self.least), self.greatest)
            below += inside
        raise AssertionError("the bins hold every value")

    def summary(self, *, octaves: bool) -> dict[str, Any]:
        """The numbers as JSON; ``bins`` by their lowest value, joined to 0, 1, 2–3, 4–7, 8–15 … with ``octaves``."""
        bins: Counter[int] = Counter()
        for low, inside in self.bins.items():
            bins[1 << (low.bit_length() - 1) if octaves and low else low] += inside
        return {
            "count": self.count,
            "min": self.least,
            "mean": round(self.total / self.count, 3),
            "median": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "max": self.greatest,
            "bins": {str(low): bins[low] for low in sorted(bins)},
        }


class ScoreHistogram:
    """Scores in bins of one width: 20 over [0, 1] while all lie there, else at most 20 over what was seen.

    The range of the others is not known beforehand. Their bins begin tiny, at multiples of a power of two, and
    two become one whenever there would be more than 20: so the bins do not depend on the order of the scores.
    """

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.least, self.greatest = math.inf, -math.inf
        self._unit = [0] * SCORE_BINS
        self._exponent, self._wide = -20, Counter[int]()

    def add(self, value: float) -> None:
        """Count one score, a finite number."""
        assert math.isfinite(value), f"a score of {value}"
        self.count += 1
        self.total += value
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)
        if 0 <= value <= 1:
            self._unit[min(int(value * SCORE_BINS), SCORE_BINS - 1)] += 1
        self._wide[math.floor(math.ldexp(value, -self._exponent))] += 1
        while max(self._wide) - min(self._wide) >= SCORE_BINS:
            self._exponent += 1
            wider: Counter[int] = Counter()
            for place, inside in self._wide.items():
                wider[place >> 1] += inside
            self._wide = wider

    def summary(self) -> dict[str, Any]:
        """The numbers as JSON: bin ``n`` of ``bins`` reaches from ``low + n·width`` to ``low + (n+1)·width``."""
        if self.least >= 0 and self.greatest <= 1:
            low, width, bins = 0.0, 1 / SCORE_BINS, list(self._unit)
        else:
            first, width = min(self._wide), math.ldexp(1.0, self._exponent)
            low, bins = first * width, [self._wide[place] for place in range(first, max(self._wide) + 1)]
        mean = round(self.total / self.count, 6)
        numbers = {"min": self.least, "mean": mean, "max": self.greatest, "low": low, "width": width}
        return {"count": self.count, **numbers, "bins": bins}


class _Mentions:
    """Rows that mention each group of terms, and each term, found by looking words up."""

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self.rows: dict[str, int] = dict.fromkeys(groups, 0)
        self.terms: dict[str, Counter[str]] = {group: Counter() for group in groups}
        self.any = 0
        self._meant: dict[str, list[tuple[str, str, str]]] = {}
        for group, listed in groups.items():
            for term in listed:
                spelled = words(term)
                phrase = f" {' '.join(spelled)} " if len(spelled) > 1 else ""
                self._meant.setdefault(spelled[0], []).append((phrase, group, term))
        self._firsts = frozenset(self._meant)

    def add(self, in_order: list[str], distinct: set[str]) -> None:
        """Look through the words of one row."""
        found = self._firsts & distinct
        if not found:
            return
        groups, joined = set(), ""
        for first in found:
            for phrase, group, term in self._meant[first]:
                if phrase:
                    joined = joined or f" {' '.join(in_order)} "
                    if phrase not in joined:
                        continue
                groups.add(group)
                self.terms[group][term] += 1
        for group in groups:
            self.rows[group] += 1
        self.any += bool(groups)

    def summary(self) -> dict[str, Any]:
        """Rows with any of the groups, then for each group its rows and the terms that most rows mention."""
        return {
            "rows": self.any,
            "groups": {
                group: {"rows": count, "terms": _ordered(self.terms[group], TOP_TERMS)}
                for group, count in self.rows.items()
            },
        }


class Statistics:
    """Counts rows one by one. What is not given (``terms``, ``tokens``, ``language``) is not measured, and is null.

    A row's *parts* are its system, prompt (user) and answer (assistant) turns; in a comparison the two
    candidates are parts of their own and an assistant turn before them is an "earlier answer".
    """

    def __init__(self, terms: Terms | None, tokens: CountTokens | None, language: Detect | None = None) -> None:
        self._tokens, self._language = tokens, language
        self._waiting: list[tuple[str, str, str, str]] = []
        self._rows = 0
        self._volume: dict[tuple[str, str], Counter[str]] = {}
        self._turns = Histogram()
        self._lengths: dict[tuple[str, str], Histogram] = {}
        self._counts: dict[str, Counter[Any]] = {
            name: Counter() for name in ("languages", "grades", "safety", "longer", "tags", "categories", "flags")
        }
        self._pronouns = _Mentions(terms.pronouns) if terms else None
        self._axes = _Mentions(terms.axes) if terms else None
        self._scores: dict[str, ScoreHistogram] = {}

    def add(self, row: Row, source: str, licence: str, flags: Sequence[str] = ()) -> None:
        """Count a row once; one that a dataset holds twice is added twice. ``flags`` are the reasons of its marks."""
        parts = _parts(row)
        volume = self._volume.setdefault((source, licence), Counter())
        self._rows += 1
        volume["rows"] += 1
        for part, told in parts:
            characters, spaced = len(told), len(told.split())
            volume["characters"] += characters
            volume["words"] += spaced
            self._length(part, "characters").add(characters)
            self._length(part, "words").add(spaced)
            if self._tokens:
                self._waiting.append((source, licence, part, told))
        if len(self._waiting) >= TEXTS_AT_ONCE:
            self._count_tokens()
        for flag in flags:
            self._count("flags", flag)
        self._add_labels(row)
        if self._language or self._axes:
            self._add_whole("\n".join(told for _, told in parts))

    def add_score(self, name: str, value: float) -> None:
        """Count a score that a scorer gave to a row: toxicity, safety …"""
        if name not in self._scores:
            self._scores[name] = ScoreHistogram()
        self._scores[name].add(value)

    def summary(self) -> dict[str, Any]:
        """Everything as JSON. A part that has no rows is empty; one that was not measured is null."""
        self._count_tokens()
        counts = {name: _ordered(counted) for name, counted in self._counts.items() if name != "categories"}
        units = ("characters", "words", "tokens") if self._tokens else ("characters", "words")
        return {
            "rows": self._rows,
            "volume": [
                {"source": source, "licence": licence, **{unit: volume[unit] for unit in ("rows", *units)}}
                for (source, licence), volume in sorted(self._volume.items())
            ],
            "turns": self._turns.summary(octaves=False) if self._turns.count else None,
            "lengths": {
                part: {unit: self._lengths[part, unit].summary(octaves=True) for unit in units}
                for part in sorted({part for part, _ in self._lengths})
            },
            **counts,
            "languages": counts["languages"] if self._language else None,
            "categories": _by_category(self._counts["categories"]),
            "pronouns": self._pronouns.summary() if self._pronouns else None,
            "axes": self._axes.summary() if self._axes else None,
            "scores": {name: self._scores[name].summary() for name in sorted(self._scores)},
        }

    def _add_labels(self, row: Row) -> None:
        """What kinds of row have of their own: turns, tags, grades, safety, category and attack."""
        if isinstance(row, Conversation | Prompt):
            self._turns.add(len(row.messages))
            for tag in row.tags:
                if not tag.startswith(OPENING):
                    self._count("tags", tag)
        if isinstance(row, Prompt) and (row.category or row.attack):
            self._count("categories", (row.category or NONE, row.attack or NONE))
        if isinstance(row, Comparison):
            self._turns.add(len(row.prompt) + 1)
            self._count("grades", row.grade or NOT_GRADED)
            self._count("safety", _safety(row.chosen_safe, row.rejected_safe))
            gap = len(row.chosen) - len(row.rejected)
            self._count("longer", "chosen" if gap > 0 else "rejected" if gap < 0 else "neither")

    def _add_whole(self, told: str) -> None:
        if self._language:
            self._count("languages", self._language(told))
        if self._axes and self._pronouns:
            in_order = words(told)
            distinct = set(in_order)
            self._pronouns.add(in_order, distinct)
            self._axes.add(in_order, distinct)

    def _count(self, name: str, key: Any) -> None:
        counter = self._counts[name]
        counter[key if key in counter or len(counter) < MOST else OTHERS] += 1

    def _length(self, part: str, unit: str) -> Histogram:
        found = self._lengths.get((part, unit))
        return found if found is not None else self._lengths.setdefault((part, unit), Histogram())

    def _count_tokens(self) -> None:
        """Count the tokens of the texts that wait."""
        if not self._tokens or not self._waiting:
            return
        counts = self._tokens([told for *_, told in self._waiting])
        for (source, licence, part, _), count in zip(self._waiting, counts, strict=True):
            self._volume[source, licence]["tokens"] += count
            self._length(part, "tokens").add(count)
        self._waiting = []


def _parts(row: Row) -> list[tuple[str, str]]:
    """The texts of a row, each with what it is."""
    if isinstance(row, Conversation | Prompt):
        return [(PARTS[turn.role], turn.content) for turn in row.messages]
    if isinstance(row, Comparison):
        return [*_history(row.prompt), ("chosen", row.chosen), ("rejected", row.rejected)]
    return [("text", row.text)]


def _history(turns: Messages) -> list[tuple[str, str]]:
    return [("earlier answer" if turn.role == "assistant" else PARTS[turn.role], turn.content) for turn in turns]


def _safety(chosen: bool | None, rejected: bool | None) -> str:
    """The safety labels of a pair in words (Llama 2, table 3 of §3.2.1 reports them in these bins)."""
    if chosen is None or rejected is None:
        return NOT_LABELLED if chosen is rejected else "one of two labelled"
    if chosen == rejected:
        return "both safe" if chosen else "both unsafe"
    return "chosen safe, rejected unsafe" if chosen else "chosen unsafe, rejected safe"


def _by_category(counted: Counter[Any]) -> dict[str, dict[str, int]]:
    """Category → attack → rows, the frequent first."""
    totals: Counter[str] = Counter()
    attacks: dict[str, Counter[str]] = {}
    for key, count in counted.items():
        category, attack = key if isinstance(key, tuple) else (key, NONE)
        totals[category] += count
        attacks.setdefault(category, Counter())[attack] += count
    return {category: _ordered(attacks[category]) for category in _ordered(totals)}


def _ordered(counted: Mapping[str, int], most: int | None = None) -> dict[str, int]:
    """The frequent first, and by name where two are as frequent."""
    pairs: Iterable[tuple[str, int]] = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    return dict(list(pairs)[:most])
