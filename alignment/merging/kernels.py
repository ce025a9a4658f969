"""The arithmetic of merging, on flat fp32 tensors of one length. Nothing is allocated: results go where they are told.

Every operation is elementwise and rounds once, so that no number depends on how a tensor was cut.
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


def along(start: Tensor, ends: Sequence[Tensor], coefficients: Sequence[float], out: Tensor, term: Tensor) -> Tensor:
    """``out`` = θ_start + Σ cᵢ (θᵢ − θ_start), added up in the order given (WARP, arXiv 2406.16768, §3).

    ``term`` is room of the same length. One coefficient alone is counted from the nearer end, so that 0 gives the start
    and 1 the other end bit by bit.
    """
    moved = [(end, coefficient) for end, coefficient in zip(ends, coefficients, strict=True) if coefficient]
    if not moved:
        return out.copy_(start)
    (end, coefficient), *others = moved
    if not others and coefficient == 1:
        return out.copy_(end)
    torch.sub(end, start, out=term)
    if not others and coefficient > 0.5:
        return torch.sub(end, term, alpha=1 - coefficient, out=out)
    torch.add(start, term, alpha=coefficient, out=out)
    for end, coefficient in others:
        torch.sub(end, start, out=term)
        out.add_(term, alpha=coefficient)
    return out


def gram(rows_VN: Tensor) -> list[float]:
    """The dot products of V rows of N numbers, each pair once: (0, 0), (0, 1) … (1, 1) …

    Not finite where one of the numbers is not, or its square too large.
    """
    products = torch.mm(rows_VN, rows_VN.T).tolist()
    return [products[row][column] for row in range(len(products)) for column in range(row, len(products))]
