"""Several scorers as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from alignment.chat.types import Messages, messages
from alignment.scoring.ensemble import Ensemble, mean, spread
from alignment.scoring.scorer import Scores, sigmoid

ROWS = [messages(("user", "?"), ("assistant", said)) for said in ("1", "-2", "0.5")]


class Member:
    """Gives the answer's number times a factor, centred."""

    def __init__(self, name: str, factor: float, centre: float = 0.0, absolute: bool = True) -> None:
        self.name, self.factor, self.centre, self.absolute = name, factor, centre, absolute

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        raw = [self.factor * float(turns[-1].content) for turns in dialogues]
        return Scores(raw, [value - self.centre for value in raw], [sigmoid(value) for value in raw])


def test_each_reading_is_the_mean_of_the_members() -> None:
    both = Ensemble([Member("a", 1.0, 0.5), Member("b", 3.0, 1.5)])
    scores = both.score(ROWS)
    assert both.name == "a + b"
    assert scores.raw == pytest.approx([2.0, -4.0, 1.0])
    assert scores.reported == pytest.approx([1.0, -5.0, 0.0])
    # The mean of the probabilities, which is not the probability of the mean.
    assert scores.probability[0] == pytest.approx((sigmoid(1) + sigmoid(3)) / 2)
    assert scores.probability[0] != pytest.approx(sigmoid(2), abs=1e-3)


def test_disagreement_is_the_deviation_of_the_population_of_reported_scores() -> None:
    three = Ensemble([Member("a", 1.0), Member("b", 3.0), Member("c", 8.0, centre=1.0)])
    # Reported 1, 3, 7 to the first: mean 11/3, variance (64 + 4 + 100) / 27.
    assert three.disagreement(ROWS)[0] == pytest.approx(math.sqrt(168 / 27))
    # −2, −6, −17: mean −25/3.
    assert three.disagreement(ROWS)[1] == pytest.approx(math.sqrt((361 + 49 + 676) / 27))
    assert Ensemble([Member("a", 1.0)]).disagreement(ROWS) == [0.0, 0.0, 0.0]


def test_it_is_absolute_only_if_all_members_are() -> None:
    assert Ensemble([Member("a", 1.0), Member("b", 1.0)]).absolute
    assert not Ensemble([Member("a", 1.0), Member("b", 1.0, absolute=False)]).absolute


def test_scores_that_are_there_already_need_no_second_pass() -> None:
    members = [Member("a", 1.0).score(ROWS), Member("b", 3.0).score(ROWS)]
    both = Ensemble([Member("a", 1.0), Member("b", 3.0)])
    assert mean(members) == both.score(ROWS)
    assert spread(members) == both.disagreement(ROWS)
    assert both.score([]) == ([], [], [])
