"""Models by capability (knowledge, reading, maths …), each the mean over what measures it (Llama 2, table 3).

What measures a capability is a suite, by its first measure, or a label of one of its groups: ``arc``,
``miniature_choices/skill/sum``. A capability that nothing here measures, such as code, which wants a sandbox, stands in
the table with a dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.errors import UserError, nearest
from alignment.evals.intervals import Interval
from alignment.evals.suites.kept import Told, interval_of

Capabilities = Mapping[str, Sequence[str]]


def check(capabilities: Capabilities, suites: Sequence[str]) -> None:
    """Raise :class:`UserError` for a capability that is measured by a suite which is not asked for."""
    for name, of in capabilities.items():
        for one in of:
            suite, *rest = one.split("/")
            if suite not in suites or len(rest) not in (0, 2):
                raise UserError(
                    f"capabilities.{name}: {one} is none of the suites",
                    cause=f"Asked for are {', '.join(suites) or 'none'}.",
                    remedy=f"Name one of them, or <suite>/<group>/<label>. {nearest(suite, [*suites])}",
                )


def told(capabilities: Capabilities, suites: Mapping[str, Told]) -> Told:
    """By capability: ``of`` (what measures it), ``models`` (by model or arm) and ``differences`` (with ``from``).

    Raises :class:`UserError` for a group or label that a suite does not have.
    """
    found: Told = {}
    for name, of in capabilities.items():
        values = [_values(one, suites) for one in of]
        less = [_differences(one, suites) for one in of]
        found[name] = {
            "of": [*of],
            "models": {model: mean([one[model] for one in values])._asdict() for model in _common(values)},
            "differences": {
                model: mean([interval_of(one[model]) for one in less])._asdict() | {"from": less[0][model]["from"]}
                for model in _common(less)
            },
        }
    return found


def mean(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent estimates, and its bounds from theirs (Zou & Donner 2008, MOVER).

    What is measured on the same questions is not independent, and the bounds are then too narrow.
    """
    count = len(intervals)
    middle = sum(one.estimate for one in intervals) / count
    below = math.hypot(*(one.estimate - one.low for one in intervals)) / count
    above = math.hypot(*(one.high - one.estimate for one in intervals)) / count
    return Interval(middle, middle - below, middle + above)


def _common(values: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The models of which everything that measures the capability is known."""
    return (model for model in (values[0] if values else ()) if all(model in one for one in values))


def _values(said: str, suites: Mapping[str, Told]) -> dict[str, Interval]:
    """By model or arm: the first measure of a suite, or of one of its groups' labels."""
    suite, place = _found(said, suites)
    measures = suite.get("arms") or suite["models"]
    if place is not None:
        group, label = place
        measures = suite["groups"][group][label]
    first = suite["declared"][0]["name"]
    return {model: interval_of(one[first]) for model, one in measures.items() if first in one}


def _differences(said: str, suites: Mapping[str, Told]) -> dict[str, dict[str, Any]]:
    suite, place = _found(said, suites)
    first, found = suite["declared"][0]["name"], {}
    for model, one in suite["differences"].items():
        measures = one["measures"] if place is None else one["groups"].get(place[0], {}).get(place[1], {})
        if first in measures:
            found[model] = {**measures[first], "from": one["from"]}
    return found


def _found(said: str, suites: Mapping[str, Told]) -> tuple[Told, tuple[str, str] | None]:
    name, *rest = said.split("/")
    suite = suites[name]
    if not rest:
        return suite, None
    group, label = rest
    labels = suite["groups"].get(group, {})
    if label not in labels:
        there = [f"{name}/{group}/{label}" for group, labels in suite["groups"].items() for label in labels]
        raise UserError(
            f"capabilities: {said} is not told by the suite {name}",
            cause=f"It tells {', '.join(there[:20]) or 'no groups'}.",
            remedy=nearest(said, there),
        )
    return suite, (group, label)
