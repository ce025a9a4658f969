"""The arithmetic against float64, and the cases in which it has to be exact."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.merging import kernels

FLOATS = st.floats(-1e6, 1e6, width=32)


def linear(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    room = torch.full_like(tensors[0], float("nan"))
    return kernels.linear(tensors, weights, room, room.clone())


def test_the_weighted_sum() -> None:
    # 0.25 · (4, −8) + 0.75 · (8, 16) = (7, 10)
    assert linear([torch.tensor([4.0, -8.0]), torch.tensor([8.0, 16.0])], [0.25, 0.75]).tolist() == [7.0, 10.0]


def test_weight_one_gives_the_bits_back() -> None:
    numbers = torch.tensor([-0.0, 0.0, 1e-45, -3.4e38, 0.1])
    for weights, place in (([1.0, 0.0], 0), ([0.0, 1.0], 1)):
        tensors = [torch.full_like(numbers, 5.0)] * 2
        tensors[place] = numbers
        assert torch.equal(linear(tensors, weights).view(torch.int32), numbers.view(torch.int32))


def test_nothing_weighed_is_nothing() -> None:
    assert linear([torch.ones(3)], [0.0]).tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=40), st.lists(FLOATS, min_size=1, max_size=40), st.floats(0, 1))
def test_two_models_may_be_exchanged(first: list[float], second: list[float], weight: float) -> None:
    count = min(len(first), len(second))
    one, other = torch.tensor(first[:count]), torch.tensor(second[:count])
    there = linear([one, other], [weight, 1 - weight])
    back = linear([other, one], [1 - weight, weight])
    assert torch.equal(there, back)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.permutations(range(6)), st.integers(0, 1000))
def test_the_order_changes_only_rounding(count: int, order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(50, generator=generator) for _ in range(count)]
    weights = torch.rand(count, generator=generator).double()
    weights = (weights / weights.sum()).tolist()
    order = [place for place in order if place < count]
    wanted = sum(tensor.double() * weight for tensor, weight in zip(tensors, weights, strict=True))
    bound = (
        count * 2**-23 * sum(tensor.double().abs() * weight for tensor, weight in zip(tensors, weights, strict=True))
    )
    for places in (list(range(count)), order):
        found = linear([tensors[place] for place in places], [weights[place] for place in places]).double()
        assert ((found - wanted).abs() <= bound).all()


def test_norms_and_distances() -> None:
    tensor, centre = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
    assert kernels.squared_norm(tensor) == 25.0
    assert kernels.squared_distance(tensor, centre, torch.empty(2)) == 4.0 + 9.0
    assert tensor.tolist() == [3.0, 4.0]


def test_large_numbers_have_sums_too() -> None:
    # mean (2e25), distances 1e25 each; squares beyond fp32.
    norm, first, second = kernels.sums_of_large([torch.tensor([1e25]), torch.tensor([3e25])], [0.5, 0.5])
    assert abs(norm / 4e50 - 1) < 1e-6
    assert abs(first / 1e50 - 1) < 1e-6
    assert abs(second / 1e50 - 1) < 1e-6
