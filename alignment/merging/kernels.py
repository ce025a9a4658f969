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


def squared_norm(tensor: Tensor) -> float:
    """‖θ‖²; not finite where one of the numbers is not."""
    return float(torch.dot(tensor, tensor))


def squared_distance(tensor: Tensor, centre: Tensor, term: Tensor) -> float:
    """‖θ − centre‖², with ``term`` for room; not finite where one of the numbers is not."""
    torch.sub(tensor, centre, out=term)
    return float(torch.dot(term, term))


def sums_of_large(tensors: Sequence[Tensor], weights: Sequence[float]) -> list[float]:
    """‖mean‖² and every ‖θᵢ − mean‖², of finite numbers whose squares are too large for fp32."""
    wide = [tensor.double() for tensor in tensors]
    mean = linear(wide, weights, torch.empty_like(wide[0]), torch.empty_like(wide[0]))
    return [squared_norm(mean), *(squared_distance(tensor, mean, torch.empty_like(mean)) for tensor in wide)]
