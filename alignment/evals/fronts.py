"""Lines of KL–reward points, measured: what dominates, who is above at equal KL, what bends, which model beats others.

A *cloud* holds points that can be compared, since they were measured on the same prompts: models of evaluations, or
looks of runs (on other prompts, so in another cloud). What is asked of it is a function of the means of its points,
answered for every seed. Several seeds give Student's interval over them: a bootstrap of three values knows ten samples,
none beyond the outermost, and covers far too little. Differences are taken seed by seed. One seed gives the percentile
bootstrap over prompts, all models resampled together, or no interval where the answers to single prompts are not there.
Axes: S seeds, N points of a cloud, P prompts, C columns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from alignment.evals.intervals import Bootstrap, Interval
from alignment.merging import front

Told = dict[str, Any]
Kind = Literal["run", "sweep", "points"]

KL = "kl"
BY_LINE = ("hypervolume", "hypervolume_differences", "matched", "curvature")
"""What is told of one score by line, or by pair of lines."""
MATCHED = 5
"""KLs at which two lines are compared, evenly inside of what both reach."""


@dataclass(frozen=True)
class Line:
    """Points that belong together, by their places in the cloud; a sweep knows its η, a run its steps."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    places: tuple[int, ...]
    etas: tuple[float, ...] | None = None
    steps: tuple[int, ...] | None = None


class Answers(NamedTuple):
    """What every prompt's answer got, of one seed: ``groups`` are drawn together, ``values[measure]`` is [P, N]."""

    groups: Sequence[Hashable]
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Cloud:
    """``means[measure]`` is [S, N], NaN where a seed lacks the point; measures are ``kl`` and scores."""

    means: Mapping[str, np.ndarray]
    lines: tuple[Line, ...]
    fingerprints: tuple[str | None, ...]
    """Of each point's model in the first seed; null where it was not kept."""
    names: tuple[str, ...] = ()
    """Of points, where claims may name them."""
    answers: Answers | None = None

    @property
    def scores(self) -> list[str]:
        """What was measured beside the KL."""
        return [name for name in self.means if name != KL]

    def line(self, name: str) -> Line:
        """The line of this name."""
        return next(line for line in self.lines if line.name == name)


class Claim(NamedTuple):
    """That a model scores no less than the best of others."""

    model: str
    than: tuple[str, ...]


class Numbers(NamedTuple):
    """What is asked. ``worst`` is the hypervolume's KL and, by score, its score."""

    pairs: Sequence[tuple[str, str]]
    claims: Sequence[Claim]
    kls: Sequence[float] | None
    worst: tuple[float, Mapping[str, float]]
    confidence: float
    seed: int


Ask = Callable[[np.ndarray, np.ndarray], float]


class Question(NamedTuple):
    """``ask(kl_N, score_N)`` of the points at ``places``; a replicate that lacks one of them has no answer."""

    key: tuple[Any, ...]
    places: tuple[int, ...]
    ask: Ask

    def value(self, kl_N: np.ndarray, score_N: np.ndarray) -> float:
        """NaN where a point is missing."""
        places = list(self.places)
        known = np.isfinite(kl_N[places]).all() and np.isfinite(score_N[places]).all()
        return self.ask(kl_N, score_N) if known else math.nan


# ── intervals ────────────────────────────────────────────────────────────────────────────────────


def over_seeds(values: Sequence[float], confidence: float) -> Told | None:
    """The mean with Student's interval (n − 1 degrees of freedom); NaNs are left out, one value has no bounds."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return None
    told: Told = {"estimate": float(known.mean()), "low": None, "high": None, "seeds": [float(one) for one in known]}
    if len(known) > 1:
        half = t_quantile(confidence, len(known) - 1) * float(known.std(ddof=1)) / math.sqrt(len(known))
        told |= {"low": told["estimate"] - half, "high": told["estimate"] + half}
    return told


def t_quantile(confidence: float, freedom: int) -> float:
    """The t below which |T| lies with probability ``confidence``: 4.303 for 0.95 and 2 degrees of freedom."""
    low, high = 0.0, 1.0
    while _t_within(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _t_within(t: float, freedom: int) -> float:
    """P(|T| ≤ t) for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= (power - 1) / power * math.cos(angle) ** 2
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * (total if freedom > 1 else 0.0))


