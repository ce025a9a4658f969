"""The arithmetic against float64, and the cases in which it has to be exact."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.merging import kernels

FLOATS = st.floats(-1e6, 1e6, width=32)


def linear(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    room = torch.full_like(tensors[0], float("nan"))
    return kernels.linear(torch.stack(tensors), weights, room, room.clone())


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


def between(start: torch.Tensor, end: torch.Tensor, coefficient: float) -> torch.Tensor:
    room = torch.full_like(start, float("nan"))
    return kernels.between(start, end, coefficient, room, room.clone())


def test_along_task_vectors() -> None:
    # (1, 2) + 0.5 · (4, 0) − 2 · (0, 3) = (3, −4)
    start, tasks_MN = torch.tensor([1.0, 2.0]), torch.tensor([[4.0, 0.0], [0.0, 3.0]])
    assert kernels.along(start, tasks_MN, [0.5, -2.0], torch.full((2,), float("nan"))).tolist() == [3.0, -4.0]


def test_between_two() -> None:
    start, end = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 2.0])
    assert between(start, end, 0.25).tolist() == [2.0, 2.0]
    assert between(start, end, 0.75).tolist() == [4.0, 2.0]


def test_both_ends_come_out_bit_by_bit() -> None:
    start = torch.tensor([0.1, -0.0, 3e-40, 1e30, 0.3])
    end = torch.tensor([1e-9, 0.0, -0.0, -1e-30, 7.0])
    for coefficient, wanted in ((0.0, start), (1.0, end)):
        assert torch.equal(between(start, end, coefficient).view(torch.int32), wanted.view(torch.int32))


ROWS = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 17))


@settings(max_examples=40, deadline=None)
@given(ROWS, st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), st.integers(0, 1000))
def test_slices_are_worked_off_block_by_block(
    sizes: tuple[int, int, int], dtype: torch.dtype, apart: bool, seed: int
) -> None:
    models, numbers, block = sizes
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(models + 1, numbers + 5, generator=generator).to(dtype)
    counts = torch.rand(models, generator=generator).tolist()
    rows = [row[None] for row in read] if apart else [read]
    wide_VN, two_N = torch.full((models + 1, block), float("nan")), torch.full((2, block), float("nan"))
    start_N, tasks_MN = read[0, :numbers].double(), read[1:, :numbers].double() - read[0, :numbers].double()
    for averaged in (True, False):
        result = torch.empty(numbers)
        kernels.combine(rows, counts, averaged, result, wide_VN, two_N)
        weights_M = torch.tensor(counts).double()
        wanted = weights_M @ read[1:, :numbers].double() if averaged else start_N + weights_M @ tasks_MN
        assert torch.allclose(result.double(), wanted, rtol=0, atol=1e-5)
    dots = torch.stack(kernels.measure(rows, numbers, wide_VN)).double()
    assert len(dots) == -(-numbers // block)
    vectors = torch.cat([start_N[None], tasks_MN])
    assert torch.allclose(dots.sum(0), vectors @ vectors.T, rtol=1e-5, atol=1e-4)


def _plain() -> list[Callable[..., Any]]:
    """The same functions as a torch without TorchScript has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(torch.jit, "script")
        again = importlib.util.module_from_spec(importlib.util.find_spec(kernels.__name__))
        again.__spec__.loader.exec_module(again)
    assert inspect.isfunction(again.combine), "not compiled"
    return [again.combine, again.measure]


def test_without_torchscript_the_bits_are_the_same() -> None:
    rows = [torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).bfloat16()]
    plain = [kernels.combine, kernels.measure]
    found = []
    for combine, measure in (plain, _plain()):
        result = torch.empty(100, dtype=torch.bfloat16)
        combine(rows, [0.6, 0.7], False, result, torch.empty(3, 16), torch.empty(2, 16))
        found.append((result, torch.stack(measure(rows, 100, torch.empty(3, 16)))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_dot_products() -> None:
    # (1, 2) and (3, 4) from there: 1 + 4, 2 + 4, 4 + 4
    dots = kernels.measure([torch.tensor([[1.0, 2.0], [3.0, 4.0]])], 2, torch.empty(2, 7))
    assert dots[0].tolist() == [[5.0, 6.0], [6.0, 8.0]]
