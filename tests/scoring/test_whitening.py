"""Whitening of scores: mean 0 and variance 1 by the batch or by all so far, to the same bits wherever it goes on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from alignment.scoring.whitening import EPSILON, Statistics, Whitening


def test_a_batch_gets_mean_0_and_variance_1() -> None:
    # (1, 2, 3, 6): mean 3, deviations −2, −1, 0, 3, variance 14 / 4.
    scores = np.array([1.0, 2.0, 3.0, 6.0])
    whitened = Whitening("batch")(scores, scores)
    np.testing.assert_allclose(whitened, np.array([-2, -1, 0, 3]) / math.sqrt(3.5 + EPSILON), rtol=1e-14)


def test_the_statistics_are_those_of_everybody_and_not_of_oneself() -> None:
    everywhere = np.array([1.0, 2.0, 3.0, 6.0])
    whitened = Whitening("batch")(everywhere[2:], everywhere)
    np.testing.assert_array_equal(whitened, Whitening("batch")(everywhere, everywhere)[2:])


def test_without_whitening_scores_stay() -> None:
    scores = np.array([5.0, 7.0])
    np.testing.assert_array_equal(Whitening("none")(scores, scores), scores)


@pytest.mark.parametrize("value", [0.1, -3e8, 1e-9])
def test_equal_scores_give_0_exactly(value: float) -> None:
    scores = np.full(7, value)
    assert Statistics.of(scores) == Statistics(7, value, 0.0)
    for scope in ("batch", "running"):
        np.testing.assert_array_equal(Whitening(scope)(scores, scores), np.zeros(7))  # type: ignore[arg-type]


def test_scores_that_differ_by_rounding_alone_stay_near_0() -> None:
    scores = np.array([0.3, 0.3, 0.3 + 1e-12])
    assert np.abs(Whitening("batch")(scores, scores)).max() < 1e-7


def test_running_statistics_are_those_of_all_batches_at_once() -> None:
    generator = np.random.default_rng(0)
    # Of unlike sizes and means, far from 0, where a sum of squares would lose its digits.
    batches = [generator.normal(1e4 + 10 * place, 0.5, size) for place, size in enumerate((3, 64, 1, 17))]
    whitening = Whitening("running")
    for batch in batches:
        whitened = whitening(batch, batch)
    everything = np.concatenate(batches)
    state = whitening.state()
    assert state["count"] == 85
    assert state["mean"] == pytest.approx(everything.mean(), rel=1e-12)
    assert state["squares"] / 85 == pytest.approx(everything.var(), rel=1e-12)
    expected = (batches[-1] - everything.mean()) / math.sqrt(everything.var() + EPSILON)
    np.testing.assert_allclose(whitened, expected, rtol=0, atol=1e-9)


def test_the_order_of_the_answers_does_not_matter_to_a_bit() -> None:
    scores = np.random.default_rng(1).normal(size=501)
    mixed = np.random.default_rng(2).permutation(scores)
    assert Statistics.of(scores) == Statistics.of(mixed)


def test_a_state_that_went_through_json_goes_on_to_the_same_bits() -> None:
    generator = np.random.default_rng(3)
    before, after = Whitening("running"), Whitening("running")
    for _ in range(3):
        scores = generator.normal(size=32)
        before(scores, scores)
    after.load_state(json.loads(json.dumps(before.state())))
    scores = generator.normal(size=32)
    np.testing.assert_array_equal(before(scores, scores), after(scores, scores))
    assert before.state() == after.state()


def test_a_batch_without_a_score_changes_nothing() -> None:
    whitening = Whitening("running")
    scores = np.array([1.0, 3.0])
    whitening(scores, scores)
    state = whitening.state()
    # (1, 3): mean 2, variance 1.
    whitened = whitening(np.array([9.0]), np.array([]))
    assert whitening.state() == state
    assert whitened == pytest.approx(7.0, rel=1e-7)
