"""Learning from comparisons: Bradley–Terry with a margin, the safety auxiliary loss of Llama 2, and DPO.

Axes: P pairs, N answers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

UNKNOWN = -1
"""The safety label of an answer that nobody labelled."""


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float = 0.0) -> Tensor:
    """``losses_P`` = −log σ(r_chosen − r_rejected − m), in nats, for raw scores r (Llama 2, arXiv 2307.09288, eq. 2).

    A margin m asks a clear preference for a clear lead: the loss of a pair falls below log 2 only past it.
    """
    return -functional.logsigmoid(chosen_P - rejected_P - margin_P)


def safety_loss(scores_N: Tensor, safe_N: Tensor) -> Tensor:
    """``losses_N`` = −log σ(r) of an answer that is safe (label 1), −log σ(−r) of one that is not (label 0).

    An answer without a label (−1) costs nothing. Llama 2 adds such a loss to its safety reward model (§3.2.2) and
    does not print it; the binary cross-entropy of σ(r), which its thresholds read, is our choice. Bradley–Terry
    fixes only differences of scores; this fixes where 0 lies.
    """
    known_N = safe_N != UNKNOWN
    losses_N = functional.binary_cross_entropy_with_logits(
        scores_N, safe_N.clamp_min(0).to(scores_N.dtype), reduction="none"
    )
    return torch.where(known_N, losses_N, torch.zeros_like(losses_N))


def dpo_loss(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, beta: float
) -> Tensor:
    """``losses_P`` = −log σ(β[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]), in nats, for
    log-probabilities summed over an answer's tokens (DPO, Rafailov et al., arXiv 2305.18290, eq. 7).

    It is :func:`bradley_terry` for the reward β(log π − log π_ref) that a policy implies; log 2 where π is π_ref.
    """
    return bradley_terry(beta * (chosen_P - reference_chosen_P), beta * (rejected_P - reference_rejected_P))
