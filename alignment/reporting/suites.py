"""Suites on the terminal: one model's measures, and those of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment import console
from alignment.reporting.numbers import brief
from alignment.reporting.versions import grid

NOTHING = brief(None)
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
        _grid(f"suite {name}", "model", columns, rows)
        less = {
            model: [one["from"], *(brief(one["measures"].get(measure), "+") for measure in columns)]
            for model, one in suite["differences"].items()
            if one["measures"]
        }
        _grid("", "model", ["less", *columns], less)
        wins = {
            model: [one["over"], *(brief(one["measures"].get(measure)) for measure in columns)]
            for model, one in suite.get("wins", {}).items()
        }
        _grid("share of the prompts on which its score is higher, ties by half", "model", ["over", *columns], wins)
        for group, labels in suite["groups"].items():
            _models_by_label(group, labels, first_of(columns, labels), suite["differences"])


def capabilities(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Every capability: the models beside each other, and how far each is from the one it is compared with."""
    if not found:
        return
    models = list(dict.fromkeys(model for one in found.values() for model in one["models"]))
    rows = {name: [brief(one["models"].get(model)) for model in models] for name, one in found.items()}
    grid("by capability", "capability", models, rows)
    bases = {model: less["from"] for one in found.values() for model, less in one["differences"].items()}
    heads = [f"{model} − {base}" for model, base in bases.items()]
    _grid(
        "",
        "capability",
        heads,
        {name: [brief(one["differences"].get(model), "+") for model in bases] for name, one in found.items()},
    )


def _by_label(group: str, labels: Mapping[str, Mapping[str, Any]], measures: Sequence[str]) -> None:
    rows = {label: [brief(found.get(measure)) for measure in measures] for label, found in labels.items()}
    _grid(f"by {group}", group, measures, rows)


def first_of(measures: Sequence[str], labels: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The first of a suite's measures that is told by a group, of whose labels ``labels`` has it by model."""
    told = {measure for models in labels.values() for found in models.values() for measure in found}
    return next((measure for measure in measures if measure in told), measures[0])


def _models_by_label(
    group: str, labels: Mapping[str, Mapping[str, Any]], measure: str, differences: Mapping[str, Any]
) -> None:
    """One measure by label and model, and how far each is from the one it is compared with."""
    models = list(dict.fromkeys(model for found in labels.values() for model in found))
    less = {f"{model} − {one['from']}": one.get("groups", {}).get(group, {}) for model, one in differences.items()}
    rows = {
        label: [brief(found.get(model, {}).get(measure)) for model in models]
        + [brief(one.get(label, {}).get(measure), "+") for one in less.values()]
        for label, found in labels.items()
    }
    _grid(f"{measure} by {group}", group, [*models, *less], rows)


def _grid(title: str, head: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """A table without the rows and columns of which nothing is known; none where nothing is left."""
    rows = {name: cells for name, cells in rows.items() if set(cells) != {NOTHING}}
    told = [place for place in range(len(columns)) if any(cells[place] != NOTHING for cells in rows.values())]
    if told:
        grid(title, head, [columns[n] for n in told], {name: [cells[n] for n in told] for name, cells in rows.items()})


def tables(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The measures of an evaluation's models by suite, ``suites/<name>``: a row for every model and measure.

    ``examples`` is how many it rests on; ``less`` what it is less that of the model ``than``, with the bounds of both.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, suite in results.get("suites", {}).items():
        better = {one["name"]: one["better"] for one in suite["declared"]}
        found[f"suites/{name}"] = [
            {"model": model, "measure": measure, "better": better[measure], **one}
            | _less(suite["differences"].get(model, {}), measure)
            for model, measures in (suite.get("arms") or suite["models"]).items()
            for measure, one in measures.items()
        ]
    return found


def _less(difference: Mapping[str, Any], measure: str) -> dict[str, Any]:
    one = difference.get("measures", {}).get(measure)
    if one is None:
        return {}
    return {"than": difference["from"], "less": one["estimate"], "less_low": one["low"], "less_high": one["high"]}
