"""Four grades of preference (Llama 2 §3.2.1), from what a judge gives: a gap of scores, or several votes.

A gap is that between the scores of the two answers, in the unit in which the judge reports:

============== ================= ===================================== =======================================
grade          gap of gold, or   gap of a reward model, in nats: the   what it says
               of a probability  chance that the better one is chosen
============== ================= ===================================== =======================================
significantly  ≥ 0.6             2.2: 90 %                             nobody would choose the other
better         ≥ 0.35            1.1: 75 %                             most would choose it
slightly       ≥ 0.15            0.4: 60 %                             it is a little better
negligibly     < 0.15                                                  about as good, or unsure
============== ================= ===================================== =======================================

The first column of numbers is what the miniature's raters use and what ``stage=label`` begins with; the second
is what they are for scores under σ(r₁ − r₂), as a Bradley–Terry reward model gives them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from alignment.chat.types import Grade
from alignment.errors import UserError
from alignment.settings import Settings, identity

GRADES: tuple[Grade, ...] = get_args(Grade)
"""The strongest first."""

Vote = TypeVar("Vote")


class Bounds(Settings):
    """From which gap on a preference has which grade; below the last it is negligible."""

    significantly: float = identity("gap of the judge's scores from which on an answer is significantly better", gt=0)
    better: float = identity("gap from which on it is better", gt=0)
    slightly: float = identity("gap from which on it is slightly better; below, negligibly", gt=0)

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "grades") -> Bounds:
        """Validate. Raises :class:`UserError` where a stronger grade would need a smaller gap."""
        bounds: Bounds = super().parse(values, where)
        if not bounds.significantly > bounds.better > bounds.slightly:
            raise UserError(
                f"{where}: {bounds.significantly}, {bounds.better}, {bounds.slightly} do not fall",
                cause="A stronger preference shows in a larger gap.",
                remedy="Choose significantly > better > slightly.",
            )
        return bounds


def of_gap(gap: float, bounds: Bounds) -> Grade:
    """The grade of the distance between two scores (≥ 0)."""
    assert gap >= 0, gap
    if gap >= bounds.significantly:
        return "significantly"
    if gap >= bounds.better:
        return "better"
    return "slightly" if gap >= bounds.slightly else "negligibly"


def middle(grades: Sequence[Grade]) -> Grade:
    """The median of several grades; of two middle ones the weaker."""
    ordered = sorted(grades, key=GRADES.index)
    return ordered[len(ordered) // 2]


def majority(votes: Sequence[Vote]) -> tuple[Vote | None, int]:
    """What most voters said, and how many they were; None where the first place is shared or nobody voted."""
    ranked = Counter(votes).most_common(2)
    if not ranked:
        return None, 0
    shared = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
    return (None if shared else ranked[0][0]), ranked[0][1]