def verdict(one: Mapping[str, Any] | None) -> str:
    """``above`` or ``below`` 0, or neither beyond chance; ``unknown`` without bounds."""
    if one is None or one["low"] is None:
        return "unknown"
    return "above" if one["low"] > 0 else "below" if one["high"] < 0 else "within noise"


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


def answered(cloud: Cloud, score: str, questions: Sequence[Question], numbers: Numbers) -> dict[Any, Told | None]:
    """Every question's answer with its interval, by its key."""
    kl_SN, score_SN = cloud.means[KL], cloud.means[score]
    values = {
        one.key: over_seeds(
            [one.value(kl_N, score_N) for kl_N, score_N in zip(kl_SN, score_SN, strict=True)], numbers.confidence
        )
        for one in questions
    }
    if cloud.answers is None or not questions:
        return values
    bounds = _over_prompts(cloud.answers, score, questions, numbers)
    return {key: value and value | bound for (key, value), bound in zip(values.items(), bounds, strict=True)}


def _over_prompts(answers: Answers, score: str, questions: Sequence[Question], numbers: Numbers) -> list[Told]:
    """The bounds of every question among resamples of the prompts."""
    kl_PN, score_PN = answers.values[KL], answers.values[score]
    points = kl_PN.shape[1]
    columns_PC = np.concatenate([kl_PN, score_PN, np.ones((len(kl_PN), 1))], axis=1)

    def statistic(sums: np.ndarray) -> np.ndarray:
        means = sums[..., :-1] / sums[..., -1:]
        rows = [[one.ask(mean[:points], mean[points:]) for one in questions] for mean in means.reshape(-1, 2 * points)]
        return np.array(rows).reshape(*means.shape[:-1], len(questions))

    found = Bootstrap(answers.groups, numbers.confidence, numbers.seed).interval(columns_PC, statistic)
    return [_bounds(one) for one in found]


def _bounds(one: Interval | None) -> Told:
    return {} if one is None else {"low": one.low, "high": one.high}


def _less(first: Ask, second: Ask) -> Ask:
    return lambda kl_N, score_N: first(kl_N, score_N) - second(kl_N, score_N)


def _volume(line: Line, worst: tuple[float, float]) -> Ask:
    places = list(line.places)
    return lambda kl_N, score_N: front.hypervolume(kl_N[places], score_N[places], worst)


def _volumes(cloud: Cloud, score: str, numbers: Numbers) -> list[Question]:
    """The hypervolume of every line, and of every pair the difference."""
    worst = (numbers.worst[0], numbers.worst[1][score])
    found = [Question((line.name,), line.places, _volume(line, worst)) for line in cloud.lines]
    for a, b in _pairs(cloud, numbers):
        less = _less(_volume(a, worst), _volume(b, worst))
        found.append(Question((a.name, b.name), (*a.places, *b.places), less))
    return found


def _matched(cloud: Cloud, a: Line, b: Line, numbers: Numbers) -> list[Question]:
    """Score of ``a`` less that of ``b`` at KLs that both reach in every seed."""
    ranges = [kl_N[list(line.places)] for kl_N in cloud.means[KL] for line in (a, b)]
    inside = front.shared_kls([one for one in ranges if np.isfinite(one).all()], MATCHED + 2)[1:-1]

    def at(line: Line, kl: float) -> Ask:
        places = list(line.places)
        return lambda kl_N, score_N: float(front.at_kl(kl_N[places], score_N[places], [kl])[0])

    kls = [float(kl) for kl in (inside if numbers.kls is None else numbers.kls)]
    return [Question((kl,), (*a.places, *b.places), _less(at(a, kl), at(b, kl))) for kl in kls]


