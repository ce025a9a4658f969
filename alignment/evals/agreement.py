"""How far several raters agree beyond chance: Gwet's AC1 and AC2, for any number of raters and with missing ratings.

AC1 counts equal ratings; AC2 also credits near ones, by weights on an ordered scale (Gwet 2008, Br. J. Math. Stat.
Psychol. 61; Gwet 2014, Handbook of Inter-Rater Reliability, ch. 4–5). Unlike κ, neither falls where nearly everybody
says the same. Llama 2 reports AC2 for helpfulness and AC1/AC2 for safety (arXiv 2307.09288, §3.4 and §4.4).

Who gave a rating does not matter, so columns of ratings are places and not people. Axes: S subjects, R places for
ratings, Q categories, numbered from 0 in their order.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from alignment.evals.intervals import Bootstrap, Interval

Weighting = Literal["identity", "ordinal", "quadratic"]


class Agreement(NamedTuple):
    """A coefficient with Gwet's standard error (of subjects drawn from very many), and what it is made of.

    The error is None where there are fewer than two subjects. ``rated`` counts subjects with two ratings or more.
    """

    coefficient: float
    standard_error: float | None
    observed: float
    by_chance: float
    rated: int


def weights(categories: int, weighting: Weighting) -> np.ndarray:
    """``w_QQ``: 1 for equal ratings, less for those further apart; ``identity`` credits equal ones alone."""
    assert categories >= 2, "raters can only differ between two categories or more"
    apart_QQ = np.abs(np.subtract.outer(np.arange(categories), np.arange(categories))).astype(float)
    if weighting == "identity":
        return (apart_QQ == 0).astype(float)
    far = categories - 1
    if weighting == "ordinal":
        return 1 - apart_QQ * (apart_QQ + 1) / (far * (far + 1))
    return 1 - apart_QQ**2 / far**2


def gwet(ratings_SR: np.ndarray, categories: int, weighting: Weighting = "identity") -> Agreement | None:
    """AC1 (``identity``) or AC2 of ratings 0 … ``categories`` − 1, NaN where there is none.

    None where no subject has two ratings: there is nothing to agree about.
    """
    columns_SK = _columns(ratings_SR, categories, weighting)
    columns_SK = columns_SK[columns_SK[:, 2] > 0]
    if not columns_SK[:, 0].any():
        return None
    subjects, (rated, agreeing) = len(columns_SK), columns_SK[:, :2].sum(0)
    spread = weights(categories, weighting).sum() / (categories * (categories - 1))
    shares_SQ = columns_SK[:, 3:]
    prevalence_Q = shares_SQ.mean(0)
    observed = agreeing / rated
    by_chance = float(spread * (prevalence_Q * (1 - prevalence_Q)).sum())
    coefficient = (observed - by_chance) / (1 - by_chance)
    # The part of each subject, by linearising both probabilities (Gwet 2014, eq. 5.3.14).
    several_S = columns_SK[:, 0]
    part_S = subjects / rated * (columns_SK[:, 1] - by_chance * several_S) / (1 - by_chance)
    chance_S = spread * (shares_SQ * (1 - prevalence_Q)).sum(1)
    part_S = part_S - 2 * (1 - coefficient) * (chance_S - by_chance) / (1 - by_chance)
    error = None
    if subjects > 1:
        error = float(np.sqrt(((part_S - coefficient) ** 2).sum() / (subjects * (subjects - 1))))
    return Agreement(float(coefficient), error, float(observed), by_chance, int(rated))


def interval(
    ratings_SR: np.ndarray, categories: int, resamples: Bootstrap, weighting: Weighting = "identity"
) -> Interval | None:
    """The same coefficient with a bootstrap over the groups of subjects that ``resamples`` draws."""
    spread = weights(categories, weighting).sum() / (categories * (categories - 1))

    def coefficient(sums: np.ndarray) -> np.ndarray:
        prevalence = sums[..., 3:] / sums[..., 2:3]
        by_chance = spread * (prevalence * (1 - prevalence)).sum(-1)
        value: np.ndarray = (sums[..., 1] / sums[..., 0] - by_chance) / (1 - by_chance)
        return value[..., None]

    return resamples.interval(_columns(ratings_SR, categories, weighting), coefficient)[0]


def _columns(ratings_SR: np.ndarray, categories: int, weighting: Weighting) -> np.ndarray:
    """What the coefficient is a function of, summed over subjects (S, 3 + Q).

    Whether a subject has two ratings, the agreement of its pairs of raters, whether it has any, and the share of its
    ratings in each category.
    """
    counts_SQ = np.stack([(ratings_SR == category).sum(1) for category in range(categories)], axis=1).astype(float)
    given_S = counts_SQ.sum(1)
    assert (given_S == np.isfinite(ratings_SR).sum(1)).all(), "a rating is the number of a category, or missing"
    near_SQ = counts_SQ @ weights(categories, weighting)
    pairs_S = given_S * (given_S - 1)
    agreeing_S = (counts_SQ * (near_SQ - 1)).sum(1) / np.maximum(pairs_S, 1)
    several_S = given_S >= 2
    shares_SQ = counts_SQ / np.maximum(given_S, 1)[:, None]
    return np.column_stack([several_S, np.where(several_S, agreeing_S, 0.0), given_S > 0, shares_SQ])
