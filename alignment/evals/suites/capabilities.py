"""Models by capability (knowledge, reading, maths …), each the mean over what measures it (Llama 2, table 3).

What measures a capability is a suite, by its first measure, another measure of it, or a label of one of its groups:
``arc``, ``imports/pass@1``, ``miniature_choices/skill/sum``. What was measured elsewhere is such a suite
(``evals/elsewhere.py``). A capability that nothing measures stands in the table with a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.errors import UserError, nearest
from alignment.evals import elsewhere
from alignment.evals.intervals import Interval, mean_of
from alignment.evals.suites.kept import Told, interval_of, told_of

Capabilities = Mapping[str, Sequence[str]]


def check(capabilities: Capabilities, suites: Sequence[str]) -> None:
    """Raise :class:`UserError` for a capability that is measured by a suite which is not asked for."""
    for name, of in capabilities.items():
        for one in of:
            suite, *rest = one.split("/")
            # What others call a measure may have strokes in it.
            if suite not in suites or (len(rest) > 2 and suite != elsewhere.NAME):
                raise UserError(
                    f"capabilities.{name}: {one} is none of the suites",
                    cause=f"Asked for are {', '.join(suites) or 'none'}.",
                    remedy="Name one of them, <suite>/<measure> or <suite>/<group>/<label>. "
                    + nearest(suite, [*suites]),
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
            "models": {model: told_of(mean_of([one[model] for one in values])) for model in _common(values)},
            "differences": {
                model: told_of(mean_of([interval_of(one[model]) for one in less])) | {"from": less[0][model]["from"]}
                for model in _common(less)
            },
        }
    return found


def _common(values: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The models of which everything that measures the capability is known."""
    return (model for model in (values[0] if values else ()) if all(model in one for one in values))


def _values(said: str, suites: Mapping[str, Told]) -> dict[str, Interval]:
    """By model or arm: a measure of a suite, or of one of its groups' labels."""
    suite, measure, place = _found(said, suites)
    measures = suite.get("arms") or suite["models"]
    if place is not None:
        group, label = place
        measures = suite["groups"][group][label]
    return {model: interval_of(one[measure]) for model, one in measures.items() if measure in one}


def _differences(said: str, suites: Mapping[str, Told]) -> dict[str, dict[str, Any]]:
    suite, measure, place = _found(said, suites)
    found = {}
    for model, one in suite["differences"].items():
        measures = one["measures"] if place is None else one["groups"].get(place[0], {}).get(place[1], {})
        if measure in measures:
            found[model] = {**measures[measure], "from": one["from"]}
    return found


def _found(said: str, suites: Mapping[str, Told]) -> tuple[Told, str, tuple[str, str] | None]:
    """The suite, the measure, and the group and label. Raises :class:`UserError` for what the suite does not have."""
    name, _, rest = said.partition("/")
    suite = suites[name]
    measures = [one["name"] for one in suite["declared"]]
    if not rest or rest in measures:
        return suite, rest or measures[0], None
    group, _, label = rest.partition("/")
    if label not in suite["groups"].get(group, {}):
        there = [f"{name}/{one}" for one in measures]
        there += [f"{name}/{group}/{label}" for group, labels in suite["groups"].items() for label in labels]
        raise UserError(
            f"capabilities: {said} is not told by the suite {name}",
            cause=f"It tells {', '.join(there[:20])}.",
            remedy=nearest(said, there),
        )
    return suite, measures[0], (group, label)