def _bends(line: Line) -> list[Question]:
    """Bulge and second differences over η, of the score and of the KL."""
    if line.etas is None or len(line.etas) < 3:
        return []
    etas = line.etas

    def bulge(kl_N: np.ndarray, score_N: np.ndarray, kl: bool, at: list[int]) -> float:
        return front.bulge(etas, (kl_N if kl else score_N)[at])

    def second(kl_N: np.ndarray, score_N: np.ndarray, kl: bool, at: list[int], inner: int) -> float:
        return float(front.second_differences(etas[inner : inner + 3], (kl_N if kl else score_N)[at])[0])

    found = []
    for what in ("score", KL):
        whole = list(line.places)
        found.append(Question((what, "bulge"), line.places, partial(bulge, kl=what == KL, at=whole)))
        for inner in range(len(etas) - 2):
            three = whole[inner : inner + 3]
            ask = partial(second, kl=what == KL, at=three, inner=inner)
            found.append(Question((what, inner), tuple(three), ask))
    return found


def _claimed(cloud: Cloud, claims: Sequence[Claim]) -> list[Question]:
    """The model's score less that of the best of the others, and its KL less that one's KL."""

    def score(_: np.ndarray, score_N: np.ndarray, model: int, than: list[int]) -> float:
        return float(score_N[model] - score_N[than].max())

    def kl(kl_N: np.ndarray, score_N: np.ndarray, model: int, than: list[int]) -> float:
        return float(kl_N[model] - kl_N[than][np.argmax(score_N[than])])

    found = []
    for number, claim in enumerate(claims):
        model, than = cloud.names.index(claim.model), [cloud.names.index(name) for name in claim.than]
        for what, ask in (("score", score), (KL, kl)):
            found.append(Question((number, what), (model, *than), partial(ask, model=model, than=than)))
    return found


def _pairs(cloud: Cloud, numbers: Numbers) -> list[tuple[Line, Line]]:
    names = {line.name for line in cloud.lines}
    return [(cloud.line(a), cloud.line(b)) for a, b in numbers.pairs if {a, b} <= names]


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


def lines(cloud: Cloud, numbers: Numbers) -> Told:
    """Every line with its points: means over seeds, their bounds, and each seed's own points."""
    found = {measure: _points(cloud, measure, numbers) for measure in cloud.means}
    told: Told = {}
    for line in cloud.lines:
        points = []
        for number, place in enumerate(line.places):
            known = {name: found[name][place] for name in cloud.scores}
            scores = {name: one for name, one in known.items() if one is not None}
            kl = found[KL][place]
            assert kl is not None, "a point was measured by one seed at least"
            points.append(
                {
                    "label": line.labels[number],
                    "kl": kl["estimate"],
                    "scores": {name: one["estimate"] for name, one in scores.items()},
                    "low": {KL: kl["low"], **{name: one["low"] for name, one in scores.items()}},
                    "high": {KL: kl["high"], **{name: one["high"] for name, one in scores.items()}},
                    "seeds": {KL: kl["seeds"], **{name: one["seeds"] for name, one in scores.items()}},
                    "model": cloud.fingerprints[place],
                    "eta": line.etas[number] if line.etas else None,
                    "step": line.steps[number] if line.steps else None,
                }
            )
        told[line.name] = {"kind": line.kind, "seeds": len(points[0]["seeds"][KL]), "points": points}
    return told


def _points(cloud: Cloud, measure: str, numbers: Numbers) -> list[Told | None]:
    """Every point's mean, by its place."""
    told = [over_seeds(list(value_S), numbers.confidence) for value_S in cloud.means[measure].T]
    if cloud.answers is None:
        return told
    values_PN = cloud.answers.values[measure]
    resamples = Bootstrap(cloud.answers.groups, numbers.confidence, numbers.seed)
    bounds = resamples.ratios(values_PN, np.ones_like(values_PN))
    return [one and one | _bounds(bound) for one, bound in zip(told, bounds, strict=True)]


