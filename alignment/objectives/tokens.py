"""Arithmetic over tokens that every objective shares: masked means, log-probabilities, estimates of the KL divergence.

Axes: N positions, C positions of one chunk, D width, V vocabulary; ``…`` any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KEPT_LOGITS = 2**24
"""Numbers in the logits of one call (64 MiB) that are kept for the backward pass instead of being computed again."""


def capped_logits(hidden_ND: Tensor, weight_VD: Tensor, softcap: float | None) -> Tensor:
    """``logits_NV`` in fp32 or wider: softcap · tanh(hidden · weightᵀ / softcap); without a cap, the plain product."""
    logits_NV = hidden_ND @ weight_VD.to(hidden_ND.dtype).T
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return logits_NV if softcap is None else torch.tanh(logits_NV / softcap) * softcap


def gather_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    ids_N: Tensor,
    *,
    softcap: float | None,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> Tensor:
    """``logprobs_N``: log p(ids_N[i] | hidden_ND[i]) in nats at ``temperature``, which divides the capped logits.

    Logits exist for ``chunk_tokens`` positions at a time, in the backward pass too, where they are computed again;
    where all of them are few (``KEPT_LOGITS``), they are kept instead.
    """
    assert ids_N.shape == hidden_ND.shape[:1], "rows and tokens must be one axis, ids beside them"
    assert temperature > 0, "greedy choices have no temperature: ask at 1"

    def chunk_logprobs(hidden_CD: Tensor, weight: Tensor, ids_C: Tensor) -> Tensor:
        logits_CV = capped_logits(hidden_CD, weight, softcap) / temperature
        return logits_CV.gather(-1, ids_C[:, None]).squeeze(-1) - logits_CV.logsumexp(-1)

    again = torch.is_grad_enabled() and len(ids_N) * len(weight_VD) > KEPT_LOGITS
    pieces = [
        checkpoint(chunk_logprobs, hidden_CD, weight_VD, ids_C, use_reentrant=False, preserve_rng_state=False)
        if again
        else chunk_logprobs(hidden_CD, weight_VD, ids_C)
        for hidden_CD, ids_C in zip(hidden_ND.split(chunk_tokens), ids_N.split(chunk_tokens), strict=True)
    ]
    return torch.cat(pieces)


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum where ``mask`` is true. What lies outside the mask has no influence, not even as NaN or infinity."""
    kept = torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean where ``mask`` is true; NaN where nothing is, so that an empty batch is not taken for one without loss."""
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return masked_sum(values, mask, dim) / count


def masked_whiten(
    values: Tensor,
    mask: Tensor,
    *,
    center: bool,
    epsilon: float = 1e-8,
    total: Callable[[Tensor], Tensor] = lambda one: one,
) -> Tensor:
    """Scale to variance 1 over the mask (population variance); ``center=True`` also shifts the mean to 0, otherwise the
    mean stays what it was. Outside the mask the result is 0. (Whitening of arXiv 2403.17031.)

    ``total`` sums a tensor over all processes, so that the batch is the global one.
    """
    count = total(mask.bool().sum())
    mean = total(masked_sum(values, mask)) / count
    deviation = values - mean
    whitened = deviation * (total(masked_sum(deviation.square(), mask)) / count + epsilon).rsqrt()
    if not center:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, torch.zeros_like(whitened))


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log p − log q of tokens drawn from p: unbiased for KL(p‖q); single values are often negative."""
    return logprobs - reference_logprobs


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """q/p − 1 − log q/p of tokens drawn from p: unbiased for KL(p‖q) and never negative."""
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def kl_reverse(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """r log r − (r − 1), r = q/p, of tokens drawn from p: unbiased for KL(q‖p), never negative, heavy-tailed."""
    log_ratio = reference_logprobs - logprobs
    return log_ratio * log_ratio.exp() - torch.expm1(log_ratio)


def exact_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL(p‖q) = Σ p · (log p − log q) over the last axis of two ``[…, V]`` logits, in nats: a tensor ``[…]``.

    A token to which p gives nothing adds nothing.
    """
    logprobs_p, logprobs_q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    p = logprobs_p.exp()
    return torch.where(p > 0, p * (logprobs_p - logprobs_q), torch.zeros_like(p)).sum(-1)
