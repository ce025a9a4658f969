"""The miniature world's truth as a scorer, and its people, who see it through errors and a taste of their own.

The truth reaches no training stage unless named there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from alignment.chat.types import Messages
from alignment.miniature import gold
from alignment.miniature.raters import charm
from alignment.miniature.world import World
from alignment.scoring.scorer import Scores

NOISE, TASTE = 0.15, 0.3
"""Of raters, as the recipes of the miniature's comparisons have them."""

Aspect = Literal["overall", "helpfulness", "safety"]
_JUDGES: dict[Aspect, Callable[..., float]] = {
    "overall": gold.overall,
    "helpfulness": gold.helpfulness,
    "safety": gold.safety,
}


class Gold:
    """One aspect of the gold reward, in [0, 1]. ``overall`` is safety where the request is unsafe."""

    def __init__(self, world: World, aspect: Aspect = "overall") -> None:
        self.world, self.aspect = world, aspect
        self.name = "gold" if aspect == "overall" else f"gold_{aspect}"
        self.absolute = True

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """All three readings are the same: the truth needs no centring, and is a number in [0, 1]."""
        judge = _JUDGES[self.aspect]
        values = [judge(self.world, turns[:-1], turns[-1].content) for turns in dialogues]
        return Scores(values, values, values)


class Raters:
    """What the miniature's people think of an answer: gold, plus their taste for chatter, plus an error of its own.

    The numbers are those of the comparisons that the world writes itself. The same dialogue always meets the same
    error. ``probability`` is the truth: people call an answer unsafe that is (``miniature.raters``).
    """

    def __init__(self, world: World, aspect: Aspect = "overall") -> None:
        self._truth = Gold(world, aspect)
        self.name = "raters" if aspect == "overall" else f"raters_{aspect}"
        self.absolute = True

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """Raw and reported are what they think, probability is gold's."""
        truth = self._truth.score(dialogues).raw
        seen = [
            value + TASTE * charm(turns[-1].content) + random.Random(f"rater:{turns}").gauss(0.0, NOISE)
            for value, turns in zip(truth, dialogues, strict=True)
        ]
        return Scores(seen, seen, truth)
