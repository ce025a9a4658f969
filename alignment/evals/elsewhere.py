"""Results that were measured elsewhere, beside those of this evaluation: told as a suite, called ``imports``.

So they stand in every table, on the page, among the capabilities and before the gate, as ``imports/<measure>``. Where
nobody said how sure they are their bounds are null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment import files
from alignment.errors import UserError
from alignment.evals import imported, versions
from alignment.evals.imported import Model, Result
from alignment.evals.intervals import Interval, mean_of, unpaired
from alignment.evals.suites.kept import Told, told_of
from alignment.evals.suites.suite import Measure

NAME = KIND = "imports"
Of = Mapping[str, Mapping[str, Interval]]


def told(
    paths: Sequence[Path],
    models: Sequence[Model],
    names: Sequence[str] | None,
    against: versions.Against,
) -> Told:
    """What files say of these models, as ``evals/suites/comparing.py`` tells a suite; ``names`` are those of arms.

    Lines of other models are left aside; an arm has what every seed has. Raises :class:`UserError` for a file that has
    nothing of any model.
    """
    results = [one for path in paths for one in _concerning(path, models)]
    found = {model.name: {_name(one, results): one for one in imported.of(model, results)} for model in models}
    declared: dict[str, list[Result]] = {}
    for of in found.values():
        for name, one in of.items():
            declared.setdefault(name, []).append(one)
    seeds = versions.seeds_of([model.name for model in models], names)
    arms = {arm: _common([found[label] for label in labels]) for arm, labels in seeds.items()}
    suite: Told = {
        "kind": KIND,
        "made_of": {"sources": [files.digest_file(path) for path in paths]},
        "declared": [Measure(name, None, _doc(some))._asdict() for name, some in declared.items()],
        "models": {label: {name: _one(one.interval, one.n) for name, one in of.items()} for label, of in found.items()},
        "groups": {},
        "differences": dict(_differences(arms, versions.base_of(list(arms), against))),
    }
    if len(arms) < len(found):
        suite["arms"] = {arm: {name: _one(one, None) for name, one in of.items()} for arm, of in arms.items()}
    return suite


def others(paths: Sequence[Path], models: Sequence[Model]) -> list[str]:
    """The models of which files tell besides these; their lines are left aside."""
    told = dict.fromkeys(one.model for path in paths for one in imported.read(path))
    return [name for name in told if not any(model.is_called(name) for model in models)]


def _concerning(path: Path, models: Sequence[Model]) -> list[Result]:
    everything = imported.read(path)
    found = [one for one in everything if any(model.is_called(one.model) for model in models)]
    if not found:
        theirs = dict.fromkeys(one.model for one in everything)
        raise UserError(
            f"imports={path}: has no line of {', '.join(model.name for model in models)}",
            cause=f"It tells of {', '.join(theirs)}.",
            remedy="Write a model's name here, its fingerprint, its folder's name or its reference.",
        )
    return found


def _name(one: Result, results: Sequence[Result]) -> str:
    """The measure, with its source where several have measured it: two models are compared by one source alone."""
    sources = {other.source for other in results if other.measure == one.measure}
    return one.measure if len(sources) == 1 else f"{one.measure} ({one.source})"


def _doc(some: Sequence[Result]) -> str:
    """Who measured it, and when."""
    dates = sorted({one.date for one in some})
    return f"{some[0].source}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}"


def _common(seeds: Sequence[Mapping[str, Result]]) -> dict[str, Interval]:
    return {name: mean_of([of[name].interval for of in seeds]) for name in seeds[0] if all(name in of for of in seeds)}


def _differences(arms: Of, bases: Mapping[str, str]) -> Iterator[tuple[str, Told]]:
    for arm, base in bases.items():
        both = [name for name in arms[arm] if name in arms[base]]
        less = {name: _one(unpaired(arms[arm][name], arms[base][name]), None) for name in both}
        yield arm, {"from": base, "measures": less, "groups": {}}


def _one(interval: Interval, count: int | None) -> dict[str, Any]:
    return told_of(interval) | {"examples": count}
