"""The arithmetic of merging, on slices of tensors, block by block; results go where they are told.

A number of the result depends on nothing but the numbers of its place. What runs over a slice is compiled by
TorchScript, so that several threads do it side by side; between operations of plain Python they wait for each other.
Without TorchScript the same operations run, slower, to the same bits.

Axes: V vectors (the start, then each of M models), N numbers of a block.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])


def _free(function: Function) -> Function:
    """Compiled, so that it runs outside of the interpreter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function) if hasattr(torch.jit, "script") else function


def linear(models_MN: Tensor, weights: list[float], out: Tensor, term: Tensor) -> Tensor:
    """``out`` = Σ wᵢ θᵢ, added up in the order given (WARM, arXiv 2401.12187, for equal weights).

    ``term`` is room of the same length. A tensor of weight 0 is not added, since that would turn −0 into +0: with
    weights (1, 0) the first comes out bit by bit.
    """
    begun = False
    for place, weight in enumerate(weights):
        if weight != 0.0 and not begun:
            torch.mul(models_MN[place], weight, out=out)
            begun = True
        elif weight != 0.0:
            torch.mul(models_MN[place], weight, out=term)
            out.add_(term)
    return out if begun else out.zero_()


def between(start: Tensor, end: Tensor, coefficient: float, out: Tensor, term: Tensor) -> Tensor:
    """``out`` = θ_start + c (θ_end − θ_start): LITI (WARP, arXiv 2406.16768, §3).

    ``term`` is room of the same length. Counted from the nearer end, so that 0 gives the start and 1 the other end bit
    by bit.
    """
    if coefficient == 0.0 or coefficient == 1.0:
        return out.copy_(end if coefficient == 1.0 else start)
    torch.sub(end, start, out=term)
    if coefficient > 0.5:
        return torch.sub(end, term, alpha=1 - coefficient, out=out)
    return torch.add(start, term, alpha=coefficient, out=out)


def along(start: Tensor, tasks_MN: Tensor, coefficients: list[float], out: Tensor) -> Tensor:
    """``out`` = θ_start + Σ cᵢ δᵢ, of several task vectors (WARP, arXiv 2406.16768, §3)."""
    counted = torch.tensor([coefficients], dtype=start.dtype, device=start.device)
    torch.addmm(start.unsqueeze(0), counted, tasks_MN, out=out.unsqueeze(0))
    return out


def load(rows: list[Tensor], start: int, stop: int, wide_VN: Tensor) -> Tensor:
    """The numbers from ``start`` to ``stop`` of rows of any dtype (each ``[vectors, …]``), together in fp32."""
    block_VN, place = wide_VN[:, : stop - start], 0
    for row in rows:
        block_VN[place : place + row.shape[0]].copy_(row[:, start:stop])
        place += row.shape[0]
    return block_VN


@_free
def combine(
    rows: list[Tensor], counts: list[float], averaged: bool, result: Tensor, wide_VN: Tensor, two_N: Tensor
) -> None:
    """Write the merge of a slice, rounded to the dtype of ``result``.

    ``counts``: what each model counts, from the start on or, ``averaged``, in a plain sum. ``wide_VN`` and ``two_N``
    are room for a block.
    """
    numbers = result.shape[0]
    block, moved, only = wide_VN.shape[1], 0, 0
    for place, count in enumerate(counts):
        if count != 0.0:
            moved += 1
            only = place
    for start in range(0, numbers, block):
        stop = min(start + block, numbers)
        block_VN = load(rows, start, stop, wide_VN)
        start_N, models_MN, out_N, term_N = block_VN[0], block_VN[1:], two_N[0], two_N[1]
        out_N, term_N = out_N[: stop - start], term_N[: stop - start]
        if averaged:
            linear(models_MN, counts, out_N, term_N)
        elif moved < 2:
            between(start_N, models_MN[only], counts[only], out_N, term_N)
        else:
            along(start_N, models_MN.sub_(start_N), counts, out_N)
        result[start:stop].copy_(out_N)


@_free
def measure(rows: list[Tensor], numbers: int, wide_VN: Tensor) -> list[Tensor]:
    """The dot products ``[V, V]`` of start and task vectors, of every block of a slice.

    Not finite where one of the numbers is not, or its square too large. ``wide_VN`` is room for a block.
    """
    block = wide_VN.shape[1]
    found: list[Tensor] = []
    for start in range(0, numbers, block):
        block_VN = load(rows, start, min(start + block, numbers), wide_VN)
        block_VN[1:].sub_(block_VN[0])
        found.append(torch.mm(block_VN, block_VN.t()))
    return found
