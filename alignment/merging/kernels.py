"""The arithmetic of merging, on flat fp32 tensors of one length. Nothing is allocated: results go where they are told.

A number of the result depends on nothing but the numbers of its place. Each operation does much at once, since between
two of them threads wait for each other to leave the interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear(tensors: Sequence[Tensor], weights: Sequence[float], out: Tensor, term: Tensor) -> Tensor:
    """``out`` = Σ wᵢ θᵢ, added up in the order given (WARM, arXiv 2401.12187, for equal weights).

    ``term`` is room of the same length. A tensor of weight 0 is not added, since that would turn −0 into +0: with
    weights (1, 0) the first comes out bit by bit.
    """
    weighed = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight]
    if not weighed:
        return out.zero_()
    (first, weight), *others = weighed
    torch.mul(first, weight, out=out)
    for tensor, weight in others:
        torch.mul(tensor, weight, out=term)
        out.add_(term)
    return out


def between(start: Tensor, end: Tensor, coefficient: float, out: Tensor, term: Tensor) -> Tensor:
    """``out`` = θ_start + c (θ_end − θ_start): LITI (WARP, arXiv 2406.16768, §3).

    ``term`` is room of the same length. Counted from the nearer end, so that 0 gives the start and 1 the other end bit
    by bit.
    """
    if coefficient in (0, 1):
        return out.copy_(end if coefficient else start)
    torch.sub(end, start, out=term)
    if coefficient > 0.5:
        return torch.sub(end, term, alpha=1 - coefficient, out=out)
    return torch.add(start, term, alpha=coefficient, out=out)


def along(start: Tensor, tasks_MN: Tensor, coefficients: Sequence[float], out: Tensor) -> Tensor:
    """``out`` = θ_start + Σ cᵢ δᵢ, of several task vectors (WARP, arXiv 2406.16768, §3)."""
    torch.addmm(start[None], start.new_tensor([coefficients]), tasks_MN, out=out[None])
    return out


def gram(rows_VN: Tensor) -> list[float]:
    """The dot products of V rows of N numbers, each pair once: (0, 0), (0, 1) … (1, 1) …

    Not finite where one of the numbers is not, or its square too large.
    """
    products = torch.mm(rows_VN, rows_VN.T).tolist()
    return [products[row][column] for row in range(len(products)) for column in range(row, len(products))]
