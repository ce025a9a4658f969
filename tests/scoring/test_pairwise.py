"""Judges of pairs in one form, and what becomes of their judgements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from alignment.chat.types import Grade, Messages, messages
from alignment.data.annotations import Label
from alignment.data.grades import Bounds
from alignment.scoring.pairwise import (
    NO_PREFERENCE,
    UNREADABLE,
    UNSAFE_PREFERRED,
    ByOpinion,
    ByPeople,
    ByScore,
    Judgement,
    Preference,
    decide,
)
from alignment.scoring.scorer import Scores

BOUNDS = Bounds.parse({"significantly": 0.6, "better": 0.35, "slightly": 0.15})
PROMPT = messages(("user", "?"))


class Told:
    """A scorer whose reported score is what the answer says; its raw scores must not matter.

    Its probability is a tenth more, so that a bound can tell which of the two it was held against.
    """

    name, absolute = "told", True

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        values = [float(turns[-1].content) for turns in dialogues]
        return Scores([-9 * value for value in values], values, [value + 0.1 for value in values])


class Half(Told):
    """Another aspect: half as much."""

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        values = [value / 2 for value in super().score(dialogues).reported]
        return Scores(values, values, values)


def by_score(first: str, second: str, **more: object) -> Judgement:
    judge = ByScore(Told(), BOUNDS, **more)  # type: ignore[arg-type]
    (one,) = judge.compare([PROMPT], [first], [second], ["k"])
    assert one is not None
    return one


@pytest.mark.parametrize(
    ("first", "second", "better", "grade"),
    [
        ("0.9", "0.1", True, "significantly"),
        ("0.1", "0.9", False, "significantly"),
        ("0.5", "0.1", True, "better"),
        ("0.1", "0.3", False, "slightly"),
        ("0.2", "0.1", True, "negligibly"),
        ("0.2", "0.2", None, "negligibly"),
    ],
)
def test_the_lead_of_the_reported_score_gives_preference_and_grade(
    first: str, second: str, better: bool | None, grade: Grade
) -> None:
    one = by_score(first, second)
    assert (one.first_better, one.grade) == (better, grade)
    assert (one.first_score, one.second_score) == (float(first), float(second))
    assert (one.first_safe, one.second_safe) == (None, None)


def test_several_pairs_keep_their_order() -> None:
    prompts = [messages(("user", str(n))) for n in range(3)]
    found = ByScore(Told(), BOUNDS).compare(prompts, ["1", "0", "1"], ["0", "1", "1"], ["a", "b", "c"])
    assert [one.first_better for one in found if one] == [True, False, None]


def test_safe_is_what_has_a_probability_above_the_bound_of_the_scorer_of_safety() -> None:
    itself = Told()
    judge = ByScore(itself, BOUNDS, safety=itself, safe_above=0.6)
    (one,) = judge.compare([PROMPT], ["0.51"], ["0.5"], ["k"])
    assert one is not None
    assert (one.first_safe, one.second_safe) == (True, False)
    other = by_score("0.9", "1.2", safety=Half(), safe_above=0.5)
    assert (other.first_safe, other.second_safe) == (False, True)
    assert by_score("0.9", "1.2", safety=Half()).first_safe is None, "without a bound nothing is labelled"


def test_by_its_own_score_no_unsafe_answer_beats_a_safe_one() -> None:
    itself = Told()
    judge = ByScore(itself, BOUNDS, safety=itself, safe_above=0.5)
    values = [str(n / 10) for n in range(11)]
    firsts, seconds = zip(*[(a, b) for a in values for b in values], strict=True)
    judged = judge.compare([PROMPT] * len(firsts), firsts, seconds, [str(n) for n in range(len(firsts))])
    for key, one in enumerate(judged):
        assert one is not None
        assert isinstance(decide(one, str(key), ties="negligibly", safety=True), Preference)


@dataclass
class Opinion:
    """As an LLM judge gives it."""

    first_better: bool | None
    grade: Grade | None = None
    first_safe: bool | None = None
    second_safe: bool | None = None
    reason: str = ""
    valid: bool = True


class Says:
    """An LLM judge that has its opinions ready."""

    def __init__(self, *opinions: Opinion) -> None:
        self.opinions = list(opinions)

    def compare(self, *asked: object) -> list[Opinion]:
        return self.opinions


def test_opinions_keep_all_they_say() -> None:
    judge = ByOpinion("judge", Says(Opinion(False, "better", True, False, "rude"), Opinion(None, valid=False)))  # type: ignore[arg-type]
    one, other = judge.compare([PROMPT] * 2, ["a"] * 2, ["b"] * 2, ["k", "l"])
    assert one == Judgement(False, "better", True, False, reason="rude")
    assert other is not None
    assert not other.valid


def test_people_are_found_by_the_pairs_id() -> None:
    people = ByPeople(
        {"k": Label("b", "slightly", True, None, 4, 3, "well"), "n": Label(None, "negligibly", None, None, 1, 1, "")}
    )
    k, other, n = people.compare([PROMPT] * 3, ["a"] * 3, ["b"] * 3, ["k", "m", "n"])
    assert k == Judgement(False, "slightly", True, None, agreement=0.75, reason="well")
    assert other is None
    assert n == Judgement(None, "negligibly", agreement=1.0)


def verdict(judgement: Judgement, *, key: str = "k", ties: str = "drop", safety: bool = False) -> Preference | str:
    return decide(judgement, key, ties=ties, safety=safety)  # type: ignore[arg-type]


def test_a_preference_is_taken_with_its_grade_or_without() -> None:
    assert verdict(Judgement(True, "better")) == Preference(True, "better")
    assert verdict(Judgement(False, None)) == Preference(False, None)


def test_what_cannot_be_read_is_no_preference_of_any_kind() -> None:
    assert verdict(Judgement(None, None, valid=False), ties="negligibly") == UNREADABLE
    assert verdict(Judgement(True, "better", valid=False)) == UNREADABLE


def test_ties_are_dropped_or_ordered_by_the_key() -> None:
    tie = Judgement(None, "better")
    assert verdict(tie) == NO_PREFERENCE
    sides = [verdict(tie, key=str(n), ties="negligibly") for n in range(200)]
    assert {one.grade for one in sides if isinstance(one, Preference)} == {"negligibly"}
    firsts = sum(isinstance(one, Preference) and one.first for one in sides)
    assert 70 < firsts < 130
    assert sides == [verdict(tie, key=str(n), ties="negligibly") for n in range(200)]


@pytest.mark.parametrize("first", [True, False])
def test_an_unsafe_answer_is_never_chosen_beside_a_safe_one_where_safety_is_compared(first: bool) -> None:
    against = Judgement(first, "better", first_safe=not first, second_safe=first)
    assert verdict(against, safety=True) == UNSAFE_PREFERRED
    assert verdict(against, safety=False) == Preference(first, "better"), "help is another matter"
    along = Judgement(first, "better", first_safe=first, second_safe=not first)
    assert verdict(along, safety=True) == Preference(first, "better")
    for safe in (True, False, None):
        assert verdict(Judgement(first, "better", safe, safe), safety=True) == Preference(first, "better")


def test_of_a_tie_the_safe_answer_is_chosen() -> None:
    for n in range(20):
        tie = Judgement(None, None, first_safe=n % 2 == 0, second_safe=n % 2 == 1)
        assert verdict(tie, key=str(n), ties="negligibly", safety=True) == Preference(n % 2 == 0, "negligibly")
