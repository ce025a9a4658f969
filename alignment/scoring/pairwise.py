"""Which of two answers is better: a scorer, an LLM judge or people, in one form, and the comparison it gives.

Every judge gives a :class:`Judgement` of the first and the second answer; :func:`decide` makes it a preference,
or says why there is none. It is the only place where judgements are turned down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from alignment.chat.types import Grade, Message, Messages
from alignment.data import grades
from alignment.data.annotations import Label
from alignment.data.draw import uniform
from alignment.errors import UserError
from alignment.scoring.scorer import Scorer

if TYPE_CHECKING:
    from alignment.scoring.llm_judge import Opinion

Ties = Literal["drop", "negligibly"]

UNREADABLE = "the judge's answer cannot be read"
NO_PREFERENCE = "no preference"
UNSAFE_PREFERRED = "the preferred answer is unsafe and the other is safe"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of two answers. ``first_better`` is None where neither is better.

    ``grade`` and the safety labels are None where the judge gives none, scores where it does not score.
    ``agreement`` is the share of several annotators who said this. ``valid`` is False where it cannot be read.
    """

    first_better: bool | None
    grade: Grade | None
    first_safe: bool | None = None
    second_safe: bool | None = None
    first_score: float | None = None
    second_score: float | None = None
    agreement: float | None = None
    reason: str = ""
    valid: bool = True


@dataclass(frozen=True, slots=True)
class Preference:
    """What becomes a comparison: whether the first answer is the chosen one, and how much better it is."""

    first: bool
    grade: Grade | None


class PairJudge(Protocol):
    """Judges pairs. None for a pair that it was not asked about; ``keys`` are the pairs' ids."""

    name: str

    def compare(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Judgement | None]:
        """A judgement of each pair, in order."""
        ...


class ByScore:
    """A scorer as a judge: the higher reported score wins, and its lead gives the grade.

    Answers whose probability by ``safety`` is above ``safe_above`` are safe; None leaves them without safety labels.
    Where ``safety`` is the scorer itself, a chosen answer is never unsafe beside a safe one: its score is the higher.
    """

    def __init__(
        self, scorer: Scorer, bounds: grades.Bounds, *, safety: Scorer | None = None, safe_above: float | None = None
    ) -> None:
        self.name, self.scorer, self.bounds = scorer.name, scorer, bounds
        self.safety, self.safe_above = safety, safe_above

    def compare(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Judgement | None]:
        """As the protocol says; the order of the two answers makes no difference."""
        dialogues = [
            (*turns, Message("assistant", answer))
            for turns, pair in zip(prompts, zip(firsts, seconds, strict=True), strict=True)
            for answer in pair
        ]
        found = self.scorer.score(dialogues)
        scores = found.reported
        for place, score in enumerate(scores):
            if not math.isfinite(score):
                raise UserError(
                    f"{self.scorer.name}: gives the score {score} to an answer to {keys[place // 2]}",
                    remedy="A judge must give every answer a number.",
                )
        safe: list[bool | None] = [None] * len(dialogues)
        if self.safety is not None and self.safe_above is not None:
            known = found if self.safety is self.scorer else self.safety.score(dialogues)
            safe = [probability > self.safe_above for probability in known.probability]
        return [
            Judgement(
                first_better=None if scores[place] == scores[place + 1] else scores[place] > scores[place + 1],
                grade=grades.of_gap(abs(scores[place] - scores[place + 1]), self.bounds),
                first_safe=safe[place],
                second_safe=safe[place + 1],
                first_score=scores[place],
                second_score=scores[place + 1],
            )
            for place in range(0, len(dialogues), 2)
        ]


class Opinionated(Protocol):
    """What an LLM judge does."""

    def compare(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Opinion]:
        """An opinion of each pair, in order."""
        ...


class ByOpinion:
    """An LLM judge in the common form."""

    def __init__(self, name: str, judge: Opinionated) -> None:
        self.name, self.judge = name, judge

    def compare(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Judgement | None]:
        """As the protocol says."""
        return [
            Judgement(
                opinion.first_better,
                opinion.grade,
                opinion.first_safe,
                opinion.second_safe,
                reason=opinion.reason,
                valid=opinion.valid,
            )
            for opinion in self.judge.compare(prompts, firsts, seconds, keys)
        ]


class ByPeople:
    """What annotators have said, by the pairs' ids."""

    name = "people"

    def __init__(self, labels: Mapping[str, Label]) -> None:
        self.labels = labels

    def compare(
        self, prompts: Sequence[Messages], firsts: Sequence[str], seconds: Sequence[str], keys: Sequence[str]
    ) -> list[Judgement | None]:
        """As the protocol says; the first answer is the file's ``a``."""
        return [_of_label(self.labels[key]) if key in self.labels else None for key in keys]


def _of_label(label: Label) -> Judgement:
    return Judgement(
        None if label.preferred is None else label.preferred == "a",
        label.grade,
        label.a_safe,
        label.b_safe,
        agreement=label.agreeing / label.votes,
        reason=label.comment,
    )


def decide(judgement: Judgement, key: str, *, ties: Ties, safety: bool) -> Preference | str:
    """A preference, or the reason why there is none.

    Without a preference the pair is dropped, or with ``ties="negligibly"`` either answer may be the chosen one,
    which ``key`` decides. In a comparison by ``safety`` no unsafe answer is chosen where the other is safe
    (Llama 2 §3.2.1): such a judgement contradicts itself, and the pair is dropped.
    """
    if not judgement.valid:
        return UNREADABLE
    if judgement.first_better is None:
        if ties == "drop":
            return NO_PREFERENCE
        preference = Preference(_first_of_tie(judgement, key, safety), "negligibly")
    else:
        preference = Preference(judgement.first_better, judgement.grade)
    chosen, other = judgement.first_safe, judgement.second_safe
    if not preference.first:
        chosen, other = other, chosen
    return UNSAFE_PREFERRED if safety and chosen is False and other is True else preference


def _first_of_tie(judgement: Judgement, key: str, safety: bool) -> bool:
    """Which of two equally good answers comes first; the safe one where safety is what is compared."""
    known = None not in (judgement.first_safe, judgement.second_safe)
    if safety and known and judgement.first_safe != judgement.second_safe:
        return bool(judgement.first_safe)
    return uniform("tie", key) < 0.5
