"""Several models measured on the same prompts, on the terminal: the tables that close ``stage=evaluate``.

Reads ``results.json`` (``stages/evaluate.py`` says what is in it); ± is half of an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment import console
from alignment.reporting.numbers import brief, fixed

Results = Mapping[str, Any]


def show(results: Results) -> None:
    """Print every table that there is something for."""
    measures(results)
    differences(results)
    skills(results)


def measures(results: Results) -> None:
    """Every model, or every arm and then its seeds' means, by every measure."""
    if "arms" in results:
        _arms(results)
        return
    models = results["models"]
    columns = list(dict.fromkeys(measure for found in models.values() for measure in found))
    rows = {name: [brief(found.get(measure)) for measure in columns] for name, found in models.items()}
    grid(f"models, ± half of the {results['confidence']:.0%} interval", "model", columns, rows)


def _arms(results: Results) -> None:
    """Measures that are known prompt by prompt with their intervals; of the others (lengths …) the mean over seeds."""
    found, models = results["arms"], results["models"]
    own = list(next(iter(found.values())))
    seeds = {name: [models[label] for label in models if label.rpartition("#")[0] == name] for name in found}
    seeds = {name: some or [models[name]] for name, some in seeds.items()}
    others = [measure for measure in next(iter(models.values())) if measure not in own]
    rows = {
        name: [brief(arm[measure]) for measure in own] + [_mean(seeds[name], measure) for measure in others]
        for name, arm in found.items()
    }
    title = f"arms: means over seeds, ± half of the {results['confidence']:.0%} interval over prompts"
    grid(title, "arm", [*own, *others], rows)
    several = {
        name: [" ".join(map(fixed, arm[measure]["seeds"])) for measure in own]
        for name, arm in found.items()
        if len(arm[own[0]]["seeds"]) > 1
    }
    if several:
        grid("each seed", "arm", own, several)


def _mean(models: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Without an interval: chance among prompts is known for every model, and not for their mean."""
    known = [one[measure]["estimate"] for one in models if measure in one]
    return brief({"estimate": sum(known) / len(known)}, groups=1) if known else brief(None)


def differences(results: Results) -> None:
    """Every measure less that of another model or arm, prompt by prompt."""
    found = results["differences"]
    if not found:
        return
    columns = list(dict.fromkeys(measure for one in found.values() for measure in one["measures"]))
    rows = {
        name: [one["from"], *(brief(one["measures"].get(measure), "+") for measure in columns)]
        for name, one in found.items()
    }
    grid("differences, prompt by prompt", "model", ["less", *columns], rows)


def grid(title: str, head: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """A line for every name; where that is wider than the console, and the other way is not, a column for each."""
    lines = [[head, *columns], *([name, *cells] for name, cells in rows.items())]
    turned = [list(cells) for cells in zip(*lines, strict=True)]
    room = console.console().width
    if _width(lines) > room >= _width(turned):
        lines = turned
    _print(title, lines)


def _print(title: str, lines: Sequence[Sequence[str]], heads: int = 1) -> None:
    """A table, or where it is too wide several below each other, each with the first ``heads`` columns."""
    columns = [list(cells) for cells in zip(*lines, strict=True)]
    head, others = columns[:heads], columns[heads:]
    console.say()
    while others:
        fitting = 1
        while fitting < len(others) and _width_of(head + others[: fitting + 1]) <= console.console().width:
            fitting += 1
        titles, *rows = zip(*head, *others[:fitting], strict=True)
        console.table(title, titles, rows, right=titles[1:], whole=titles)
        title, others = "", others[fitting:]
        if others:
            console.say()


def _width(lines: Sequence[Sequence[str]]) -> int:
    """The characters of a table's widest line."""
    return _width_of([list(cells) for cells in zip(*lines, strict=True)])


def _width_of(columns: Sequence[Sequence[str]]) -> int:
    """The characters of a table's widest line, two between columns."""
    return sum(max(map(len, cells)) + 2 for cells in columns) - 2


def skills(results: Results) -> None:
    """Gold by skill, a column for every model; one that fell below the model it is compared with says so."""
    found, models = results["skill_differences"], results["skills"]
    if not found:
        return
    counts = {skill: one["prompts"] for skill, one in next(iter(found.values()))["skills"].items()}
    rows = [
        (skill, str(count), *(_skill(value[skill], found.get(name), skill) for name, value in models.items()))
        for skill, count in counts.items()
    ]
    _print("gold by skill", [("skill", "prompts", *models), *rows], heads=2)
    fell = [
        f"{skill} from {one['from']} to {name} ({brief(value, '+')})"
        for name, one in found.items()
        for skill, value in one["skills"].items()
        if value["fell"]
    ]
    if fell:
        console.say(f"fell beyond the interval: {'; '.join(fell)}", style="yellow")


def _skill(value: float, difference: Mapping[str, Any] | None, skill: str) -> str:
    fell = difference is not None and difference["skills"][skill]["fell"]
    return f"{'fell ' if fell else ''}{fixed(value)}"
