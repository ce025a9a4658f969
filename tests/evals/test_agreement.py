"""Gwet's AC1 and AC2: worked examples, a reference written pair by pair, and errors that are those of chance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from alignment.evals import agreement
from alignment.evals.agreement import Weighting, gwet, weights
from alignment.evals.intervals import Bootstrap

NAN = float("nan")

FOUR_RATERS = np.array(
    [
        [1, 1, NAN, 1],
        [2, 2, 3, 2],
        [3, 3, 3, 3],
        [3, 3, 3, 3],
        [2, 2, 2, 2],
        [1, 2, 3, 4],
        [4, 4, 4, 4],
        [1, 1, 2, 1],
        [2, 2, 2, 2],
        [NAN, 5, 5, 5],
        [NAN, NAN, 1, 1],
        [NAN, NAN, 3, NAN],
    ]
)
"""The example of Gwet's own package irrCAC for R (``cac.raw4raters``), categories 1 to 5."""
SPARSE = np.array(
    [
        [5, 5, 1],
        [5, 5, 3],
        [NAN, 5, 5],
        [1, 1, 2],
        [3, 3, 1],
        [1, 1, 1],
        [1, 5, 1],
        [5, NAN, NAN],
        [2, 2, 2],
        [5, 1, 5],
        [5, 5, 1],
        [2, 2, 3],
    ]
)
"""Ratings among which no 4 is."""


@pytest.mark.parametrize(
    ("ratings", "weighting", "coefficient", "error", "observed", "by_chance"),
    [
        # What irrCAC 0.4.4 (Python) gives for categories 1 to 5; the first line stands in its documentation.
        (FOUR_RATERS, "identity", 0.77544407, 0.14294995, 0.81818182, 0.19032118),
        (FOUR_RATERS, "ordinal", 0.89893977, 0.10690352, 0.96818182, 0.68515625),
        (FOUR_RATERS, "quadratic", 0.91400072, 0.10396224, 0.97537879, 0.71370443),
        (SPARSE, "identity", 0.41356637, 0.11843317, 0.51515152, 0.17322531),
        (SPARSE, "ordinal", 0.22710500, 0.20753702, 0.70909091, 0.62361111),
        (SPARSE, "quadratic", 0.20006006, 0.22466481, 0.71969697, 0.64959491),
    ],
)
def test_worked_examples(
    ratings: np.ndarray, weighting: Weighting, coefficient: float, error: float, observed: float, by_chance: float
) -> None:
    found = gwet(ratings - 1, 5, weighting)
    assert found is not None
    assert found[:4] == pytest.approx((coefficient, error, observed, by_chance), abs=1e-7)
    assert found.rated == 11


def test_two_raters_by_hand() -> None:
    # Three of four pairs equal: 0.75. Shares of "yes": 1, 1, 0, ½, so π = 0.625 and, of two categories,
    # chance = 2·π(1 − π) = 0.46875; AC1 = (0.75 − 0.46875) / 0.53125.
    found = gwet(np.array([[1, 1], [1, 1], [0, 0], [0, 1]], float), 2)
    assert found is not None
    assert found.observed == 0.75
    assert found.by_chance == pytest.approx(0.46875)
    assert found.coefficient == pytest.approx(0.28125 / 0.53125)


def test_weights() -> None:
    assert weights(3, "identity").tolist() == np.eye(3).tolist()
    # Ordinal: 1 − C(|k−l|+1, 2) / C(Q, 2); quadratic: 1 − (k−l)² / (Q−1)².
    assert weights(4, "ordinal")[0].tolist() == pytest.approx([1, 1 - 1 / 6, 1 - 3 / 6, 0])
    assert weights(4, "quadratic")[0].tolist() == pytest.approx([1, 1 - 1 / 9, 1 - 4 / 9, 0])
    for weighting in ("identity", "ordinal", "quadratic"):
        assert (weights(5, weighting) == weights(5, weighting).T).all()


