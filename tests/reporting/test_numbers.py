"""How numbers stand in the console's tables."""

from __future__ import annotations

import pytest

from alignment.reporting.numbers import brief, fixed


@pytest.mark.parametrize(
    ("value", "sign", "told"),
    [
        (0.7124, "", "0.712"),
        (0.7124, "+", "+0.712"),
        (-0.7124, "+", "-0.712"),
        (-0.0004, "", "0.000"),
        (-0.0004, "+", "+0.000"),
        (-0.0005001, "", "-0.001"),
        (0.0, "+", "+0.000"),
    ],
)
def test_what_rounds_to_zero_has_no_minus(value: float, sign: str, told: str) -> None:
    assert fixed(value, sign=sign) == told


def test_half_of_an_interval_stands_beside() -> None:
    one = {"estimate": -0.00012, "low": -0.1, "high": 0.3}
    assert brief(one) == "0.000 ±0.200"
    assert brief(one, "+") == "+0.000 ±0.200"
    assert brief({"estimate": -47.28, "low": -50.0, "high": -44.0}) == "-47.3 ±3.0"
    assert brief(None) == "–"


def test_of_one_group_nothing_is_said_of_chance() -> None:
    one = {"estimate": 0.5, "low": 0.5, "high": 0.5}
    assert brief(one, groups=1) == "0.500"
    assert brief(one, groups=2) == "0.500 ±0.000", "all of several were the same"
