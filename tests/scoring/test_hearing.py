"""Voices on a pair: both orders of an LLM judge and people one by one, each from the pair's first answer's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.chat.types import messages
from alignment.data.annotations import Vote
from alignment.scoring.hearing import STRAIGHT, TURNED, BothOrders, Panel, Single, Voice
from alignment.scoring.llm_judge import LlmJudge, Verdict
from alignment.scoring.pairwise import Judgement

PROMPT = messages(("user", "Where is the mill?"))


class Orders(LlmJudge):
    """Says what it is told, in one order and the other."""

    name = "orders"

    def __init__(self, *told: tuple[Verdict | str, Verdict | str]) -> None:
        self._told = list(told)

    def verdicts(self, *asked: Any) -> list[tuple[Verdict | str, Verdict | str]]:
        return self._told


def of(told: tuple[Verdict | str, Verdict | str]) -> Any:
    (heard,) = BothOrders(Orders(told)).hear([PROMPT], ["x"], ["y"], ["k"])
    return heard


def test_both_orders_are_voices_and_the_second_one_is_turned_round() -> None:
    heard = of(
        (Verdict(True, "better", True, False, "x does it"), Verdict(False, "slightly", False, True, "B does it"))
    )
    assert heard.judgement == Judgement(True, "slightly", True, False, reason="x does it\nB does it")
    assert heard.voices == (
        Voice(STRAIGHT, True, "better", False, "x does it"),
        Voice(TURNED, True, "slightly", True, "B does it"),
    )


def test_a_judge_that_takes_the_first_place_contradicts_itself() -> None:
    heard = of((Verdict(True, "better", True, True, ""), Verdict(True, "better", True, True, "")))
    assert heard.judgement.first_better is None
    assert [voice.first_better for voice in heard.voices] == [True, False]


def test_unsure_is_a_voice_and_what_cannot_be_read_is_none() -> None:
    heard = of((Verdict(None, "negligibly", True, True, "hm"), "I like both!"))
    assert not heard.judgement.valid
    unsure, unread = heard.voices
    assert (unsure.first_better, unsure.grade, unsure.valid) == (None, "negligibly", True)
    assert (unread.first_better, unread.grade, unread.reason, unread.valid) == (None, None, "I like both!", False)


def vote(who: str, preferred: Any, grade: Any, **more: Any) -> Vote:
    plain = {"a_safe": None, "b_safe": None, "a_rating": None, "b_rating": None, "comment": ""}
    return Vote(
        path=Path("f"), line=2, annotator=who, digest="x", preferred=preferred, grade=grade, **{**plain, **more}
    )


def test_people_are_voices_and_their_majority_decides() -> None:
    votes = [
        vote("ann", "a", "better", a_safe=True, comment=" well "),
        vote("bob", "a", "slightly", a_safe=True, a_rating=4, b_rating=2),
        vote("cid", "b", "significantly", a_safe=False),
    ]
    heard, nobody = Panel({"k": votes}).hear([PROMPT] * 2, ["x"] * 2, ["y"] * 2, ["k", "other"])
    assert nobody is None
    assert heard is not None
    assert heard.judgement == Judgement(True, "slightly", True, None, agreement=pytest.approx(2 / 3), reason="well")
    assert [(voice.who, voice.first_better) for voice in heard.voices] == [("ann", True), ("bob", True), ("cid", False)]
    assert (heard.voices[1].first_rating, heard.voices[1].second_rating) == (4, 2)


def test_answers_that_were_rated_and_not_compared_have_no_grade() -> None:
    heard = Panel({"k": [vote("ann", "b", None, a_rating=1, b_rating=5)]}).hear([PROMPT], ["x"], ["y"], ["k"])[0]
    assert heard is not None
    assert (heard.judgement.first_better, heard.judgement.grade) == (False, None)


def test_a_scorer_has_no_voices() -> None:
    class Scorer:
        name = "scorer"

        def compare(self, *asked: Any) -> list[Judgement | None]:
            return [Judgement(True, "better"), None]

    one, none = Single(Scorer()).hear([PROMPT] * 2, ["x"] * 2, ["y"] * 2, ["k", "l"])
    assert one is not None
    assert (one.judgement.first_better, one.voices) == (True, ())
    assert none is None
