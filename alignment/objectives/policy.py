"""Learning from rewards: shaped rewards, advantages, clipped losses (PPO, RLOO, REINFORCE).

A batch is padded on the right. What lies outside of ``mask_BT`` (an answer's tokens, the one that ends it included) has
no influence on anything, not even as NaN, and what is returned there is 0. Losses are summed and come with the number
of their terms, because a mean is over the global batch: over all micro-batches and all processes.

Axes: B answers, T tokens of an answer, P prompts, K answers to one prompt.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from alignment.objectives.tokens import masked_mean, masked_sum

Level = Literal["token", "answer"]


class Advantages(NamedTuple):
    """``advantages_BT``, and ``returns_BT`` = advantages + values, which the critic learns."""

    advantages_BT: Tensor
    returns_BT: Tensor


class PolicyLoss(NamedTuple):
    """``loss`` summed over ``terms`` tokens or answers; of them ``clipped`` had a ratio beyond the clip that bound.

    ``drift`` is the sum over terms of ρ − 1 − log ρ, whose mean estimates KL(old policy ‖ policy) without ever being
    negative (the k3 estimator).
    """

    loss: Tensor
    terms: Tensor
    clipped: Tensor
    drift: Tensor


class ValueLoss(NamedTuple):
    """``loss`` summed over ``terms`` tokens; of them ``clipped`` were held back by the clip."""

    loss: Tensor
    terms: Tensor
    clipped: Tensor


def shaped_rewards(
    scores_B: Tensor, logprobs_BT: Tensor, anchor_logprobs_BT: Tensor, mask_BT: Tensor, *, beta: float
) -> Tensor:
    """``rewards_BT``: −β (log π − log π_anchor) at every token, and the score at the answer's last token.

    The KL penalty is the k1 estimator (arXiv 2403.17031). The last token is the last of the mask, which is the one
    that ends the answer where it has ended: never the padding behind it.
    """
    _check(mask_BT)
    rewards_BT = _inside(-beta * (logprobs_BT - anchor_logprobs_BT), mask_BT)
    last_B1 = mask_BT.long().sum(-1, keepdim=True) - 1
    return rewards_BT.scatter_add(-1, last_B1, scores_B[:, None].to(rewards_BT.dtype))


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, eq. 16).

    A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t; V is 0 behind the last token, where the answer is over.
    ``values_BT[:, t]`` is the value of the state in which token t was chosen, before it.
    """
    _check(mask_BT)
    rewards_BT, values_BT = _inside(rewards_BT, mask_BT), _inside(values_BT, mask_BT)
    columns: list[Tensor] = []
    running_B = next_value_B = torch.zeros_like(rewards_BT[:, 0])
    for step in reversed(range(rewards_BT.shape[1])):
        inside_B, value_B = mask_BT[:, step].bool(), values_BT[:, step]
        delta_B = rewards_BT[:, step] + gamma * next_value_B - value_B
        running_B = torch.where(inside_B, delta_B + gamma * lam * running_B, torch.zeros_like(delta_B))
        next_value_B = value_B
        columns.append(running_B)
    advantages_BT = torch.stack(columns[::-1], dim=-1)
    return Advantages(advantages_BT, _inside(advantages_BT + values_BT, mask_BT))


def leave_one_out(returns_PK: Tensor) -> Tensor:
    """``advantages_PK``: A_i = R_i − the mean of the other K − 1 (RLOO; Ahmadian et al., arXiv 2402.14740, eq. 8).

    Where all K are equal the advantage is exactly 0.
    """
    K = returns_PK.shape[-1]
    assert K >= 2, "an answer is compared with the others to its prompt: there must be two"
    # About the first of them, so that equal returns give zeros and not rounding.
    about_PK = returns_PK - returns_PK[..., :1]
    return (K * about_PK - about_PK.sum(-1, keepdim=True)) / (K - 1)


def clipped_policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    level: Level,
    weights_BT: Tensor | None = None,
    largest_weight: float = float("inf"),
) -> PolicyLoss:
    """−Σ min(ρ A, clip(ρ, 1 ± ε) A), ρ = π / π_old (PPO; Schulman et al., arXiv 1707.06347, eq. 7).

    ``level="token"``: every token has a ratio. ``level="answer"``: a whole answer is one action, its ratio the product
    over its tokens, its advantage that of its first token (RLOO and REINFORCE). At ρ = 1 the gradient is that of
    −A log π, the plain policy gradient. ``weights_BT`` are importance weights (tokens were drawn by something that
    differs from π_old by rounding), constant with respect to the gradient and cut off at ``largest_weight``; at level
    "answer" they multiply first.
    """
    _check(mask_BT)
    log_ratio = _inside(logprobs_BT - old_logprobs_BT, mask_BT)
    advantages, mask = _inside(advantages_BT, mask_BT), mask_BT.bool()
    weights = None if weights_BT is None else torch.where(mask, weights_BT, torch.ones_like(weights_BT))
    if level == "answer":
        log_ratio, advantages = log_ratio.sum(-1), advantages[:, 0]
        mask, weights = mask.any(-1), None if weights is None else weights.prod(-1)
    ratio = log_ratio.exp()
    free, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    gain = torch.minimum(free, held)
    gain = gain if weights is None else gain * weights.clamp(max=largest_weight)
    clipped, drift = held.detach() < free.detach(), torch.expm1(log_ratio.detach()) - log_ratio.detach()
    return PolicyLoss(-masked_sum(gain, mask), mask.sum(), (clipped & mask).sum(), masked_sum(drift, mask))


def clipped_value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float | None
) -> ValueLoss:
    """½ Σ max((V − R)², (V_clipped − R)²), V_clipped within ``clip`` of the old value (arXiv 2403.17031).

    ``clip=None`` is the plain square.
    """
    _check(mask_BT)
    values, old, returns = (_inside(one, mask_BT) for one in (values_BT, old_values_BT, returns_BT))
    free = (values - returns).square()
    held = free if clip is None else (old + (values - old).clamp(-clip, clip) - returns).square()
    # Beyond the clip and worse for it; within, old + (V − old) differs from V by rounding.
    beyond = torch.zeros_like(mask_BT, dtype=torch.bool) if clip is None else (values - old).detach().abs() > clip
    clipped = (held.detach() > free.detach()) & beyond & mask_BT.bool()
    return ValueLoss(0.5 * masked_sum(torch.maximum(free, held), mask_BT), mask_BT.sum(), clipped.sum())


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 − Var(returns − values) / Var(returns): 1 is a perfect critic, 0 one no better than a constant.

    0 where returns do not vary.
    """
    returns, errors = _inside(returns_BT, mask_BT), _inside(returns_BT - values_BT, mask_BT)

    def variance(one: Tensor) -> Tensor:
        return masked_mean((one - masked_mean(one, mask_BT)).square(), mask_BT)

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(errors) / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


def _inside(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is true and 0 elsewhere; gradients from elsewhere are 0 too."""
    return torch.where(mask.bool(), values, torch.zeros((), dtype=values.dtype, device=values.device))


def _check(mask_BT: Tensor) -> None:
    assert bool(mask_BT[:, 0].all()), "every answer has at least one token, and padding stands on the right"
