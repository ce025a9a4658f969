"""KL–reward fronts in plain numbers: what dominates what, how much, at equal KL, and when to stop.

A point is how far a policy has moved (its KL to the start, nats an answer: less is better) and what it is worth (a
score: more is better). A line is points that belong together: the looks of one run, or (1 − η) θ_sft + η θ over η.
WARP (arXiv 2406.16768, §3.3, §4) compares such lines. Axes: P points of a line, K values of KL.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Numbers = Sequence[float] | np.ndarray


def pareto(kl_P: Numbers, score_P: Numbers) -> list[int]:
    """The places of points that no other dominates, by rising KL; of equal points all.

    One dominates another where it has no more KL and no less score, and differs.
    """
    kl_P, score_P = _points(kl_P, score_P)
    found: list[int] = []
    for place in np.lexsort((-score_P, kl_P)):
        # Whatever came before has no more KL: the point stands out if it scores higher, or is the same once more.
        last = found[-1] if found else None
        same = last is not None and (kl_P[last], score_P[last]) == (kl_P[place], score_P[place])
        if last is None or same or score_P[place] > score_P[last]:
            found.append(int(place))
    return found


def hypervolume(kl_P: Numbers, score_P: Numbers, worst: tuple[float, float]) -> float:
    """The area (nats × score) that a line's points dominate, as far as ``worst`` = (KL, score).

    A point dominates what has more KL and a lower score than itself; the steps between points are not cut short, so
    lines are to be compared that have about as many points. One beyond ``worst`` in either counts for nothing.
    """
    kl_P, score_P = _points(kl_P, score_P)
    worst_kl, worst_score = worst
    area, reached = 0.0, worst_score
    for place in pareto(kl_P, score_P):
        if kl_P[place] < worst_kl and score_P[place] > reached:
            area += (worst_kl - kl_P[place]) * (score_P[place] - reached)
            reached = score_P[place]
    return float(area)


def at_kl(kl_P: Numbers, score_P: Numbers, kl_K: Numbers) -> np.ndarray:
    """``score_K``: what the line is worth at given KLs, on straight lines between its points by rising KL.

    NaN outside of the line's range: nothing is known there. Points of one KL count with their mean.
    """
    kl_P, score_P = _points(kl_P, score_P)
    known_U, place_P = np.unique(kl_P, return_inverse=True)
    mean_U = np.bincount(place_P, score_P) / np.bincount(place_P)
    return np.interp(np.asarray(kl_K, dtype=float), known_U, mean_U, left=np.nan, right=np.nan)


def shared_kls(lines: Sequence[Numbers], count: int) -> np.ndarray:
    """``count`` KLs, evenly from the first to the last that lies within the range of every line; none if none does."""
    low = max(float(np.min(kl_P)) for kl_P in lines)
    high = min(float(np.max(kl_P)) for kl_P in lines)
    return np.linspace(low, high, count) if low < high else np.empty(0)


# ── along η ──────────────────────────────────────────────────────────────────────────────────────


def second_differences(eta_P: Numbers, value_P: Numbers) -> np.ndarray:
    """``[P − 2]``: the second derivative at every inner point, from its neighbours; η rises, in steps of any size.

    Twice the divided difference (y₀, y₁, y₂): nowhere positive on a concave line, nowhere negative on a convex one.
    """
    eta_P, value_P = _rising(eta_P, value_P)
    slopes = np.diff(value_P) / np.diff(eta_P)
    return 2 * np.diff(slopes) / (eta_P[2:] - eta_P[:-2])


def bulge(eta_P: Numbers, value_P: Numbers) -> float:
    """How far the line lies above the chord from its first to its last point, on average over η (trapezoids).

    Positive on a concave line, negative on a convex one. All points enter it, each once: of few noisy points it tells
    much more than their second differences.
    """
    eta_P, value_P = _rising(eta_P, value_P)
    chord_P = value_P[0] + (value_P[-1] - value_P[0]) * (eta_P - eta_P[0]) / (eta_P[-1] - eta_P[0])
    above_P = value_P - chord_P
    return float((np.diff(eta_P) * (above_P[1:] + above_P[:-1]) / 2).sum() / (eta_P[-1] - eta_P[0]))


# ── when to stop ─────────────────────────────────────────────────────────────────────────────────


def stops_at(kl_P: Numbers, bound: float) -> int | None:
    """The place of the look at which a run ends: the first whose KL is beyond ``bound``; None where none is.

    WARP looks every 100 steps and ends at 200 nats (§4.1).
    """
    beyond = np.flatnonzero(np.asarray(kl_P, dtype=float) > bound)
    return int(beyond[0]) if len(beyond) else None


def worth_iterations(gains: Sequence[float]) -> int:
    """How many iterations pay: those before the first whose front does not improve on the one before.

    ``gains[i]`` is what iteration i + 2 gains over i + 1, or the lower bound of it; only one above 0 improves. The
    first iteration always counts.
    """
    return 1 + next((place for place, gain in enumerate(gains) if not gain > 0), len(gains))


def _points(kl_P: Numbers, score_P: Numbers) -> tuple[np.ndarray, np.ndarray]:
    kl_P, score_P = np.asarray(kl_P, dtype=float), np.asarray(score_P, dtype=float)
    assert kl_P.shape == score_P.shape, "a score for every point"
    assert np.isfinite(kl_P).all(), "a KL is a number"
    assert np.isfinite(score_P).all(), "a score is a number"
    return kl_P, score_P


def _rising(eta_P: Numbers, value_P: Numbers) -> tuple[np.ndarray, np.ndarray]:
    eta_P, value_P = np.asarray(eta_P, dtype=float), np.asarray(value_P, dtype=float)
    assert len(eta_P) == len(value_P) > 2, "a line that may bend has three points"
    assert (np.diff(eta_P) > 0).all(), "η rises"
    return eta_P, value_P
