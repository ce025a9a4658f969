"""Fronts against their definitions, by brute force on random points, and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.merging import front

WORST = (4.0, -1.0)
grid = st.tuples(st.integers(0, 5), st.integers(-2, 5))
clouds = st.lists(grid, min_size=1, max_size=9)


def columns(points: list[tuple[int, int]]) -> tuple[list[float], list[float]]:
    return [float(kl) for kl, _ in points], [float(score) for _, score in points]


# ── Pareto and hypervolume ───────────────────────────────────────────────────────────────────────


@given(clouds)
def test_a_point_stands_on_the_front_if_no_other_dominates_it(points: list[tuple[int, int]]) -> None:
    found = front.pareto(*columns(points))
    wanted = {
        place
        for place, (kl, score) in enumerate(points)
        if not any(k <= kl and s >= score and (k, s) != (kl, score) for k, s in points)
    }
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert [points[place][0] for place in found] == sorted(points[place][0] for place in found)


@given(clouds)
def test_the_hypervolume_is_the_number_of_unit_squares_that_are_dominated(points: list[tuple[int, int]]) -> None:
    """On a grid of integers the area is counted: the square right of ``kl`` and below ``score``."""
    counted = sum(
        any(k <= kl and s >= score + 1 for k, s in points)
        for kl in range(int(WORST[0]))
        for score in range(int(WORST[1]), 6)
    )
    # Squares left of 0 are dominated by nothing: no KL is below 0.
    assert front.hypervolume(*columns(points), WORST) == pytest.approx(counted)


@given(clouds, grid)
def test_another_point_never_takes_from_the_hypervolume(points: list[tuple[int, int]], more: tuple[int, int]) -> None:
    before = front.hypervolume(*columns(points), WORST)
    assert front.hypervolume(*columns([*points, more]), WORST) >= before - 1e-12


def test_a_hypervolume_by_hand() -> None:
    """(1, 0) gives 3 × 1; (2, 2) adds 2 × 2; (3, 1) is dominated; (5, 9) lies beyond the bound; (0, −3) below it."""
    assert front.hypervolume([1, 2, 3, 5, 0], [0, 2, 1, 9, -3], WORST) == pytest.approx(3 + 4)
    assert front.pareto([1, 2, 3, 5, 0], [0, 2, 1, 9, -3]) == [4, 0, 1, 3]


# ── at equal KL ──────────────────────────────────────────────────────────────────────────────────


def test_scores_at_a_kl_lie_on_straight_lines_and_nowhere_else() -> None:
    """Looks at KL 0, 2, 1, 2 score 0, 3, 2, 5: at 2 their mean 4, at 0.5 the middle of 0 and 2, at 1.5 that of 2, 4."""
    found = front.at_kl([0, 2, 1, 2], [0, 3, 2, 5], [0, 0.5, 1, 1.5, 2])
    assert found == pytest.approx([0, 1, 2, 3, 4])
    assert np.isnan(front.at_kl([1, 2], [0, 1], [0.999, 2.001])).all()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8, unique=True), st.floats(-3, 3), st.floats(-3, 3))
def test_a_straight_line_is_read_off_exactly_within_its_range(kls: list[float], rise: float, start: float) -> None:
    wanted = np.linspace(min(kls), max(kls), 7)
    scores = [start + rise * kl for kl in kls]
    assert front.at_kl(kls, scores, wanted[1:-1]) == pytest.approx(start + rise * wanted[1:-1], abs=1e-9)


def test_shared_kls_are_within_every_line() -> None:
    assert front.shared_kls([[0, 5, 2], [1, 3]], 3) == pytest.approx([1, 2, 3])
    assert not len(front.shared_kls([[0, 1], [2, 3]], 3))
    assert not len(front.shared_kls([[0, 1], [1, 2]], 3)), "one KL in common is no range"


# ── along η ──────────────────────────────────────────────────────────────────────────────────────

ETAS = [0, 0.1, 0.3, 0.5, 0.8, 1]


def test_second_differences_of_a_parabola_are_its_second_derivative() -> None:
    """y = 3 η² − η + 1: y″ = 6 whatever the steps."""
    values = [3 * eta**2 - eta + 1 for eta in ETAS]
    assert front.second_differences(ETAS, values) == pytest.approx([6] * 4)
    assert front.second_differences(ETAS, [2 - 5 * eta for eta in ETAS]) == pytest.approx([0] * 4, abs=1e-9)
    # Steps 0.1 and 0.2, slopes 10 and −5: 2 · (−15) / 0.3.
    assert front.second_differences([0, 0.1, 0.3], [0, 1, 0]) == pytest.approx([-100])


def test_the_bulge_is_the_mean_height_above_the_chord() -> None:
    """A hat of height 1 has the area ½ above its chord, over a width of 2: ¼; a slope changes nothing."""
    assert front.bulge([0, 1, 2], [0, 1, 0]) == pytest.approx(0.5)
    assert front.bulge([0, 1, 2], [5, 7, 7]) == pytest.approx(0.5)
    assert front.bulge([0, 0.5, 2], [0, -1, 0]) == pytest.approx(-0.5)
    assert front.bulge(ETAS, [4 * eta - 1 for eta in ETAS]) == pytest.approx(0, abs=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_a_line_without_positive_second_differences_bulges(values: list[float]) -> None:
    bend = front.second_differences(ETAS, values)
    if (bend <= 0).all():
        assert front.bulge(ETAS, values) >= -1e-9
    if (bend >= 0).all():
        assert front.bulge(ETAS, values) <= 1e-9


# ── when to stop ─────────────────────────────────────────────────────────────────────────────────


def test_a_run_stops_at_the_first_look_beyond_the_bound() -> None:
    assert front.stops_at([0, 120, 200, 201, 150, 300], 200) == 3
    assert front.stops_at([0, 200], 200) is None


@pytest.mark.parametrize(
    ("gains", "wanted"),
    [
        ([], 1),
        ([0.1, 0.01, -0.1, 0.5], 3),
        ([-0.1], 1),
        ([0.0], 1),
        ([0.1, 0.2], 3),
        ([float("nan"), 0.1], 1),
    ],
)
def test_iterations_pay_until_one_does_not_improve(gains: list[float], wanted: int) -> None:
    assert front.worth_iterations(gains) == wanted


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(AssertionError):
        front.pareto([0, float("nan")], [0, 1])
    with pytest.raises(AssertionError):
        front.hypervolume([0, 1], [0, float("inf")], WORST)
    with pytest.raises(AssertionError):
        front.second_differences([0, 0.5, 0.5], [0, 1, 2])
