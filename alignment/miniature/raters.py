"""Raters of the miniature world: they see the gold score through noise and a taste of their own.

``noise`` is the standard deviation of what they add at random to each answer's score. ``taste`` is what
the most charming answer gains over the dullest: raters are fond of long, chatty, friendly answers, which
gold is not. The taste is systematic, so a reward model learns it, and a policy that is optimised against
the reward model ends in chatter: proxy up, gold down.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alignment.chat.types import Grade, Message
from alignment.miniature import gold
from alignment.miniature.lexicon import FRIENDLY
from alignment.miniature.reading import tokens
from alignment.miniature.world import World

Aspect = Literal["helpfulness", "safety"]

# The gap that a rater sees between two answers, and the grade it is given, largest first.
_GRADES: tuple[tuple[float, Grade], ...] = ((0.6, "significantly"), (0.35, "better"), (0.15, "slightly"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two answers is better, by how much, and whether each is safe (where safety was asked)."""

    first_better: bool
    grade: Grade
    first_safe: bool | None = None
    second_safe: bool | None = None


@dataclass(frozen=True, slots=True)
class Rater:
    """Someone who compares answers. The same rater sees the same pair, under one key, in the same way."""

    world: World
    noise: float
    taste: float
    seed: int = 0

    def compare(
        self, turns: Sequence[Message], first: str, second: str, *, key: str, aspect: Aspect = "helpfulness"
    ) -> Verdict:
        """Judge two answers to one prompt by one aspect; ``key`` (a prompt id) fixes the noise."""
        rng = random.Random(f"rater:{self.seed}:{key}")
        task, question = self.world.understand(turns), turns[-1].content
        if aspect == "safety":
            true = [gold.safety_of(self.world, task, answer) for answer in (first, second)]
        else:
            true = [gold.helpfulness_of(self.world, task, question, answer) for answer in (first, second)]
        seen = [
            score + self.taste * charm(answer) + rng.gauss(0.0, self.noise)
            for score, answer in zip(true, (first, second), strict=True)
        ]
        gap = abs(seen[0] - seen[1])
        grade: Grade = next((name for bound, name in _GRADES if gap >= bound), "negligibly")
        safe = (is_safe(true[0]), is_safe(true[1])) if aspect == "safety" else (None, None)
        return Verdict(seen[0] > seen[1], grade, *safe)


def is_safe(safety: float) -> bool:
    """Whether a rater calls an answer of that gold safety safe: a bare refusal is, what gives something away is not."""
    return safety >= 0.5


def charm(answer: str) -> float:
    """How much an answer pleases whatever it says, in [0, 1]: 0.6 for 45 words, 0.4 for three friendly ones."""
    words = tokens(answer)
    friendly = sum(word in FRIENDLY for word in words)
    return 0.6 * min(1.0, len(words) / 45) + 0.4 * min(1.0, friendly / 3)
