"""How sure a mean is: bootstrap intervals over prompts, for means, paired differences, ratios and functions of sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

RESAMPLES = 2_000
RESAMPLES_A_BLOCK = 100
"""Resamples that are drawn and summed at once."""
FEW = 20
"""Draws unlike the commonest up to which exact bounds are taken: so few are too few to resample."""
KINDS = 9
"""Values up to which they count as kinds of draws: differences of arms of four seeds have nine."""


class Interval(NamedTuple):
    """An estimate and the bounds between which it lies at the stated confidence."""

    estimate: float
    low: float
    high: float

    def mirrored(self, least: float, most: float) -> Interval:
        """The basic bootstrap's bounds, from the percentile's and within ``least`` … ``most`` (Efron 1979).

        For what chance only ever adds to, as it does to a mean of absolute values: a resample adds as much once
        more, which the percentile's bounds count twice and these take off. The estimate can lie above both.
        """
        low, high = (min(max(2 * self.estimate - bound, least), most) for bound in (self.high, self.low))
        return Interval(self.estimate, low, high)


def mean(values: Sequence[float] | np.ndarray, confidence: float, seed: int) -> Interval:
    """The mean, with a percentile bootstrap over the values (Efron 1979)."""
    return ratio(values, np.ones(len(values)), confidence, seed)


def difference(a: Sequence[float], b: Sequence[float], confidence: float, seed: int) -> Interval:
    """The mean of ``a − b``, prompt by prompt: much narrower than two intervals beside each other."""
    assert len(a) == len(b), "paired values belong to the same prompts"
    return mean(np.asarray(a) - np.asarray(b), confidence, seed)


def mean_of_seeds(values_SP: Sequence[np.ndarray]) -> np.ndarray:
    """Of every prompt the mean over the seeds S that have a value; NaN where none has."""
    there_SP = ~np.isnan(values_SP)
    with np.errstate(invalid="ignore"):
        return np.where(there_SP, values_SP, 0.0).sum(0) / there_SP.sum(0)


def unpaired(a: Interval, b: Interval) -> Interval:
    """``a − b`` from an interval of each, as if they were independent (Newcombe 1998, method 10; Zou & Donner 2008).

    Wider than it would be prompt by prompt where what is hard for one is hard for the other.
    """
    gap = a.estimate - b.estimate
    low = gap - math.hypot(a.estimate - a.low, b.high - b.estimate)
    return Interval(gap, low, gap + math.hypot(a.high - a.estimate, b.estimate - b.low))


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent estimates, and its bounds from theirs (Zou & Donner 2008, MOVER).

    What is measured on the same questions is not independent, and the bounds are then too narrow.
    """
    count = len(intervals)
    middle = sum(one.estimate for one in intervals) / count
    below = math.hypot(*(one.estimate - one.low for one in intervals)) / count
    above = math.hypot(*(one.high - one.estimate for one in intervals)) / count
    return Interval(middle, middle - below, middle + above)


def widened(interval: Interval, count: int, confidence: float, least: float, most: float) -> Interval:
    """The interval where all of ``count`` independent values are equal, of which a bootstrap says there is no doubt.

    At most 1 − (½ − ½ confidence)^(1/count) of all values are unlike those that were seen: the exact bound where an
    event did not occur (Clopper & Pearson 1934, doi 10.1093/biomet/26.4.404). These lie at ``least`` or at ``most``.
    """
    if not math.isclose(interval.low, interval.high, rel_tol=1e-9, abs_tol=1e-12):
        return interval
    unlike, middle = 1 - ((1 - confidence) / 2) ** (1 / count), interval.estimate
    return Interval(middle, middle - unlike * (middle - least), middle + unlike * (most - middle))


