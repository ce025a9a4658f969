"""MiniLLM: reverse KL over whole answers, by policy gradient (Gu et al., arXiv 2306.08543, eqs. 3 to 8).

With q the student, p the teacher and p̃ = α p + (1 − α) q what draws the answers, the gradient is

    −E_p̃ Σ_t w_t [ ∇ Σ_y q(y) log(p(y) / q(y)) + R_{t+1} ∇ log q(y_t) ],    w_t = q(y_t) / p̃(y_t).

Its first part is the reverse KL at every token, exact over the vocabulary: ``chunked_imitation`` with
``divergence="reverse_kl"`` and the weights w. Its second part, for what a token leads to, is here. Answers are padded
on the right; outside of the mask nothing has influence, and what is returned there is 0.

Axes: B answers, T tokens of an answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignment.objectives.policy import PolicyLoss, clipped_policy_loss


def mixed_logprobs(logprobs_BT: Tensor, teacher_logprobs_BT: Tensor, *, teacher_share: float) -> Tensor:
    """log p̃ of the drawn tokens, from log q and log p: teacher-mixed sampling. A share of 0 is the student alone."""
    assert 0 <= teacher_share < 1, "importance weights are bounded by 1 / (1 − the teacher's share)"
    if teacher_share == 0:
        return logprobs_BT
    return torch.logaddexp(teacher_logprobs_BT + math.log(teacher_share), logprobs_BT + math.log1p(-teacher_share))


def importance_weights(logprobs_BT: Tensor, drawn_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """w_t = q(y_t) / p̃(y_t), of each token by itself; detached. ``drawn_logprobs_BT`` are log p̃."""
    return (logprobs_BT - drawn_logprobs_BT).detach().exp().where(mask_BT.bool(), 0.0)


def future_rewards(rewards_BT: Tensor, mask_BT: Tensor, *, normalised: bool, own: bool = False) -> Tensor:
    """R_{t+1}: the sum of the rewards r = log p − log q of an answer's later tokens; detached, 0 at the last one.

    ``normalised`` divides by their number, T − t − 1: otherwise short answers collect less of what is mostly negative,
    and win. ``own`` begins at the token itself (R_t, by T − t), for a gradient without the exact first part.
    """
    inside_BT = mask_BT.to(rewards_BT.dtype)
    rewards_BT = rewards_BT.detach().where(mask_BT.bool(), 0.0)
    sums_BT, counts_BT = (one.flip(-1).cumsum(-1).flip(-1) for one in (rewards_BT, inside_BT))
    if not own:
        sums_BT, counts_BT = sums_BT - rewards_BT, counts_BT - inside_BT
    return sums_BT / counts_BT.clamp(min=1) if normalised else sums_BT


def long_term_loss(
    logprobs_BT: Tensor, drawn_logprobs_BT: Tensor, futures_BT: Tensor, mask_BT: Tensor, *, clip: float
) -> PolicyLoss:
    """−Σ min(ρ R, clip(ρ, 1 ± ε) R), ρ_t = q(y_t) / p̃(y_t) with the student as it is now.

    Where the clip does not bind, its gradient is −w R ∇ log q. ``drawn_logprobs_BT`` are log p̃ as it was when the
    answers were drawn, so that the same answers serve several epochs.
    """
    return clipped_policy_loss(logprobs_BT, drawn_logprobs_BT, futures_BT, mask_BT, clip=clip, level="token")
