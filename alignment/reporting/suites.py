"""Suites on the terminal: one model's measures, and those of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment import console
from alignment.reporting.numbers import brief
from alignment.reporting.versions import grid

Results = Mapping[str, Any]


def show_one(results: Results) -> None:
    """Every measure of one model with what it is, and by group."""
    docs = {one["name"]: one["doc"] for one in results["declared"]}
    rows = [(name, brief(one), str(one["examples"]), docs[name]) for name, one in results["measures"].items()]
    console.say()
    title = f"± half of the {results['confidence']:.0%} interval"
    console.table(title, ("measure", "", "examples", "what it is"), rows, right=("", "examples"))
    for group, labels in results["groups"].items():
        _by_label(group, labels, [*results["measures"]])


def show(suites: Mapping[str, Results]) -> None:
    """Every suite: its models beside each other, and how far each is from the one it is compared with."""
    for name, suite in suites.items():
        columns = [one["name"] for one in suite["declared"]]
        rows = {model: [brief(found.get(one)) for one in columns] for model, found in suite["models"].items()}
        grid(f"suite {name}", "model", columns, rows)
        less = {
            model: [one["from"], *(brief(one["measures"].get(measure), "+") for measure in columns)]
            for model, one in suite["differences"].items()
        }
        if less:
            grid("", "model", ["less", *columns], less)
        for group, labels in suite["groups"].items():
            _models_by_label(group, labels, first_of(columns, labels))


def _by_label(group: str, labels: Mapping[str, Mapping[str, Any]], measures: Sequence[str]) -> None:
    rows = {label: [brief(found.get(measure)) for measure in measures] for label, found in labels.items()}
    grid(f"by {group}", group, measures, rows)


def first_of(measures: Sequence[str], labels: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The first of a suite's measures that is told by a group, of whose labels ``labels`` has it by model."""
    told = {measure for models in labels.values() for found in models.values() for measure in found}
    return next((measure for measure in measures if measure in told), measures[0])


def _models_by_label(group: str, labels: Mapping[str, Mapping[str, Any]], measure: str) -> None:
    """One measure by label and model."""
    models = list(dict.fromkeys(model for found in labels.values() for model in found))
    rows = {label: [brief(found.get(model, {}).get(measure)) for model in models] for label, found in labels.items()}
    grid(f"{measure} by {group}", group, models, rows)
