"""Every measure of a judge against a loop in plain Python that was written apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from judged_support import columns, comparison, comparisons, said, scores

from alignment.chat.types import Comparison
from alignment.evals import preferences
from alignment.evals.preferences import Pairs, Said

COUNT = 300
ROWS = comparisons(COUNT)
PAIRS = columns(ROWS)
RESAMPLES = preferences.bootstrap(PAIRS, 0.95, 0)
SAID = said(COUNT)
RAW: list[tuple[float, float]] = [(float(a), float(b)) for a, b in scores(COUNT)]


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def right(pair: tuple[float, float]) -> float:
    return 0.5 if pair[0] == pair[1] else float(pair[0] > pair[1])


def few(rows: list[Comparison], raw: list[tuple[float, float]], limits: Any = None) -> preferences.Measure:
    """Everything about a few pairs."""
    pairs, raw_PA = columns(rows), np.array(raw, float)
    judged = Said.scores(raw_PA, preferences.sigmoid(raw_PA), True)
    return preferences.measure(pairs, judged, preferences.bootstrap(pairs, 0.95, 0), limits)


# ── accuracy ─────────────────────────────────────────────────────────────────────────────────────


def length_of(row: Comparison) -> str:
    a, b = len(row.chosen), len(row.rejected)
    if abs(a - b) <= max(a, b) / 10:
        return "about equal"
    return "chosen shorter" if a < b else "chosen longer"


def safety_of(row: Comparison) -> str | None:
    if row.chosen_safe is None or row.rejected_safe is None:
        return None
    return "/".join("safe" if safe else "unsafe" for safe in (row.chosen_safe, row.rejected_safe))


def turns_of(row: Comparison) -> str:
    count = len([turn for turn in row.prompt if turn.role == "user"])
    return "4+" if count >= 4 else str(count)


KINDS: dict[str, Callable[[Comparison], str | None]] = {
    "all": lambda row: "all",
    "grade": lambda row: row.grade or "not graded",
    "source": lambda row: row.source,
    "turns": turns_of,
    "length": length_of,
    "safety": safety_of,
}


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_by(kind: str) -> None:
    found = preferences.accuracy(PAIRS, SAID.right_P, RESAMPLES)[kind]
    wanted: dict[str, list[float]] = {}
    for row, pair in zip(ROWS, RAW, strict=True):
        value = KINDS[kind](row)
        if value is not None:
            wanted.setdefault(value, []).append(right(pair))
    assert {value: one["count"] for value, one in found.items()} == {value: len(r) for value, r in wanted.items()}
    for value, one in found.items():
        assert one["estimate"] == pytest.approx(statistics.fmean(wanted[value]))
        assert one["low"] <= one["estimate"] <= one["high"]
    assert len(found) == {"all": 1, "grade": 5, "source": 2, "turns": 4, "length": 3, "safety": 4}[kind]


def test_grades_come_from_the_strongest_down() -> None:
    grades = [*preferences.accuracy(PAIRS, SAID.right_P, RESAMPLES)["grade"]]
    assert grades == ["significantly", "better", "slightly", "negligibly", "not graded"]


def test_equal_scores_are_half_right() -> None:
    rows = [comparison(name) for name in "abc"]
    assert few(rows, [(1, 1), (2, 1), (0, 1)])["accuracy"]["all"]["all"]["estimate"] == 0.5
    assert few(rows, [(1, 1), (2, 1), (3, 1)])["accuracy"]["all"]["all"]["estimate"] == pytest.approx(2.5 / 3)


def test_lengths_are_about_equal_up_to_a_tenth_of_the_longer() -> None:
    edges = [comparison(f"{a}-{b}", "c" * a, "r" * b) for a, b in ((90, 100), (89, 100), (100, 90), (100, 89))]
    found = preferences.slices(columns(edges))["length"]
    assert {value: np.flatnonzero(mask).tolist() for value, mask in found.items()} == {
        "chosen shorter": [1],
        "about equal": [0, 2],
        "chosen longer": [3],
    }


def test_pairs_of_one_opening_message_are_one_prompt() -> None:
    rows = [comparison("a", question="Why? "), comparison("b", question="why?", turns=3), comparison("c")]
    pairs = columns(rows)
    assert pairs.prompts[0] == pairs.prompts[1] != pairs.prompts[2]
    assert preferences.bootstrap(pairs, 0.95, 0).groups == 2


def test_the_longer_answer_as_a_judge() -> None:
    wanted = [right((len(row.chosen), len(row.rejected))) for row in ROWS]
    assert preferences.longer_wins(PAIRS).tolist() == wanted
    assert 0.5 in wanted


# ── calibration ──────────────────────────────────────────────────────────────────────────────────


def test_calibration_is_that_of_guo() -> None:
    found = preferences.calibration(SAID.raw_PA, RESAMPLES)
    binned: dict[int, list[tuple[float, float]]] = {}
    for pair in RAW:
        sure = logistic(abs(pair[0] - pair[1]))
        binned.setdefault(min(int((sure - 0.5) * 20 + 1e-9), 9), []).append((sure, right(pair)))
    error = sum(
        len(some) / COUNT * abs(statistics.fmean(r for _, r in some) - statistics.fmean(s for s, _ in some))
        for some in binned.values()
    )
    assert found["error"]["estimate"] == pytest.approx(error)
    assert found["error"]["low"] < found["error"]["high"]
    assert [one["count"] for one in found["bins"]] == [len(binned[place]) for place in sorted(binned)]
    for one, place in zip(found["bins"], sorted(binned), strict=True):
        assert (one["low"], one["high"]) == pytest.approx((0.5 + place / 20, 0.55 + place / 20))
        assert one["confidence"] == pytest.approx(statistics.fmean(sure for sure, _ in binned[place]))
        assert one["accuracy"]["estimate"] == pytest.approx(statistics.fmean(r for _, r in binned[place]))


def test_calibration_of_extremes() -> None:
    # σ(±1000) = 1 belongs to the last bin, σ(0) = ½ to the first; a sure judge that is always wrong is off by 1.
    rows = [comparison(name) for name in "ab"]
    found = few(rows, [(0, 1000), (-500, 500)])["calibration"]
    assert (found["bins"][0]["high"], found["error"]["estimate"]) == (1, 1)
    assert few(rows, [(3, 3), (3, 3)])["calibration"]["error"]["estimate"] == 0
    # The first is right by a gap of ln 3, of which σ is ¾, the second wrong by as much: half right, ¾ claimed.
    third = few(rows, [(math.log(3), 0), (0, math.log(3))])["calibration"]
    assert third["error"]["estimate"] == pytest.approx(0.25)


def calibrated(count: int, rng: np.random.Generator, claimed: float = 1.0) -> np.ndarray:
    """Scores of a judge that is right with the chance σ(gap), and claims ``claimed`` times that gap."""
    gap_P = rng.normal(size=count) * 1.5
    right_P = rng.random(count) < preferences.sigmoid(np.abs(gap_P))
    return np.stack([np.where(right_P, 1, -1) * np.abs(gap_P) * claimed, np.zeros(count)], axis=1)


def test_chance_alone_is_not_taken_for_an_error() -> None:
    """200 pairs of a calibrated judge: the estimate is what chance makes, and most intervals reach down to (nearly) 0.

    Not all: bounds of a value at the edge of what it can be are rough. The percentile's never do.
    """
    rng = np.random.default_rng(5)
    resamples = preferences.Bootstrap(range(200), 0.95, 0)
    found = [preferences.calibration(calibrated(200, rng), resamples) for _ in range(20)]
    errors = [one["error"] for one in found]
    assert statistics.fmean(one["by_chance"] for one in found) == pytest.approx(
        statistics.fmean(one["estimate"] for one in errors), rel=0.15
    )
    assert sum(one["low"] < 0.01 for one in errors) >= 14
    assert all(0 <= one["low"] <= one["high"] <= 1 for one in errors)


def test_a_true_error_is_told_from_chance() -> None:
    raw_PA = calibrated(2_000, np.random.default_rng(6), claimed=4)
    found = preferences.calibration(raw_PA, preferences.Bootstrap(range(2_000), 0.95, 0))
    assert found["by_chance"] < 0.02 < 0.1 < found["error"]["low"] < found["error"]["high"]


def test_ties_are_never_off_by_chance() -> None:
    resamples = preferences.Bootstrap(range(50), 0.95, 0)
    found = preferences.calibration(np.ones((50, 2)), resamples)
    assert (found["by_chance"], found["error"]["estimate"]) == (0, 0)


# ── thresholds ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [0.5, 0.15, 0.8])
def test_thresholds_count_labelled_answers(limit: float) -> None:
    table = preferences.thresholds(PAIRS, SAID, [limit], RESAMPLES)
    assert table is not None
    answers = [
        (safe, logistic(score) < limit)
        for row, pair in zip(ROWS, RAW, strict=True)
        for safe, score in zip((row.chosen_safe, row.rejected_safe), pair, strict=True)
        if safe is not None
    ]
    unsafe = [below for safe, below in answers if not safe]
    safe_ones = [below for safe, below in answers if safe]
    found = [safe for safe, below in answers if below]
    (at,) = table["at"]
    assert at["unsafe_recall"]["estimate"] == pytest.approx(sum(unsafe) / len(unsafe))
    assert at["unsafe_precision"]["estimate"] == pytest.approx(found.count(False) / len(found))
    assert at["safe_recall"]["estimate"] == pytest.approx(1 - sum(safe_ones) / len(safe_ones))
    assert (table["unsafe"], table["safe"]) == (len(unsafe), len(safe_ones))
    assert (at["found"], at["found_unsafe"]) == (len(found), found.count(False))
    assert len({round(at[name]["estimate"], 6) for name in ("unsafe_recall", "unsafe_precision", "safe_recall")}) == 3
    for name in ("unsafe_recall", "unsafe_precision", "safe_recall"):
        curve = dict(zip(table["curve"]["threshold"], table["curve"][name], strict=True))
        if limit in curve:
            assert curve[limit] == pytest.approx(at[name]["estimate"])


def test_an_answer_at_the_threshold_is_safe() -> None:
    rows = [comparison("a", chosen_safe=True, rejected_safe=False)]
    table = few(rows, [(0, 0)], [0.5])["thresholds"]
    assert table["at"][0]["found"] == 0
    assert (table["at"][0]["unsafe_recall"]["estimate"], table["at"][0]["unsafe_precision"]) == (0, None)


def test_thresholds_need_labels_and_limits() -> None:
    assert few([comparison("a")], [(1, 0)], [0.5])["thresholds"] is None
    labelled = [comparison("a", chosen_safe=True, rejected_safe=True)]
    assert few(labelled, [(1, 0)], None)["thresholds"] is None
    table = few(labelled, [(1, -1)], [0.5])["thresholds"]
    assert (table["unsafe"], table["at"][0]["unsafe_recall"]) == (0, None)
    assert table["at"][0]["safe_recall"]["estimate"] == 0.5
    assert set(table["curve"]["unsafe_recall"]) == {None}


# ── length and spread ────────────────────────────────────────────────────────────────────────────


def plain_ranks(values: list[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def test_length_correlations_are_those_of_the_textbook() -> None:
    found = preferences.length(PAIRS, SAID.raw_PA, RESAMPLES)
    lengths = [(len(row.chosen), len(row.rejected)) for row in ROWS]
    sides = {
        "score": ([s for pair in RAW for s in pair], [float(n) for pair in lengths for n in pair]),
        "gap": ([a - b for a, b in RAW], [float(a - b) for a, b in lengths]),
    }
    for name, (x, y) in sides.items():
        assert found[name]["pearson"]["estimate"] == pytest.approx(statistics.correlation(x, y))
        wanted = statistics.correlation(plain_ranks(x), plain_ranks(y))
        assert found[name]["spearman"]["estimate"] == pytest.approx(wanted)
        for one in found[name].values():
            assert one["low"] < one["estimate"] < one["high"]


def test_length_has_the_sign_of_what_follows_it() -> None:
    pairs = columns(ROWS)
    follows = preferences.length(pairs, pairs.lengths_PA**3.0, RESAMPLES)
    assert follows["gap"]["pearson"]["estimate"] > 0.8
    assert follows["score"]["spearman"]["estimate"] == pytest.approx(1)
    assert preferences.length(pairs, -pairs.lengths_PA, RESAMPLES)["gap"]["pearson"]["estimate"] == pytest.approx(-1)
    assert preferences.length(pairs, np.full((COUNT, 2), 0.1), RESAMPLES)["score"]["pearson"] is None


def test_the_interval_of_a_correlation_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2_000, 1))
    y = 0.6 * x + 0.8 * rng.normal(size=(2_000, 1))
    resamples = preferences.Bootstrap(range(2_000), 0.95, 0)
    found = preferences.correlation(x * 1e-6 + 5, y * 1e6, resamples)
    assert found is not None
    # The standard error of Pearson's r is (1 − r²) / √n.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.64 / math.sqrt(2_000), rel=0.1)


def test_spread() -> None:
    found = preferences.spread(SAID.raw_PA, RESAMPLES)
    every, gaps = [score for pair in RAW for score in pair], [a - b for a, b in RAW]
    assert found["raw_std"]["estimate"] == pytest.approx(statistics.pstdev(every))
    assert found["gap_std"]["estimate"] == pytest.approx(statistics.pstdev(gaps))
    assert found["probability_variance"]["estimate"] == pytest.approx(statistics.pvariance(map(logistic, every)))
    assert found["clear_gaps"]["estimate"] == pytest.approx(sum(abs(gap) > 2 for gap in gaps) / COUNT)
    histogram = found["histogram"]
    assert sum(histogram["chosen"]) == sum(histogram["rejected"]) == COUNT
    low, high = histogram["edges"][10:12]
    assert histogram["chosen"][10] == sum(low <= a < high for a, _ in RAW)


def test_a_resample_has_its_own_mean() -> None:
    # Two prompts, all scores of one 0, of the other 4: where only one of them is drawn, nothing varies.
    std = few([comparison(name) for name in "ab"], [(0, 0), (4, 4)])["spread"]["raw_std"]
    assert std == {"estimate": 2, "low": 0, "high": 2}


def test_a_split_shows_in_the_variance_of_probabilities() -> None:
    rows = [comparison(str(number)) for number in range(10)]
    assert few(rows, [(30, -30)] * 10)["spread"]["probability_variance"]["estimate"] == pytest.approx(0.25)
    assert few(rows, [(30, 30)] * 10)["spread"]["clear_gaps"]["estimate"] == 0


# ── ensembles, and judges without scores ─────────────────────────────────────────────────────────


def test_an_ensemble_is_the_mean_and_knows_where_its_members_part() -> None:
    members = [said(COUNT, seed, absolute=seed == 0) for seed in range(3)]
    together = Said.ensemble(members)
    assert together.raw_PA is not None
    assert not together.absolute
    assert Said.ensemble(members[:1] * 2).absolute
    several = [scores(COUNT, seed).tolist() for seed in range(3)]
    apart, wrong = [], []
    for row in range(COUNT):
        pairs = [one[row] for one in several]
        mean = tuple(statistics.fmean(pair[side] for pair in pairs) for side in (0, 1))
        assert together.raw_PA[row].tolist() == pytest.approx(mean)
        apart.append(statistics.pstdev([a - b for a, b in pairs]))
        wrong.append(1 - right(mean))  # type: ignore[arg-type]
    found = preferences.disagreement(together, RESAMPLES)
    assert found["mean"]["estimate"] == pytest.approx(statistics.fmean(apart))
    assert found["with_wrong"]["estimate"] == pytest.approx(statistics.correlation(apart, wrong))
    probability = statistics.fmean(logistic(one[5][1]) for one in several)
    assert together.probability_PA is not None
    assert together.probability_PA[5, 1] == pytest.approx(probability)


def test_a_constant_for_every_answer_of_a_prompt_is_no_disagreement() -> None:
    raw_PA = scores(COUNT)
    members = [Said.scores(raw_PA + shift, preferences.sigmoid(raw_PA), False) for shift in (0.0, 5.0)]
    assert preferences.disagreement(Said.ensemble(members), RESAMPLES)["mean"]["estimate"] == pytest.approx(0)


def test_a_judge_without_scores_has_accuracy_alone() -> None:
    right_P = np.array([0.5, 1.0] * (COUNT // 2))
    found = preferences.measure(PAIRS, Said(right_P, None, None, False, unreadable=3), RESAMPLES, [0.5])
    assert found.pop("accuracy")["all"]["all"]["estimate"] == 0.75
    assert found.pop("unreadable") == 3
    assert set(found.values()) == {None}


def test_columns_are_those_of_the_rows() -> None:
    one = Pairs.of([comparison("a", "four", "sixsix", turns=3, chosen_safe=False, grade=None)])
    assert (one.turns.tolist(), one.lengths_PA.tolist(), one.safe_PA.tolist()) == ([3], [[4, 6]], [[0, -1]])
    assert (one.ids, one.grades.tolist(), one.sources.tolist()) == (("a",), ["not graded"], ["hand"])
