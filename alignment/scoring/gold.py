"""The miniature world's truth as a scorer. It reaches no training stage unless named there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from alignment.chat.types import Messages
from alignment.miniature import gold
from alignment.miniature.world import World
from alignment.scoring.scorer import Scores

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
