"""What judges answers: messages in, scores out.

Reward models, the miniature's gold, checkable answers and judges all are scorers, so that whoever
needs a judgement (evaluation, filters, rejection sampling, RL) takes any of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from alignment.artifacts import Artifact
from alignment.chat.types import Messages
from alignment.errors import UserError

CERTAIN = 1e-3
"""How near to certainty a probability may come where its logit is wanted."""


class Scores(NamedTuple):
    """One number a dialogue, in three readings.

    ``raw`` is what the model gives (of a reward model, its logit). ``reported`` is what people see and what is mixed
    with other scores: centred, where a scorer centres. ``probability``, in [0, 1], is what thresholds read: σ(raw) of
    a reward model, a classifier's probability, gold's own value. A centre never moves it.
    """

    raw: list[float]
    reported: list[float]
    probability: list[float]

    @property
    def logits(self) -> list[float]:
        """What is reported, on a reward model's scale: log p / (1 − p) where a scorer reports its probability p.

        Certainty would be infinite there; p is held ``CERTAIN`` away from 0 and from 1, so within ±6.91 (our choice).
        """
        if self.reported != self.probability:
            return self.reported
        held = [min(max(value, CERTAIN), 1 - CERTAIN) for value in self.probability]
        return [math.log(value / (1 - value)) for value in held]


class Scorer(Protocol):
    """Judges the last answer of each dialogue. The same dialogue gets the same score in any batch.

    ``absolute`` says whether its probability means something by itself. Of a reward model that was trained on
    comparisons alone it does not: Bradley–Terry fixes only differences.
    """

    name: str
    absolute: bool

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """Scores for dialogues that end with the assistant; an empty answer is scored like any other."""
        ...


def threshold(scorer: Scorer, given: float | None, otherwise: float) -> float:
    """The probability at which to divide: ``given`` where the user gave one, else ``otherwise``.

    Raises :class:`UserError` where neither can be: ``otherwise`` supposes a scorer that is absolute.
    """
    if given is not None:
        return given
    if not scorer.absolute:
        raise UserError(
            f"{scorer.name}: its scores have no threshold of their own",
            cause=f"Trained on comparisons alone, it knows differences; σ(score) = {otherwise:g} means nothing to it.",
            remedy="Give a threshold that was measured for it (reward.safety_below, safe_above, thresholds), or train "
            "it with the safety loss: stage=reward safety_weight=1.",
        )
    return otherwise


def sigmoid(value: float) -> float:
    """σ(value), without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def name_of(artifact: Artifact) -> str:
    """What a scorer is called: ``helpful`` for a step of ours, ``name`` for ``hf:org/name@revision``."""
    return re.split(r"[/:]", artifact.step.partition("@")[0].rstrip("/"))[-1] or artifact.path.name