def of_few(interval: Interval, counts: Mapping[float, int], confidence: float, least: float, most: float) -> Interval:
    """The interval of the mean of values between ``least`` and ``most`` of which few are unlike the commonest.

    ``counts`` says how many independent draws have which value: of a share 1 and 0, of a paired difference of two −1, 0
    and 1, of seeds' means those between. The mean is the commonest plus Σ (value − commonest) × its share; each share
    has its exact bounds (:func:`exact_share`), those of the outermost values also where nobody has them, and they are
    joined as if independent (Zou & Donner 2008, MOVER). Of a single share they are Clopper and Pearson's. Of 200 draws
    a percentile bootstrap covers rare shares and differences in 85 % of the cases where 95 % are asked for.
    """
    total, commonest = sum(counts.values()), max(counts, key=lambda value: counts[value])
    if total - counts[commonest] > FEW or len(counts) > KINDS:
        return interval
    below = above = 0.0
    for value, events in ({least: 0, most: 0} | dict(counts)).items():
        low, high = exact_share(events, total, confidence)
        gaps = sorted((value - commonest) * (bound - events / total) for bound in (low, high))
        below, above = math.hypot(below, gaps[0]), math.hypot(above, gaps[1])
    middle = interval.estimate
    return Interval(middle, max(middle - below, least), min(middle + above, most))


def exact_share(events: int, count: int, confidence: float) -> tuple[float, float]:
    """Bounds of the share of which ``events`` of ``count`` draws were seen (Clopper & Pearson 1934).

    The smallest and the largest that would show as many, or as few, with a chance of half of what is left.
    """
    if 2 * events > count:
        low, high = exact_share(count - events, count, confidence)
        return 1 - high, 1 - low
    rest = (1 - confidence) / 2
    return 0.0 if events == 0 else _share_at(1 - rest, events - 1, count), _share_at(rest, events, count)


def _share_at(chance: float, events: int, count: int) -> float:
    """The share at which there are at most so many events with this chance, to 1e-12."""
    ways = [math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1) for n in range(events + 1)]
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        share = (low + high) / 2
        yes, no = math.log(share), math.log1p(-share)
        at_most = math.fsum(math.exp(way + n * yes + (count - n) * no) for n, way in enumerate(ways))
        low, high = (share, high) if at_most > chance else (low, share)
    return low


