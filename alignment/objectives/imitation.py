"""Learning from given text: negative log-likelihood, computed without ever holding tokens x vocabulary.

Axes: N positions, S positions that carry loss, C positions of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""The label of a position without loss."""


def chunked_nll(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, softcap: float | None, chunk_tokens: int = 1024
) -> Tensor:
    """Sum of −log p(label) over the positions whose label is not −100, in nats: a scalar in fp32.

    p = softmax(softcap · tanh(hidden · weightᵀ / softcap)); without a cap, softmax(hidden · weightᵀ).
    ``labels_N[i]`` is the token that ``hidden_ND[i]`` predicts: the shift by one is the caller's, and so is the
    division by the number of tokens of the global batch.

    Positions without loss are left out before any product. Of the others, ``chunk_tokens`` at a time have logits;
    their gradients are formed in the same breath, so that nothing is computed twice and the largest temporary is
    ``chunk_tokens`` x V. Works under autocast (products in its dtype, the softmax and all sums in fp32). Gradients of
    gradients are not available.
    """
    assert labels_N.shape == hidden_ND.shape[:1], "rows and tokens must be one axis, labels beside them"
    assert weight_VD.shape[1] == hidden_ND.shape[1], "hidden and weight differ in width"
    assert chunk_tokens > 0, "a chunk holds at least one token"
    differentiable = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    return _ChunkedNLL.apply(hidden_ND, weight_VD, labels_N, softcap, chunk_tokens, differentiable)


class _Chunk(NamedTuple):
    """Of one chunk: its summed loss, and d loss / d (hidden · weightᵀ), of the products' dtype."""

    nll: Tensor
    gradient_CV: Tensor | None


def _chunk(logits_CV: Tensor, labels_C: Tensor, softcap: float | None, differentiable: bool, dtype: Any) -> _Chunk:
    """Loss and gradient of one chunk; ``logits_CV`` (uncapped, fp32 or wider) is overwritten."""
    tanh_CV = None
    if softcap is not None:
        tanh_CV = logits_CV.div_(softcap).tanh_()
        logits_CV = tanh_CV * softcap
    lse_C1 = logits_CV.logsumexp(-1, keepdim=True)
    labels_C1 = labels_C[:, None]
    nll = (lse_C1 - logits_CV.gather(-1, labels_C1)).sum()
    if not differentiable:
        return _Chunk(nll, None)
    gradient_CV = logits_CV.sub_(lse_C1).exp_()
    gradient_CV.scatter_add_(-1, labels_C1, torch.full_like(lse_C1, -1.0))
    if tanh_CV is not None:
        # d (c · tanh(z / c)) / dz = 1 − tanh²(z / c)
        gradient_CV.mul_(tanh_CV.square_().neg_().add_(1.0))
    return _Chunk(nll, gradient_CV.to(dtype))


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        softcap: float | None,
        chunk_tokens: int,
        differentiable: bool,
    ) -> Tensor:
        kind = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        wide = torch.promote_types(dtype, torch.float32)
        for_hidden, for_weight = (differentiable and needed for needed in ctx.needs_input_grad[:2])

        positions_S = (labels_N != IGNORE).nonzero().squeeze(-1)
        gradient_hidden_ND = torch.zeros_like(hidden_ND) if for_hidden else None
        gradient_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if for_weight else None
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        with torch.autocast(kind, enabled=False):
            weight = weight_VD.to(dtype)
            for positions_C in positions_S.split(chunk_tokens):
                hidden_CD = hidden_ND.index_select(0, positions_C).to(dtype)
                logits_CV = (hidden_CD @ weight.T).to(wide)
                nll, gradient_CV = _chunk(logits_CV, labels_N[positions_C], softcap, differentiable, dtype)
                total += nll
                if gradient_hidden_ND is not None and gradient_CV is not None:
                    gradient_hidden_ND[positions_C] = (gradient_CV @ weight).to(hidden_ND.dtype)
                if gradient_weight_VD is not None and gradient_CV is not None:
                    _add_product(gradient_weight_VD, gradient_CV.T, hidden_CD)
        ctx.save_for_backward(gradient_hidden_ND, gradient_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient_hidden_ND, gradient_weight_VD = ctx.saved_tensors
        scaled_hidden = None if gradient_hidden_ND is None else gradient_hidden_ND * upstream
        scaled_weight = None if gradient_weight_VD is None else (gradient_weight_VD * upstream).to(ctx.weight_dtype)
        return scaled_hidden, scaled_weight, None, None, None, None


def _add_product(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """``total += left @ right``, without a temporary where the dtypes allow it."""
    if left_VC.dtype == total_VD.dtype:
        total_VD.addmm_(left_VC, right_CD)
    else:
        total_VD += left_VC @ right_CD
