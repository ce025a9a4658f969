"""Slerp's coefficients from dot products: the paper's numbers, the guards, and what no coefficient may do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.merging import coefficients


def equal(count: int) -> list[float]:
    return [1 / count] * count


def two(angle: float, one: float = 1.0, other: float = 1.0) -> np.ndarray:
    """The dot products of two vectors of these lengths with so many degrees between them."""
    product = one * other * math.cos(math.radians(angle))
    return np.array([[one**2, product], [product, other**2]])


def length(dots_MM: np.ndarray, coefficients_M: list[float]) -> float:
    return math.sqrt(np.array(coefficients_M) @ dots_MM @ np.array(coefficients_M))


def test_at_a_right_angle_the_length_is_kept() -> None:
    # sin 45° / sin 90° = 0.7071; the average of the two is 0.7071 long.
    found = coefficients.slerp(two(90), equal(2))
    assert found == pytest.approx([0.70711, 0.70711], abs=1e-5)
    assert length(two(90), found) == pytest.approx(1)
    assert length(two(90), equal(2)) == pytest.approx(0.70711, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        # λ = 1/3 from a unit vector at 90°: sin 60° = 0.8660 of (0.7071, 0.7071), sin 30° = 0.5.
        (3, [0.6124, 0.6124, 0.5]),
        (5, [0.5381, 0.5381, 0.4393, 0.3640, 0.3090]),
    ],
)
def test_the_recursion_on_orthonormal_vectors(count: int, wanted: list[float]) -> None:
    found = coefficients.slerp(np.eye(count), equal(count))
    assert found == pytest.approx(wanted, abs=5e-5)
    assert length(np.eye(count), found) == pytest.approx(1)


def test_the_order_matters_from_three_on() -> None:
    dots_MM = np.array([[1.0, 0.6, 0.1], [0.6, 1.0, 0.3], [0.1, 0.3, 1.0]])
    back_MM = dots_MM[::-1, ::-1]
    there, back = coefficients.slerp(dots_MM, equal(3)), coefficients.slerp(back_MM, equal(3))[::-1]
    assert abs(there[0] - back[0]) > 1e-2
    pair = dots_MM[:2, :2]
    assert coefficients.slerp(pair, equal(2)) == pytest.approx(coefficients.slerp(pair[::-1, ::-1], equal(2))[::-1])


def test_weights_say_where_on_the_arc() -> None:
    # 60° apart, a quarter of the way: sin 45° / sin 60° = 0.81650, sin 15° / sin 60° = 0.29886.
    assert coefficients.slerp(two(60), [0.75, 0.25]) == pytest.approx([0.81650, 0.29886], abs=1e-5)
    # w = (.5, .3, .2): λ_2 = .3/.8 = 0.375, λ_3 = .2. Orthonormal: (cos 33.75°, sin 33.75°) · cos 18°, sin 18°.
    assert coefficients.slerp(np.eye(3), [0.5, 0.3, 0.2]) == pytest.approx([0.79078, 0.52838, 0.30902], abs=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
def test_one_model_alone_comes_out_as_it_is(weights: list[float]) -> None:
    # The first and the second are opposite, which matters to nobody here.
    dots_MM = np.array([[1.0, -1.0, 0.2], [-1.0, 1.0, -0.2], [0.2, -0.2, 4.0]])
    assert coefficients.slerp(dots_MM, weights) == weights


@pytest.mark.parametrize("angle", [0.0, 1e-3, 5e-3, 0.1])
def test_alike_vectors_are_averaged(angle: float) -> None:
    assert coefficients.slerp(two(angle, 2.0, 3.0), [0.7, 0.3]) == pytest.approx([0.7, 0.3], abs=1e-5)


def test_rounding_beyond_one_is_no_angle() -> None:
    assert coefficients.slerp(np.array([[1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0]]), equal(2)) == [0.5, 0.5]


def test_what_has_not_moved_has_no_direction() -> None:
    assert coefficients.slerp(np.zeros((3, 3)), equal(3)) == pytest.approx(equal(3))
    for place in range(2):
        dots_MM = np.zeros((2, 2))
        dots_MM[place, place] = 4.0
        assert coefficients.slerp(dots_MM, [0.25, 0.75]) == [0.25, 0.75]


@pytest.mark.parametrize(("angle", "refused"), [(180.0, True), (179.6, True), (179.0, False)])
def test_opposite_vectors_have_no_arc(angle: float, refused: bool) -> None:
    if not refused:
        assert length(two(angle), coefficients.slerp(two(angle), equal(2))) == pytest.approx(1)
        return
    with pytest.raises(coefficients.Opposite) as caught:
        coefficients.slerp(two(angle, 2.0, 3.0), equal(2))
    assert caught.value.model == 1


def test_the_third_may_be_opposite_to_what_came_before() -> None:
    # v_2 lies between the first two; the third is −v_2.
    half = math.sqrt(0.5)
    dots_MM = np.array([[1.0, 0.0, -half], [0.0, 1.0, -half], [-half, -half, 1.0]])
    with pytest.raises(coefficients.Opposite) as caught:
        coefficients.slerp(dots_MM, equal(3))
    assert caught.value.model == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_unit_vectors_stay_on_the_sphere(count: int, seed: int) -> None:
    """Whatever the weights: each step of the recursion ends on the arc between two unit vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, 9)) + 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = rng.dirichlet(np.ones(count)).tolist()
    dots_MM = vectors @ vectors.T
    assert length(dots_MM, coefficients.slerp(dots_MM, weights)) == pytest.approx(1, abs=1e-9)


def test_a_moving_average() -> None:
    # μ = 0.5: ((θ_1 + θ_2)/2 + θ_3)/2.
    assert coefficients.ema(3, 0.5) == (0.25, 0.25, 0.5)
    wanted = 1.0
    for value in (2.0, 3.0, 4.0):
        wanted = 0.9 * wanted + 0.1 * value
    weights = coefficients.ema(4, 0.1)
    assert sum(weight * value for weight, value in zip(weights, (1.0, 2.0, 3.0, 4.0), strict=True)) == pytest.approx(
        wanted
    )
    assert sum(weights) == pytest.approx(1)
    assert coefficients.ema(3, 1.0) == (0.0, 0.0, 1.0)
