"""Win rates: by hand, in both conventions; and what length explains, on data in which that is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignment.evals import win_rates
from alignment.evals.intervals import Bootstrap

NAN = float("nan")


def resamples(count: int, seed: int = 0) -> Bootstrap:
    return Bootstrap(range(count), 0.95, seed)


# ── wins, ties, losses ───────────────────────────────────────────────────────────────────────────


def test_both_conventions_stand_beside_each_other() -> None:
    result = np.array([1, 1, 1, 0.5, 0.5, 0, NAN, 1, 0, 0.5])
    masks = {"all": {"all": np.ones(10, bool)}, "half": {"first": np.arange(10) < 5, "last": np.arange(10) >= 5}}
    found = win_rates.rates(result, masks, resamples(10))
    whole = found["all"]["all"]
    assert [whole[name] for name in ("pairs", "wins", "ties", "losses")] == [9, 4, 3, 2]
    estimates = {name: whole[name]["estimate"] for name in ("win", "tie", "loss", "ties_split", "without_ties")}
    # (4 + 3/2) / 9, and 4 / (4 + 2).
    expected = {"win": 4 / 9, "tie": 3 / 9, "loss": 2 / 9, "ties_split": 5.5 / 9, "without_ties": 4 / 6}
    assert estimates == pytest.approx(expected)
    first, last = found["half"]["first"], found["half"]["last"]
    assert (first["wins"], first["ties"], first["losses"]) == (3, 2, 0)
    assert first["without_ties"]["estimate"] == 1.0
    assert (last["pairs"], last["ties_split"]["estimate"]) == (4, pytest.approx(1.5 / 4))


def test_what_nobody_judged_has_no_rate() -> None:
    masks = {"all": {"all": np.ones(3, bool), "ties": np.array([True, True, False])}}
    found = win_rates.rates(np.array([0.5, 0.5, NAN]), masks, resamples(3))["all"]
    assert found["ties"]["ties_split"]["estimate"] == 0.5
    assert found["ties"]["without_ties"] is None, "where every pair is a tie nothing is left"
    nothing = win_rates.rates(np.full(3, NAN), masks, resamples(3))["all"]["all"]
    assert (nothing["pairs"], nothing["ties_split"]) == (0, None)


def test_intervals_hold_the_true_rate_as_often_as_they_say() -> None:
    # Pairs of one prompt share its luck: a bootstrap over pairs instead of prompts would hold it far less often.
    inside = 0
    for draw in range(120):
        rng = np.random.default_rng(draw)
        luck = rng.choice([0.2, 0.8], 60)
        result = (rng.random((60, 3)) < luck[:, None]).astype(float).ravel()
        over = Bootstrap(np.repeat(range(60), 3), 0.9, draw)
        found = win_rates.rates(result, {"all": {"all": np.ones(180, bool)}}, over)["all"]["all"]["ties_split"]
        inside += found["low"] <= 0.5 <= found["high"]
    # Of 120 intervals at 90 %, 108 on average, with a standard deviation of 3.3.
    assert 99 <= inside <= 117


def test_slices_by_turns_length_and_category() -> None:
    turns, lengths = np.array([1, 1, 2, 3, 4, 9]), np.array([10, 20, 30, 40, 50, 60])
    found = win_rates.slices(turns, lengths, {"category": ["a", None, "b", "a", None, None]})
    assert {name: mask.sum() for name, mask in found["turns"].items()} == {"1": 2, "2": 1, "3": 1, "4+": 2}
    assert [mask.tolist() for mask in found["category"].values()] == [[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]
    # The quarters of six end at the second, third and fourth value (method "lower": places 1.25, 2.5, 3.75).
    assert list(found["prompt_length"]) == ["up to 20", "21 to 30", "31 to 40", "over 40"]
    assert sum(mask.astype(int) for mask in found["prompt_length"].values()).tolist() == [1] * 6
    assert "category" not in win_rates.slices(turns, lengths, {"category": [None] * 6})


def test_prompts_of_one_length_are_one_slice() -> None:
    found = win_rates.slices(np.ones(5), np.full(5, 1_200))["prompt_length"]
    assert {name: mask.sum() for name, mask in found.items()} == {"any": 5}
    two = win_rates.slices(np.ones(5), np.array([7, 7, 7, 7, 1_200]))["prompt_length"]
    assert {name: mask.sum() for name, mask in two.items()} == {"up to 7": 4, "over 7": 1}


# ── what length explains ─────────────────────────────────────────────────────────────────────────


def planted(count: int, ability: float, length: float, seed: int, *, longer: float = 50.0) -> tuple[Any, Any]:
    """Results and gaps of length: a candidate of that ability before a judge with that liking, mostly longer."""
    rng = np.random.default_rng(seed)
    gaps = (rng.normal(longer, 50, count)).round()
    logits = ability + length * np.tanh(gaps / gaps.std())
    return (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(float), gaps


@pytest.mark.parametrize("seed", range(3))
def test_a_liking_for_length_alone_vanishes(seed: int) -> None:
    result, gaps = planted(800, 0.0, 2.5, seed)
    assert result.mean() > 0.65, "the candidate is longer, and wins by it"
    found = win_rates.length_controlled(result, gaps, resamples(800))
    assert found is not None
    assert found["low"] < 0.5 < found["high"]
    assert found["estimate"] == pytest.approx(0.5, abs=0.06)
    assert found["length_effect"] == pytest.approx(2.5, abs=0.5)
    assert found["candidate_shorter"] == pytest.approx((gaps < 0).mean())


def test_the_longer_answer_always_winning_says_nothing_of_the_candidate() -> None:
    _, gaps = planted(800, 0.0, 0.0, 5)
    found = win_rates.length_controlled(np.sign(gaps) / 2 + 0.5, gaps, resamples(800))
    assert found is not None
    assert found["low"] < 0.5 < found["high"]


@pytest.mark.parametrize("length", [0.0, 2.0, -2.0])
def test_a_real_preference_stays_whatever_the_judge_thinks_of_length(length: float) -> None:
    result, gaps = planted(1_500, 1.0, length, 7)
    found = win_rates.length_controlled(result, gaps, resamples(1_500))
    assert found is not None
    # σ(1) = 0.731
    assert found["low"] < 0.731 < found["high"]
    assert found["low"] > 0.6


def test_the_fit_against_plain_descent() -> None:
    result, gaps = planted(200, 0.4, 1.2, 3)
    result[::9] = 0.5
    z = np.tanh(gaps / gaps.std())

    # The gradient of Σ log(1 + e^x) − result·x, x = θ + φz, and of the priors' ½·0.1·(θ² + φ²).
    expected = np.zeros(2)
    for _ in range(4_000):
        off = 1 / (1 + np.exp(-(expected[0] + expected[1] * z))) - result
        expected = expected - 0.01 * (np.array([off.sum(), (off * z).sum()]) + 0.1 * expected)
    found = win_rates.length_controlled(result, gaps, resamples(200))
    assert found is not None
    assert found["estimate"] == pytest.approx(1 / (1 + np.exp(-expected[0])), abs=1e-6)
    assert found["length_effect"] == pytest.approx(expected[1], abs=1e-5)


def test_exchanging_the_two_models_exchanges_the_rate() -> None:
    result, gaps = planted(300, 0.7, 1.0, 2)
    one = win_rates.length_controlled(result, gaps, resamples(300))
    other = win_rates.length_controlled(1 - result, -gaps, resamples(300))
    assert one is not None
    assert other is not None
    assert other["estimate"] == pytest.approx(1 - one["estimate"], abs=1e-7)
    assert other["low"] == pytest.approx(1 - one["high"], abs=1e-7)


def test_pairs_without_a_result_count_nowhere() -> None:
    result, gaps = planted(300, 0.7, 1.0, 4)
    unjudged = np.concatenate([result, np.full(40, NAN)])
    found = win_rates.length_controlled(unjudged, np.concatenate([gaps, np.full(40, 900.0)]), resamples(340))
    plain = win_rates.length_controlled(result, gaps, resamples(300))
    assert found is not None
    assert plain is not None
    assert found["estimate"] == pytest.approx(plain["estimate"], abs=1e-9)


@pytest.mark.parametrize("gaps", [[1, 5, 9], [-2, -1, 0], [0, 0, 0]])
def test_without_longer_and_shorter_answers_nothing_can_be_said(gaps: list[int]) -> None:
    assert win_rates.length_controlled(np.array([1, 0, 1.0]), np.array(gaps), resamples(3)) is None
    assert win_rates.length_controlled(np.full(3, NAN), np.array([-1, 0, 1]), resamples(3)) is None


def test_a_candidate_that_always_wins_has_a_rate_near_one() -> None:
    found = win_rates.length_controlled(np.ones(200), np.arange(-100, 100), resamples(200))
    assert found is not None
    assert 0.99 < found["estimate"] < 1


# ── statistics that are no function of sums ──────────────────────────────────────────────────────


def test_a_mean_of_rows_has_the_interval_of_a_ratio_of_sums() -> None:
    rng = np.random.default_rng(0)
    values, over = rng.random(90), Bootstrap(rng.integers(0, 30, 90), 0.9, 3)
    (expected,) = over.ratios(values[:, None], np.ones((90, 1)))
    found = over.interval_of_rows(lambda times: (times @ values) / times.sum(1))
    assert found == pytest.approx(expected)