def pareto(told: Mapping[str, Any], names: Sequence[str], score: str) -> list[list[Any]]:
    """``[line, place in it]`` of the points that none dominates, of the lines that have the score."""
    points = [
        (name, place, point)
        for name in names
        for place, point in enumerate(told[name]["points"])
        if score in point["scores"]
    ]
    if not points:
        return []
    found = front.pareto([one["kl"] for *_, one in points], [one["scores"][score] for *_, one in points])
    return [[*points[place][:2]] for place in found]


def measured(cloud: Cloud, score: str, numbers: Numbers) -> Told:
    """Everything that is asked of one score: ``hypervolume``, ``matched``, ``curvature``, ``claims``."""
    volumes = answered(cloud, score, _volumes(cloud, score, numbers), numbers)
    pairs = _pairs(cloud, numbers)
    return {
        "hypervolume": {key[0]: one for key, one in volumes.items() if len(key) == 1 and one},
        "hypervolume_differences": {
            pair_name(*key): one | {"verdict": verdict(one)} for key, one in volumes.items() if len(key) == 2 and one
        },
        "matched": {pair_name(a.name, b.name): _told_matched(cloud, score, a, b, numbers) for a, b in pairs},
        "curvature": {line.name: _told_bends(cloud, score, line, numbers) for line in cloud.lines if _bends(line)},
        "claims": _told_claims(cloud, score, numbers),
    }


def pair_name(a: str, b: str) -> str:
    """What a difference is called."""
    return f"{a} - {b}"


def _told_matched(cloud: Cloud, score: str, a: Line, b: Line, numbers: Numbers) -> list[Told]:
    found = answered(cloud, score, _matched(cloud, a, b, numbers), numbers)
    return [{"kl": kl, **one, "verdict": verdict(one)} for (kl,), one in found.items() if one]


def _told_bends(cloud: Cloud, score: str, line: Line, numbers: Numbers) -> Told:
    """Of the score and of the KL: ``bulge``, ``second_differences``, and whether it bends beyond chance."""
    found = answered(cloud, score, _bends(line), numbers)
    told: Told = {}
    for what in ("score", KL):
        one = found[(what, "bulge")]
        shape = {"above": "concave", "below": "convex"}.get(verdict(one), verdict(one))
        second = [value for key, value in found.items() if key[0] == what and key[1] != "bulge"]
        told[what] = {"bulge": one, "second_differences": second, "shape": shape}
    return told


def _told_claims(cloud: Cloud, score: str, numbers: Numbers) -> list[Told]:
    claims = [one for one in numbers.claims if {one.model, *one.than} <= set(cloud.names)]
    found = answered(cloud, score, _claimed(cloud, claims), numbers)
    return [
        {
            "model": claim.model,
            "than": list(claim.than),
            **(found[(number, "score")] or {}),
            "kl": found[(number, KL)],
            "verdict": verdict(found[(number, "score")]),
        }
        for number, claim in enumerate(claims)
        if found[(number, "score")]
    ]


def rules(told: Mapping[str, Any], kl_bound: float | None, iterations: Sequence[str]) -> Told:
    """WARP's: the first point of each line beyond the bound, and how many iterations improve on the one before."""
    stops = {}
    for name, line in told["lines"].items():
        place = None if kl_bound is None else front.stops_at([point["kl"] for point in line["points"]], kl_bound)
        stops[name] = None if place is None else line["points"][place]["label"]
    gains = [pair_name(after, before) for before, after in itertools.pairwise(iterations)]
    worth = {}
    for score, differences in told["hypervolume_differences"].items() if gains else ():
        known = [differences[name]["low"] for name in gains if name in differences]
        if len(known) == len(gains) and None not in known:
            worth[score] = front.worth_iterations(known)
    return {"kl_bound": kl_bound, "stops": stops, "iterations": list(iterations), "gains": gains, "worth": worth}
