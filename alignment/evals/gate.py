"""Whether a candidate may take the best model's place: rules on measures, and what intervals say of them.

A rule bounds a measure's value (``at_least``, ``at_most``), or the difference candidate − best (``no_worse_than``,
``better_by``). It holds where even the worse end of the interval keeps the bound, unless it asks for the estimate.
What was not measured breaks its rule. Axes: P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from alignment.evals.intervals import Interval

Kind = Literal["at_least", "at_most", "no_worse_than", "better_by"]
By = Literal["interval", "estimate"]
Better = Literal["higher", "lower"]
KINDS: tuple[Kind, ...] = get_args(Kind)

KNOWN: dict[str, Better] = {
    "gold": "higher",
    "reward": "higher",
    "finished": "higher",
    "kl": "lower",
    "perplexity": "lower",
}
"""Whether more or less is better, by the first word of a measure's name. Of others a rule has to say it."""
FEWEST = 10
"""Prompts below which an interval breaks a rule: a bootstrap of so few values is too sure of itself."""


@dataclass(frozen=True)
class Rule:
    """``bound`` is in the measure's own unit; that of a difference is 0 or more. ``better`` is null for values."""

    measure: str
    kind: Kind
    bound: float
    by: By = "interval"
    better: Better | None = None

    @property
    def compares(self) -> bool:
        """Whether it is about the difference to the best."""
        return self.kind in ("no_worse_than", "better_by")

    @property
    def wants_more(self) -> bool:
        """Whether values above the limit keep it."""
        return self.better != "lower" if self.compares else self.kind == "at_least"

    @property
    def limit(self) -> float:
        """The bound of the value, or of candidate − best."""
        loss = -self.bound if self.kind == "no_worse_than" else self.bound
        return -loss if self.compares and not self.wants_more else loss

    @property
    def sign(self) -> str:
        """How what counts has to stand to :attr:`limit`. A gain of exactly ``better_by`` is none beyond it."""
        return (">" if self.wants_more else "<") if self.kind == "better_by" else ("≥" if self.wants_more else "≤")

    def holds(self, value: float) -> bool:
        """Whether a value, or a difference, keeps the bound."""
        if self.kind == "better_by":
            return value > self.limit if self.wants_more else value < self.limit
        return value >= self.limit if self.wants_more else value <= self.limit


class Finding(NamedTuple):
    """What is known of a rule's measure from one place; ``interval`` is null where nothing is, and ``why`` says why.

    Bounds are infinite where nobody said them. ``prompts`` is their number, null where it is not known.
    """

    where: str
    interval: Interval | None
    prompts: int | None = None
    paired: bool = False
    why: str = ""


class Verdict(NamedTuple):
    """A rule, what it was judged by, whether it holds, and why."""

    rule: Rule
    finding: Finding
    passed: bool
    why: str


def better_of(measure: str) -> Better | None:
    """Whether more or less of a measure is better, where it is known."""
    return KNOWN.get(measure.partition("_")[0])


def number(value: float, sign: str = "") -> str:
    """A number as gate and reasons tell it, four digits; with the sign ``+`` also that of a gain."""
    return f"{value:{sign}z.4g}"


def judge(rule: Rule, finding: Finding) -> Verdict:
    """Whether a rule holds by what was found."""
    interval = finding.interval
    if interval is None:
        return Verdict(rule, finding, False, finding.why)
    sign = "+" if rule.compares else ""
    estimate = number(interval.estimate, sign)
    if rule.by == "estimate":
        return Verdict(rule, finding, rule.holds(interval.estimate), f"the estimate is {estimate}")
    worst = interval.low if rule.wants_more else interval.high
    if math.isinf(worst):
        return Verdict(rule, finding, False, "nothing says how sure it is; the rule could ask for the estimate")
    if not rule.holds(interval.estimate):
        return Verdict(rule, finding, False, f"the estimate itself is {estimate}")
    if finding.prompts is not None and finding.prompts < FEWEST:
        return Verdict(rule, finding, False, f"{finding.prompts} prompts are too few for an interval")
    passed, reach = rule.holds(worst), number(worst, sign)
    return Verdict(rule, finding, passed, f"at worst {reach}" if passed else f"not sure: it may be {reach}")


def passes(verdicts: Sequence[Verdict]) -> bool:
    """Whether every rule holds wherever its measure was found; without a rule nothing was asked, and nothing passes."""
    return bool(verdicts) and all(verdict.passed for verdict in verdicts)
