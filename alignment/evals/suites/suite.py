"""What a suite gives: examples, each with its measures, and what those measures are.

Examples of two models are the same where their ids are: differences are taken between them. Intervals resample
``unit``s, so that the turns of a dialogue, or the formats of a question, count as what they are: one draw.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from alignment.errors import UserError, nearest
from alignment.settings import Settings, identity

Better = Literal["higher", "lower"]


class Suite(Settings):
    """What a suite says, whatever its kind."""

    kind: str = identity("what is measured: a module of alignment/evals/suites")


class Measure(NamedTuple):
    """A number that every example may have. Of the whole it is the mean, or Σ of it / Σ of ``per``, or the exponential.

    ``better`` is null where neither more nor less of it is. ``most`` is 1 for shares: where all values but a few are
    equal, how far others can be from them is what is left to doubt (``Bootstrap.bounded``).
    """

    name: str
    better: Better | None
    doc: str
    """What it is, and its unit, in a few words."""
    per: str | None = None
    exponential: bool = False
    most: float | None = None
    """The largest value of a measure whose least is 0; null where nothing bounds it so."""

    @property
    def bounded(self) -> bool:
        """Whether it is a mean of values from 0 to ``most``."""
        return bool(self.most) and self.per is None and not self.exponential


@dataclass(frozen=True, slots=True)
class Example:
    """One thing that was measured. A measure that does not apply is left out of ``values``.

    ``groups`` are the parts of the suite that are told besides the whole: ``{"turn": "4", "category": "hateful"}``.
    ``shown`` is what a person wants to see of it: prompt, answer, a judge's reason.
    """

    id: str
    unit: str
    values: Mapping[str, float]
    groups: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)


class Examined(NamedTuple):
    """All examples of one model, in an order that is the same for every model; ``notes`` are kept beside them."""

    measures: tuple[Measure, ...]
    examples: Iterable[Example]
    notes: Mapping[str, Any] = {}


def parse(values: Any) -> Suite:
    """A suite's settings. Raises :class:`UserError` for an unknown kind, and for what the kind does not take."""
    kind = values.get("kind") if isinstance(values, Mapping) else None
    module = load(kind)
    settings: Suite = module.Settings.parse(values, f"suite of kind {kind}")
    return settings


def load(kind: Any) -> Any:
    """The module of a kind. Raises :class:`UserError` where there is none."""
    from alignment.evals.suites import KINDS

    if kind not in KINDS:
        raise UserError(
            f"suite.kind={kind}: there is no such kind of suite",
            cause="A suite is a mapping whose `kind` says what is measured.",
            remedy=nearest(str(kind), [*KINDS]),
        )
    return importlib.import_module(f"alignment.evals.suites.{kind}")