def drawn(subjects: int, raters: int, categories: int, seed: int, *, noise: float = 0.4) -> np.ndarray:
    """Ratings of a truth that each rater misses with some chance; a fifth of them are missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, categories, subjects) if seed % 2 else rng.binomial(categories - 1, 0.2, subjects)
    guesses = rng.integers(0, categories, (subjects, raters))
    ratings = np.where(rng.random((subjects, raters)) < noise, guesses, truth[:, None]).astype(float)
    ratings[rng.random((subjects, raters)) < 0.2] = NAN
    return ratings


@pytest.mark.parametrize("weighting", ["identity", "ordinal", "quadratic"])
@pytest.mark.parametrize("seed", range(4))
def test_the_coefficient_against_pairs_of_raters_one_by_one(weighting: Weighting, seed: int) -> None:
    ratings = drawn(40, 5, 4, seed)
    w, near, shares = weights(4, weighting), [], []
    for row in ratings:
        given = [int(one) for one in row if one == one]
        if given:
            shares.append([given.count(category) / len(given) for category in range(4)])
        if len(given) > 1:
            near.append(np.mean([w[a, b] for a, b in combinations(given, 2)]))
    prevalence = np.mean(shares, axis=0)
    chance = w.sum() / (4 * 3) * sum(p * (1 - p) for p in prevalence)
    found = gwet(ratings, 4, weighting)
    assert found is not None
    assert found.coefficient == pytest.approx((np.mean(near) - chance) / (1 - chance), abs=1e-12)
    assert found.rated == len(near)


def test_who_gave_a_rating_and_where_it_stands_makes_no_difference() -> None:
    ratings = drawn(30, 4, 3, 1)
    shuffled = np.random.default_rng(0).permuted(ratings, axis=1)
    wider = np.column_stack([ratings, np.full((30, 2), NAN)])
    longer = np.vstack([ratings, np.full((5, 4), NAN)])
    for other in (shuffled, wider, longer):
        assert gwet(other, 3, "ordinal") == pytest.approx(gwet(ratings, 3, "ordinal"))


def test_full_agreement_is_one_also_where_everybody_says_the_same() -> None:
    assert gwet(np.array([[0, 0], [1, 1], [2, 2]], float), 3) == pytest.approx((1.0, 0.0, 1.0, 1 / 3, 3))
    same = gwet(np.zeros((6, 3)), 3, "quadratic")
    assert same is not None
    assert same.coefficient == 1.0, "the case in which kappa falls to nothing"


def test_without_a_subject_that_two_have_rated_there_is_nothing() -> None:
    alone = np.array([[1, NAN], [NAN, 0], [NAN, NAN]])
    assert gwet(alone, 2) is None
    assert agreement.interval(alone, 2, Bootstrap(range(3), 0.95, 0)) is None


def test_one_subject_has_no_error() -> None:
    found = gwet(np.array([[1, 1, 0]], float), 2)
    assert found is not None
    assert found.standard_error is None
    assert found.observed == pytest.approx(1 / 3)


def test_a_rating_that_is_no_category_is_refused() -> None:
    with pytest.raises(AssertionError, match="number of a category"):
        gwet(np.array([[1, 5]], float), 5)


def test_errors_and_intervals_are_those_of_chance() -> None:
    # The same raters judge 80 new subjects 300 times: the coefficients spread as the standard error says, and the
    # bootstrap's intervals hold the value of very many subjects about as often as they claim.
    everything = np.concatenate([drawn(4_000, 3, 3, seed) for seed in range(1, 41, 2)])
    truth = gwet(everything, 3, "ordinal")
    assert truth is not None
    found, errors, inside = [], [], 0
    for draw in range(300):
        some = everything[np.random.default_rng(1_000 + draw).integers(0, len(everything), 80)]
        one = gwet(some, 3, "ordinal")
        assert one is not None
        assert one.standard_error is not None
        found.append(one.coefficient)
        errors.append(one.standard_error)
        if draw < 100:
            between = agreement.interval(some, 3, Bootstrap(range(80), 0.9, draw), "ordinal")
            assert between is not None
            assert between.estimate == pytest.approx(one.coefficient, abs=1e-12)
            inside += between.low <= truth.coefficient <= between.high
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.12)
    # Of 100 intervals at 90 % fewer than 82, or more than 97, would come once in a hundred times.
    assert 82 <= inside <= 97
