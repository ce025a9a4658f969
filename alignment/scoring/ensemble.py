"""Several scorers as one: the mean of their scores, and how far they disagree.

The counterpart of a model whose weights were averaged (WARM, Ramé et al., arXiv 2401.12187): there one model is asked,
here every member.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from alignment.chat.types import Messages
from alignment.scoring.scorer import Scorer, Scores


class Ensemble:
    """Asks every member. Absolute only if all of them are."""

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        assert scorers, "an ensemble has a member"
        self.scorers = tuple(scorers)
        self.name = " + ".join(scorer.name for scorer in scorers)
        self.absolute = all(scorer.absolute for scorer in scorers)

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        """The mean of each reading; the probability is the mean probability and not that of the mean."""
        return mean([scorer.score(dialogues) for scorer in self.scorers])

    def disagreement(self, dialogues: Sequence[Messages]) -> list[float]:
        """:func:`spread` of the members."""
        return spread([scorer.score(dialogues) for scorer in self.scorers])


def mean(members: Sequence[Scores]) -> Scores:
    """The mean of several scorers' scores of the same dialogues."""
    return Scores(*([fmean(values) for values in zip(*reading, strict=True)] for reading in zip(*members, strict=True)))


def spread(members: Sequence[Scores]) -> list[float]:
    """The standard deviation (of the population) of several scorers' reported scores, for each dialogue."""
    return [pstdev(values) for values in zip(*(scores.reported for scores in members), strict=True)]
