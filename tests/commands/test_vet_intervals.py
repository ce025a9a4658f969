from __future__ import annotations

import pytest

from alignment.commands import vet
from alignment.evals.intervals import unpaired


@pytest.mark.parametrize(
    ("good", "n", "low", "high"),
    # Newcombe 1998a, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_wilsons_interval(good: int, n: int, low: float, high: float) -> None:
    share = vet.share(good, n - good, 0.95)
    assert share == pytest.approx((good / n, low, high), abs=5e-5)
    assert vet.share(n - good, good, 0.95) == pytest.approx((1 - good / n, 1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    # Newcombe 1998b, table II, method 10: 56/70 − 48/80, 9/10 − 3/10, 10/10 − 0/20.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_a_difference_has_newcombes_interval(a: tuple[int, int], b: tuple[int, int], low: float, high: float) -> None:
    shares = [share for good, n in (a, b) if (share := vet.share(good, n - good, 0.95))]
    gap = unpaired(*shares)
    assert gap == pytest.approx((a[0] / a[1] - b[0] / b[1], low, high), abs=5e-5)
    back = unpaired(*shares[::-1])
    assert back == pytest.approx((-gap[0], -gap[2], -gap[1]))


def test_no_verdict_is_no_share() -> None:
    assert vet.share(0, 0, 0.95) is None
