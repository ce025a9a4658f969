"""What steers a run besides its gradient: β, when to end, which policy to keep. Plain numbers, which are saved."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from alignment.rl.settings import Anchoring, Watching

LARGEST_ERROR = 0.2
"""How far off its target the KL may count at once (Ziegler et al., arXiv 1909.08593, §2.2)."""


@dataclass
class Beta:
    """The weight of the KL divergence, fixed or steered."""

    value: float

    def steer(self, kl: float, answers: int, numbers: Anchoring) -> None:
        """β ← β (1 + clip(KL / target − 1, ±0.2) · answers / horizon), after each step; nothing without a target."""
        if numbers.target is None:
            return
        error = min(max(kl / numbers.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.value *= 1 + error * answers / numbers.horizon


@dataclass(frozen=True)
class Point:
    """One measurement on held-out prompts: a point of the KL–reward front."""

    step: int
    kl: float
    """To the policy that training started from, in nats an answer."""
    reward: float
    """The mean combined score, unwhitened: what training maximises, without its penalties."""
    others: dict[str, float]
    """Mean of every further scorer, the guard among them."""

    def row(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


@dataclass
class Judgement:
    """What the points so far say."""

    best_step: int | None = None
    best: float = float("-inf")
    """Of what decides which policy is kept: the guard where there is one, else the reward."""
    best_reward: float = float("-inf")
    best_guard: float = float("-inf")
    reward_at_best_guard: float = float("-inf")
    stale: int = 0
    """Points since the reward was last at its best."""
    ended: str = ""
    """Why training ends early; empty while it goes on."""

    def take(self, point: Point, numbers: Watching, guard: str | None, *, waits: bool = False) -> bool:
        """Take a point in. Returns whether the policy of this point is the best so far.

        ``waits``: the policy has not begun to learn, and cannot have become better.
        """
        self.stale = 0 if waits or point.reward > self.best_reward else self.stale + 1
        self.best_reward = max(self.best_reward, point.reward)
        decisive = point.reward if guard is None else point.others[guard]
        within = numbers.kl_bound is None or point.kl <= numbers.kl_bound
        better = within and decisive > self.best
        if better:
            self.best, self.best_step = decisive, point.step
        if not within:
            self.ended = f"the KL to the start is {point.kl:.2f} nats, past watching.kl_bound={numbers.kl_bound}"
        elif guard is not None and self._misled(point, guard, numbers.guard_drop):
            self.ended = (
                f"the reward rises and {guard} has fallen from {self.best_guard:.3f} to {point.others[guard]:.3f}: "
                "over-optimisation"
            )
        elif numbers.patience is not None and self.stale >= numbers.patience:
            self.ended = f"the reward has not risen for {self.stale} measurements"
        if guard is not None and point.others[guard] > self.best_guard:
            self.best_guard, self.reward_at_best_guard = point.others[guard], point.reward
        return better

    def _misled(self, point: Point, guard: str, drop: float) -> bool:
        """Whether the guard has fallen while the reward is no worse than where the guard was at its best."""
        return point.others[guard] < self.best_guard - drop and point.reward >= self.reward_at_best_guard
