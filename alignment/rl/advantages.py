"""From rewards to advantages: PPO's with a critic, RLOO's within a group, REINFORCE's against a baseline.

Axes: B answers, T tokens, P prompts, K answers to one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.objectives import policy
from alignment.objectives.policy import Level
from alignment.objectives.tokens import kl_k1, masked_sum, masked_whiten
from alignment.rl.episodes import Episodes
from alignment.rl.settings import Estimating

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


@dataclass
class RunningMean:
    """The mean of all returns of the steps before, for REINFORCE (arXiv 2402.14740, §2.1)."""

    total: float = 0.0
    count: float = 0.0

    def add(self, returns_B: Tensor, total: Total) -> None:
        """Take a batch in, after it was compared with what came before it."""
        self.total += float(total(returns_B.double().sum()))
        self.count += float(total(torch.tensor(float(len(returns_B)), device=returns_B.device)))

    @property
    def mean(self) -> float:
        """0 while there is nothing: the first batch is compared with nothing."""
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True)
class Targets:
    """What an update learns from: ``advantages_BT``, ``returns_BT`` for a critic, and answers that teach nothing.

    ``rewards_B`` is what is maximised: the score less the KL penalty, where that is part of the reward. ``idle`` counts
    answers of groups in which all say or earn the same: their advantage is 0.
    """

    advantages_BT: Tensor
    returns_BT: Tensor | None
    level: Level
    rewards_B: Tensor
    idle: int


def targets(
    episodes: Episodes, numbers: Estimating, *, beta: float, baseline: RunningMean, total: Total = lambda one: one
) -> Targets:
    """Advantages of a batch. ``beta`` is the weight of the KL penalty in the reward; 0 where it is in the loss."""
    assert episodes.judged is not None, "first judged, then learned from"
    assert episodes.anchor_BT is not None, "first read, then learned from"
    mask_BT, old_BT, anchor_BT = episodes.mask_BT, episodes.old_BT, episodes.anchor_BT
    scores_B = torch.as_tensor(episodes.judged.total, dtype=torch.float32, device=mask_BT.device)
    rewards_B = scores_B - beta * masked_sum(kl_k1(old_BT, anchor_BT), mask_BT, -1)
    if numbers.kind == "gae":
        assert episodes.values_BT is not None, "gae has a critic"
        rewards_BT = policy.shaped_rewards(scores_B, old_BT, anchor_BT, mask_BT, beta=beta)
        if numbers.whiten_rewards:
            rewards_BT = masked_whiten(rewards_BT, mask_BT, center=False, total=total)
        found = policy.gae(rewards_BT, episodes.values_BT, mask_BT, gamma=numbers.gamma, lam=numbers.lam)
        advantages_BT = found.advantages_BT
        if numbers.whiten_advantages:
            advantages_BT = masked_whiten(advantages_BT, mask_BT, center=True, total=total)
        return Targets(advantages_BT, found.returns_BT, "token", rewards_B, 0)
    advantages_B = _of_answers(rewards_B, episodes.samples, numbers, baseline, total)
    if numbers.whiten_advantages:
        advantages_B = masked_whiten(advantages_B, torch.ones_like(advantages_B), center=True, total=total)
    idle = 0
    if numbers.kind == "rloo":
        # By what was said and not by what it got: scores of one answer in several rows differ by rounding.
        idle_B = _alike(episodes, rewards_B)
        advantages_B, idle = advantages_B.masked_fill(idle_B, 0.0), int(idle_B.sum())
    advantages_BT = torch.where(mask_BT, advantages_B[:, None], torch.zeros_like(old_BT))
    return Targets(advantages_BT, None, "answer", rewards_B, idle)


def _of_answers(rewards_B: Tensor, samples: int, numbers: Estimating, baseline: RunningMean, total: Total) -> Tensor:
    """``advantages_B``, an answer being one action."""
    if numbers.kind == "rloo":
        return policy.leave_one_out(rewards_B.view(-1, samples)).flatten()
    if numbers.baseline == "mean":
        count = total(torch.tensor(float(len(rewards_B)), device=rewards_B.device))
        others_B = (total(rewards_B.sum()) - rewards_B) / (count - 1)
        return rewards_B - others_B
    if numbers.baseline == "running":
        advantages_B = rewards_B - baseline.mean
        baseline.add(rewards_B, total)
        return advantages_B
    return rewards_B


def _alike(episodes: Episodes, rewards_B: Tensor) -> Tensor:
    """``[B]``: whether all answers of a group are the same, or all their rewards."""
    K = episodes.samples
    groups_PK = rewards_B.view(-1, K)
    same_P = (groups_PK == groups_PK[:, :1]).all(-1)
    groups = [episodes.answers[first : first + K] for first in range(0, len(episodes.answers), K)]
    said_P = torch.tensor([all(one == group[0] for one in group) for group in groups], device=rewards_B.device)
    return (same_P | said_P).repeat_interleave(K)
