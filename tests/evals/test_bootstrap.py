"""Resampling prompts: the same draws for every measure, pairs of a prompt together, and the right width."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignment.evals import intervals
from alignment.evals.intervals import Bootstrap, Interval


def by_hand(groups: list[str], seed: int) -> list[list[int]]:
    """The rows of every resample, drawn as :class:`Bootstrap` says: whole groups, with replacement."""
    names = list(dict.fromkeys(groups))
    rng = np.random.default_rng(seed)
    resamples = []
    for _ in range(0, intervals.RESAMPLES, intervals.RESAMPLES_A_BLOCK):
        for drawn in rng.integers(0, len(names), (intervals.RESAMPLES_A_BLOCK, len(names))):
            resamples.append([row for name in drawn for row, group in enumerate(groups) if group == names[name]])
    return resamples


def test_an_interval_is_that_of_a_plain_bootstrap_over_groups() -> None:
    groups = ["a", "b", "a", "c", "d", "d", "d", "e"]
    above, below = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 3.0, 1.0]
    (found,) = Bootstrap(groups, 0.9, 3).ratios(np.array(above)[:, None], np.array(below)[:, None])
    drawn = [sum(above[r] for r in rows) / sum(below[r] for r in rows) for rows in by_hand(groups, 3)]
    assert found == pytest.approx((4.5 / 11, np.quantile(drawn, 0.05), np.quantile(drawn, 0.95)), abs=1e-12)


def test_rows_of_a_prompt_are_drawn_together() -> None:
    """Four copies of every row tell nothing new: the interval is that of one copy, and not half as wide."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 200).astype(float)
    once = Bootstrap(range(200), 0.95, 0).ratios(right[:, None], np.ones((200, 1)))[0]
    copies = np.repeat(right, 4)[:, None]
    together = Bootstrap(np.repeat(range(200), 4).tolist(), 0.95, 0).ratios(copies, np.ones((800, 1)))[0]
    apart = Bootstrap(range(800), 0.95, 0).ratios(copies, np.ones((800, 1)))[0]
    assert together == pytest.approx(once)
    assert once is not None
    assert apart is not None
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_a_mean_has_the_width_that_its_spread_gives() -> None:
    values = np.random.default_rng(1).normal(size=(2_000, 1))
    (found,) = Bootstrap(range(2_000), 0.95, 0).ratios(values, np.ones_like(values))
    assert found is not None
    # ± 1.96 standard errors.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(2_000), rel=0.06)


def test_mirrored_bounds_are_the_basic_bootstraps() -> None:
    assert Interval(0.5, 0.4, 0.75).mirrored(0, 1) == pytest.approx((0.5, 0.25, 0.6))
    assert Interval(0.05, 0.06, 0.13).mirrored(0, 1) == pytest.approx((0.05, 0, 0.04))
    assert Interval(0.9, 0.7, 0.95).mirrored(0, 1) == pytest.approx((0.9, 0.85, 1))


def test_what_is_undefined_is_none_and_resamples_without_it_are_left_out() -> None:
    below = np.zeros((50, 2))
    below[7, 1] = 1
    none, one = Bootstrap(range(50), 0.95, 0).ratios(below, below)
    assert none is None
    assert one == (1, 1, 1), "row 7 is missing in a third of the resamples"


def test_draws_are_the_same_for_every_measure_and_depend_on_the_seed() -> None:
    values = np.random.default_rng(2).normal(size=(40, 1))
    resamples = Bootstrap(range(40), 0.9, 0)
    first, again = (resamples.ratios(values, np.ones_like(values)) for _ in range(2))
    (_, among_others) = resamples.ratios(np.hstack([values * 2, values]), np.ones((40, 2)))
    assert first[0] == again[0] == pytest.approx(among_others)
    assert Bootstrap(range(40), 0.9, 1).ratios(values, np.ones_like(values)) != first
    wider = Bootstrap(range(40), 0.99, 0).ratios(values, np.ones_like(values))[0]
    assert wider is not None
    assert first[0] is not None
    assert wider.low < first[0].low < first[0].high < wider.high
