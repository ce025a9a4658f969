"""How sure a mean is: bootstrap intervals over prompts, for means, paired differences and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2_000


class Interval(NamedTuple):
    """An estimate and the bounds between which it lies at the stated confidence."""

    estimate: float
    low: float
    high: float


def mean(values: Sequence[float] | np.ndarray, confidence: float, seed: int) -> Interval:
    """The mean, with a percentile bootstrap over the values (Efron 1979)."""
    return ratio(values, np.ones(len(values)), confidence, seed)


def difference(a: Sequence[float], b: Sequence[float], confidence: float, seed: int) -> Interval:
    """The mean of ``a − b``, prompt by prompt: much narrower than two intervals beside each other."""
    assert len(a) == len(b), "paired values belong to the same prompts"
    return mean(np.asarray(a) - np.asarray(b), confidence, seed)


def ratio(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, confidence: float, seed: int
) -> Interval:
    """``Σ above / Σ below``, rows resampled together (a mean per token, where rows have many tokens)."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    assert len(above) == len(below), "the two belong to the same rows"
    assert len(above) > 0, "an interval needs values"
    rng = np.random.default_rng(seed)
    estimates = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 100):
        drawn = rng.integers(0, len(above), (100, len(above)))
        estimates[start : start + 100] = above[drawn].sum(1) / below[drawn].sum(1)
    low, high = np.quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))
