"""An evaluation on the terminal: as its stage ends, and whenever somebody looks at it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment import console
from alignment.reporting import suites, versions
from alignment.reporting.numbers import fixed

Results = Mapping[str, Any]


def show(results: Results) -> None:
    """What was measured on its own prompts, then its suites. ``stages/evaluate.py`` says what is in ``results``."""
    own = without_suites(results)
    if len(own["models"]) > 1:
        versions.show(own)
    elif own["models"]:
        _one(own)
    suites.show(results.get("suites", {}))
    suites.capabilities(results.get("capabilities", {}))


def without_suites(results: Results) -> dict[str, Any]:
    """The results without the measures of suites, and without models and arms that have no others."""
    found = {part: _others(results[part]) for part in ("models", "arms") if part in results}
    if not found.get("arms", True):
        del found["arms"]
    less = {name: one | {"measures": own_of(one["measures"])} for name, one in results["differences"].items()}
    return {**results, **found, "differences": {name: one for name, one in less.items() if one["measures"]}}


def own_of(measures: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on the evaluation's own prompts: a suite's measures are ``<suite>/<measure>``."""
    return {name: one for name, one in measures.items() if "/" not in name}


def _others(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: own for name, measures in models.items() if (own := own_of(measures))}


def _one(results: Results) -> None:
    """A model alone: its measures with the bounds of their intervals, and gold by skill."""
    rows = [
        (name, measure, fixed(one["estimate"]), f"{fixed(one['low'])} … {fixed(one['high'])}")
        for name, measures in results["models"].items()
        for measure, one in measures.items()
    ]
    console.say()
    title = f"measures with {results['confidence']:.0%} intervals"
    console.table(title, ("model", "measure", "mean", "interval"), rows, right=("mean",))
    for name, skills in results["skills"].items():
        console.say()
        lines = [(skill, fixed(value)) for skill, value in skills.items()]
        console.table(f"gold by skill: {name}", ("skill", "gold"), lines, right=("gold",))
