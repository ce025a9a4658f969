"""Several voices on one pair of answers: an LLM judge in both orders, or people one by one, beside what they come to.

``scoring/pairwise.py`` keeps only the judgement, which is what a model learns from; who measures wants to know how far
the voices agree, and what each of them said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from alignment.chat.types import Grade, Messages
from alignment.data.annotations import Vote, comments, preference, safety
from alignment.scoring.llm_judge import LlmJudge, Verdict, combine
from alignment.scoring.pairwise import Judgement, PairJudge

STRAIGHT, TURNED = "first answer first", "second answer first"
"""The two voices of an LLM judge."""


@dataclass(frozen=True, slots=True)
class Voice:
    """What one of several said of a pair. ``first_better`` is None where neither is better, or nothing can be read.

    ``turned``: the second answer was shown first. Ratings are from 1 to 5, None where answers were only compared.
    """

    who: str
    first_better: bool | None
    grade: Grade | None
    turned: bool = False
    reason: str = ""
    valid: bool = True
    first_rating: int | None = None
    second_rating: int | None = None


class Heard(NamedTuple):
    """What was decided about a pair, and the voices behind it; a scorer has none."""

    judgement: Judgement
    voices: tuple[Voice, ...] = ()


class Hearing(Protocol):
    """Judges pairs and keeps what every voice said; None for a pair that nobody was asked about."""

    name: str

    def hear(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Heard | None]:
        """What is said of each pair, in order; ``keys`` are the pairs' ids."""
        ...


class Single:
    """A judge of one voice, such as a scorer."""

    def __init__(self, judge: PairJudge) -> None:
        self.name, self._judge = judge.name, judge

    def hear(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Heard | None]:
        """As the protocol says."""
        found = self._judge.compare(prompts, firsts, seconds, keys)
        return [None if judgement is None else Heard(judgement) for judgement in found]


class BothOrders:
    """An LLM judge, whose two orders are its voices."""

    def __init__(self, judge: LlmJudge) -> None:
        self.name, self._judge = judge.name, judge

    def hear(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Heard | None]:
        """As the protocol says."""
        return [_of_orders(*told) for told in self._judge.verdicts(prompts, firsts, seconds, keys)]


class Panel:
    """People, whose votes are in by now: the first answer is the files' ``a``."""

    name = "people"

    def __init__(self, votes: Mapping[str, Sequence[Vote]]) -> None:
        self._votes = votes

    def hear(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Heard | None]:
        """As the protocol says."""
        return [_of_people(self._votes[key]) if key in self._votes else None for key in keys]


def _of_orders(straight: Verdict | str, turned: Verdict | str) -> Heard:
    opinion = combine(straight, turned)
    judgement = Judgement(
        opinion.first_better,
        opinion.grade,
        opinion.first_safe,
        opinion.second_safe,
        reason=opinion.reason,
        valid=opinion.valid,
    )
    return Heard(judgement, (_of_order(straight, turned=False), _of_order(turned, turned=True)))


def _of_order(said: Verdict | str, *, turned: bool) -> Voice:
    who = TURNED if turned else STRAIGHT
    if isinstance(said, str):
        return Voice(who, None, None, turned, said, valid=False)
    better = None if said.a_better is None else said.a_better != turned
    return Voice(who, better, said.grade, turned, said.reason)


def _of_people(votes: Sequence[Vote]) -> Heard:
    preferred, grade, agreeing = preference(votes)
    judgement = Judgement(
        None if preferred is None else preferred == "a",
        grade,
        *safety(votes),
        agreement=agreeing / len(votes),
        reason=comments(votes),
    )
    voices = tuple(
        Voice(
            vote.annotator,
            None if vote.preferred is None else vote.preferred == "a",
            vote.grade,
            reason=vote.comment.strip(),
            first_rating=vote.a_rating,
            second_rating=vote.b_rating,
        )
        for vote in votes
    )
    return Heard(judgement, voices)
