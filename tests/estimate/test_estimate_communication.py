"""What GPUs send each other, by hand; and the GPUs that are known."""

from __future__ import annotations

import pytest

from alignment.errors import UserError
from alignment.estimate.communication import bandwidth, ring, traffic
from alignment.estimate.hardware import GB, GIB, GPUS, gpu_named


def sent(zero: int, passes: int = 1, gathered: float = 0.0) -> tuple[float, float, float]:
    """Of 100 bytes that are trained of 160 in the engine, on 5 GPUs."""
    found = traffic(zero=zero, gpus=5, passes=passes, trained=100.0, held=160.0, gathered=gathered)
    assert found.total == found.gradients + found.weights + found.rollout
    return found.gradients, found.weights, found.rollout


def test_a_ring_sends_all_but_its_own_part() -> None:
    assert ring(100.0, 5) == 80.0
    assert ring(100.0, 1) == 0.0


def test_ddp_reduces_once_whatever_the_number_of_passes() -> None:
    """Twice four fifths of 100."""
    assert sent(0) == sent(0, passes=3) == (160.0, 0.0, 0.0)


def test_zero_1_and_2_reduce_everything_and_gather_what_is_trained() -> None:
    """The buckets are all-reduced (160), the updated parts gathered (80); ZeRO 2 reduces after every pass."""
    assert sent(1) == sent(1, passes=3) == sent(2) == (160.0, 80.0, 0.0)
    assert sent(2, passes=3) == (480.0, 80.0, 0.0)


def test_zero_3_gathers_twice_and_scatters_once_a_pass() -> None:
    """Gradients 80; weights twice four fifths of 160; and those that answers are drawn from once a batch."""
    assert sent(3) == (80.0, 256.0, 0.0)
    assert sent(3, passes=3, gathered=100.0) == (240.0, 768.0, 80.0)


def test_one_gpu_sends_nothing() -> None:
    for zero in range(4):
        assert traffic(zero=zero, gpus=1, passes=2, trained=1.0, held=1.0, gathered=1.0).total == 0


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    h100, l4 = GPUS["h100"], GPUS["l4"]
    assert bandwidth(h100, 8, 8, None) == 450 * GB, "within a node"
    assert bandwidth(h100, 16, 8, None) == 400 * GB, "eight cards of 400 Gb/s"
    assert bandwidth(h100, 16, 8, 100 * GB) == 100 * GB, "as was said"
    assert bandwidth(h100, 16, 8, 1000 * GB) == 450 * GB, "no faster than the links within"
    assert bandwidth(l4, 2, 1, None) == 12.5 * GB


def test_gpus_are_named() -> None:
    assert gpu_named("a100").memory == 80 * GIB
    assert gpu_named("h200").memory > gpu_named("h100").memory
    with pytest.raises(UserError, match="gpu=h101") as error:
        gpu_named("h101")
    assert "'h100'" in error.value.remedy