def ratio(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, confidence: float, seed: int
) -> Interval:
    """``Σ above / Σ below``, rows resampled together (a mean per token, where rows have many tokens)."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    assert len(above) == len(below), "the two belong to the same rows"
    assert len(above) > 0, "an interval needs values"
    rng = np.random.default_rng(seed)
    estimates = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, RESAMPLES_A_BLOCK):
        drawn = rng.integers(0, len(above), (RESAMPLES_A_BLOCK, len(above)))
        estimates[start : start + RESAMPLES_A_BLOCK] = above[drawn].sum(1) / below[drawn].sum(1)
    low, high = np.quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


class Bootstrap:
    """Resamples of groups of rows: the pairs of one prompt are drawn together, in the same draws for every measure.

    Whatever can be computed from sums over rows gets its interval from the sums of each resample, so that many
    measures cost one product of matrices. Axes: P rows, G groups, R resamples, K columns, J statistics.
    """

    def __init__(self, groups: Sequence[Hashable], confidence: float, seed: int) -> None:
        """``groups`` says for every row to which group (prompt) it belongs."""
        assert len(groups) > 0, "an interval needs rows"
        numbers: dict[Hashable, int] = {}
        group_P = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
        self.confidence, self.seed, self.groups = confidence, seed, len(numbers)
        self._group_P = group_P
        self._order = np.argsort(group_P, kind="stable")
        self._starts = np.searchsorted(group_P[self._order], np.arange(self.groups))

    @cached_property
    def _times_RG(self) -> np.ndarray:
        return _times_drawn(self.groups, self.seed)

    def interval(self, columns_PK: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> list[Interval | None]:
        """Intervals of statistics of sums. ``statistic`` takes sums (…, K) to values (…, J), NaN where undefined.

        None where a statistic is undefined for the rows themselves; resamples in which it is are left out.
        """
        sums_GK = np.add.reduceat(columns_PK[self._order], self._starts, axis=0)
        blocks = [
            self._times_RG[start : start + RESAMPLES_A_BLOCK].astype(float) @ sums_GK
            for start in range(0, RESAMPLES, RESAMPLES_A_BLOCK)
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            estimates_J = statistic(sums_GK.sum(0))
            resampled_RJ = statistic(np.concatenate(blocks))
        return [self._between(*one) for one in zip(estimates_J, resampled_RJ.T, strict=True)]

    def ratios(self, above_PK: np.ndarray, below_PK: np.ndarray) -> list[Interval | None]:
        """``Σ above / Σ below`` for every column; None where the sum below is 0."""
        columns = above_PK.shape[1]
        return self.interval(
            np.concatenate([above_PK, below_PK], axis=1).astype(float),
            lambda sums: np.where(sums[..., columns:] == 0, np.nan, sums[..., :columns] / sums[..., columns:]),
        )

    def groups_of(self, mask_P: np.ndarray) -> int:
        """How many groups have one of these rows."""
        return len(np.unique(self._group_P[mask_P]))

    def bounded(
        self, interval: Interval, mask_P: np.ndarray, value_P: np.ndarray, least: float, most: float
    ) -> Interval:
        """The interval of a mean of these rows' values, with the doubt that few unlike ones, or none, leave.

        What a bootstrap sees of it is what was seen: :func:`of_few` and :func:`widened` say how much more there is.
        """
        counts = self._counts(mask_P, value_P)
        if counts is not None:
            interval = of_few(interval, counts, self.confidence, least, most)
        return widened(interval, self.groups_of(mask_P), self.confidence, least, most)

    def _counts(self, mask_P: np.ndarray, value_P: np.ndarray) -> dict[float, int] | None:
        """How many groups have which mean; None where groups differ in how many of these rows they have."""
        rows_G = np.bincount(self._group_P[mask_P], minlength=self.groups)
        sums_G = np.bincount(self._group_P[mask_P], value_P[mask_P], self.groups)[rows_G > 0]
        rows_G = rows_G[rows_G > 0]
        if not len(rows_G) or (rows_G != rows_G[0]).any():
            return None
        values, counts = np.unique(np.round(sums_G / rows_G, 9), return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def interval_of_rows(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval | None:
        """Of what is no function of sums: ``statistic`` takes how often each row is drawn (R, P) to R values.

        The rows themselves are one more draw, of each row once. None where the statistic is undefined for them.
        """
        drawn = [
            statistic(self._times_RG[start : start + RESAMPLES_A_BLOCK][:, self._group_P].astype(float))
            for start in range(0, RESAMPLES, RESAMPLES_A_BLOCK)
        ]
        return self._between(statistic(np.ones((1, len(self._group_P))))[0], np.concatenate(drawn))

    def _between(self, estimate: float, resampled_R: np.ndarray) -> Interval | None:
        defined = resampled_R[np.isfinite(resampled_R)]
        if not np.isfinite(estimate) or not len(defined):
            return None
        low, high = np.quantile(defined, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Interval(float(estimate), float(low), float(high))


def _times_drawn(groups: int, seed: int) -> np.ndarray:
    """``times_RG``: how often each resample draws each group. Bytes, since no group comes 256 times."""
    rng = np.random.default_rng(seed)
    times_RG = np.empty((RESAMPLES, groups), np.uint8)
    for start in range(0, RESAMPLES, RESAMPLES_A_BLOCK):
        drawn = rng.integers(0, groups, (RESAMPLES_A_BLOCK, groups))
        flat = drawn + groups * np.arange(RESAMPLES_A_BLOCK)[:, None]
        counts = np.bincount(flat.ravel(), minlength=RESAMPLES_A_BLOCK * groups)
        times_RG[start : start + RESAMPLES_A_BLOCK] = counts.reshape(RESAMPLES_A_BLOCK, groups)
    return times_RG
