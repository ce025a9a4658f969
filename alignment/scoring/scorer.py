"""What judges answers: messages in, raw and reported scores out.

Reward models, the miniature's gold, checkable answers and judges all are scorers, so that whoever
needs a judgement (evaluation, filters, rejection sampling, RL) takes any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from alignment.chat.types import Messages


class Scores(NamedTuple):
    """One number a dialogue. ``raw`` is what thresholds read; ``reported`` is centred where a scorer centres."""

    raw: list[float]
    reported: list[float]


class Scorer(Protocol):
    """Judges the last answer of each dialogue. The same dialogue gets the same score in any batch."""

    name: str

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """Scores for dialogues that end with the assistant; an empty answer is scored like any other."""
        ...
