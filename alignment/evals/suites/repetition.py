"""How alike several answers to one prompt are: self-BLEU, distinct n-grams.

Words are runs of letters and digits, and every other sign alone. BLEU (Papineni et al. 2002) is that of one answer with
the others as its references: clipped counts of 1- to 4-grams, where none matches 0.1 in their place (Chen and Cherry
2014, method 1), fewer orders for answers of fewer words, and the penalty for being shorter than the reference that is
closest in length. Self-BLEU (Zhu et al., arXiv 1802.01886) is its mean over the answers: 1 where all are the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
FLOOR = 0.1
"""Stands for no match among the n-grams of one order."""

_WORD = re.compile(r"\w+|[^\w\s]")

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """Words and signs, as they are written."""
    return _WORD.findall(text)


def ngrams(tokens: Sequence[str], n: int) -> Counter[Ngram]:
    """How often each n-gram stands there."""
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def distinct(answers: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams among all n-grams of all answers (Li et al., arXiv 1510.03055); None where there is none."""
    found: Counter[Ngram] = Counter()
    for tokens in answers:
        found.update(ngrams(tokens, n))
    return len(found) / found.total() if found else None


def self_bleu(answers: Sequence[Sequence[str]]) -> float:
    """The mean over answers of BLEU with all others as references. Needs two at least; empty answers score 0."""
    assert len(answers) > 1, "an answer is compared with others"
    lengths = [len(tokens) for tokens in answers]
    matched = [_matched(answers, n) for n in range(1, ORDERS + 1)]
    scores = []
    for place, length in enumerate(lengths):
        others = lengths[:place] + lengths[place + 1 :]
        closest = min(others, key=lambda other, own=length: (abs(other - own), other))  # type: ignore[misc]
        scores.append(bleu([of[place] for of in matched], length, closest))
    return sum(scores) / len(scores)


def bleu(matched: Sequence[int], length: int, closest: int) -> float:
    """BLEU of ``length`` words of which so many n-grams of every order match; ``closest`` is the reference's length."""
    if length == 0 or matched[0] == 0:
        return 0.0
    orders = min(len(matched), length)
    logs = [math.log((matched[n] or FLOOR) / (length - n)) for n in range(orders)]
    return math.exp(sum(logs) / orders + min(0.0, 1 - closest / length))


def _matched(answers: Sequence[Sequence[str]], n: int) -> list[int]:
    """Of every answer: how many of its n-grams the others have, each at most as often as one of them has it."""
    counts = [ngrams(tokens, n) for tokens in answers]
    most: dict[Ngram, tuple[int, int, int]] = {}
    for place, of in enumerate(counts):
        for ngram, times in of.items():
            first, holder, second = most.get(ngram, (0, -1, 0))
            most[ngram] = (times, place, first) if times > first else (first, holder, max(second, times))
    found = []
    for place, of in enumerate(counts):
        clipped = 0
        for ngram, times in of.items():
            first, holder, second = most[ngram]
            clipped += min(times, second if holder == place else first)
        found.append(clipped)
    return found
