"""Several models measured on the same prompts, on the terminal: the tables that close ``stage=evaluate``.

Reads ``results.json`` (``stages/evaluate.py`` says what is in it); ± is half of an interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment import console

Results = Mapping[str, Any]


def show(results: Results) -> None:
    """Print every table that there is something for."""
    measures(results)
    differences(results)
    skills(results)


def measures(results: Results) -> None:
    """A line for every model, or for every arm and then its seeds' means; a column for every measure."""
    if "arms" in results:
        _arms(results)
        return
    models = results["models"]
    columns = list(dict.fromkeys(measure for found in models.values() for measure in found))
    rows = [(name, *(_brief(found.get(measure)) for measure in columns)) for name, found in models.items()]
    console.say()
    title = f"models, ± half of the {results['confidence']:.0%} interval"
    console.table(title, ("model", *columns), rows, right=columns)


def _arms(results: Results) -> None:
    found = results["arms"]
    columns = list(next(iter(found.values())))
    rows = [(name, *(_brief(arm[measure]) for measure in columns)) for name, arm in found.items()]
    console.say()
    title = f"arms: means over seeds, ± half of the {results['confidence']:.0%} interval over prompts"
    console.table(title, ("arm", *columns), rows, right=columns)
    rows = [
        (name, *(" ".join(f"{value:.3f}" for value in arm[measure]["seeds"]) for measure in columns))
        for name, arm in found.items()
        if len(arm[columns[0]]["seeds"]) > 1
    ]
    console.say()
    console.table("each seed", ("arm", *columns), rows, right=columns)


def differences(results: Results) -> None:
    """Every measure less that of another model or arm, prompt by prompt."""
    found = results["differences"]
    if not found:
        return
    columns = list(next(iter(found.values()))["measures"])
    rows = [
        (name, one["from"], *(_brief(one["measures"][measure], "+") for measure in columns))
        for name, one in found.items()
    ]
    console.say()
    console.table("differences, prompt by prompt", ("model", "less", *columns), rows, right=columns)


def skills(results: Results) -> None:
    """Gold by skill, a column for every model; one that fell below the model it is compared with says so."""
    found, models = results["skill_differences"], results["skills"]
    if not found:
        return
    counts = {skill: one["prompts"] for skill, one in next(iter(found.values()))["skills"].items()}
    rows = [
        (skill, count, *(_skill(value[skill], found.get(name), skill) for name, value in models.items()))
        for skill, count in counts.items()
    ]
    console.say()
    console.table("gold by skill", ("skill", "prompts", *models), rows, right=("prompts", *models))
    fell = [
        f"{skill} from {one['from']} to {name} ({_brief(value, '+')})"
        for name, one in found.items()
        for skill, value in one["skills"].items()
        if value["fell"]
    ]
    if fell:
        console.say(f"fell beyond the interval: {'; '.join(fell)}", style="yellow")


def _skill(value: float, difference: Mapping[str, Any] | None, skill: str) -> str:
    fell = difference is not None and difference["skills"][skill]["fell"]
    return f"{'fell ' if fell else ''}{value:.3f}"


def _brief(one: Mapping[str, Any] | None, sign: str = "") -> str:
    """``0.712 ±0.020``, or a dash where nothing was measured; fewer places where numbers are large."""
    if one is None:
        return "–"
    places = 3 if abs(one["estimate"]) < 10 else 1
    return f"{one['estimate']:{sign}.{places}f} ±{(one['high'] - one['low']) / 2:.{places}f}"
