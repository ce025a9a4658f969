"""What was measured of a model: its rows of the evaluations that were made from it, with their intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.release.descent import shown
from alignment.store import Store

RESULTS = "results.json"


@dataclass(frozen=True)
class Measure:
    """A mean and its interval."""

    name: str
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """One evaluation's measures of the model. ``how`` says on what, from which split, how many and how drawn."""

    name: str
    fingerprint: str
    how: str
    confidence: float
    measures: tuple[Measure, ...]


def of(model: Artifact, store: Store) -> list[Artifact]:
    """The finished evaluations of a model in its store that can be read here, oldest first."""
    return [one for one in store.children(model) if one.kind == "evaluation" and _places(one, model) and _told(one)]


def read(evaluations: Iterable[Artifact], model: Artifact) -> list[Evaluation]:
    """The model's measures. Raises :class:`UserError` for an evaluation of other models, or of another kind."""
    found = []
    for one in evaluations:
        told, places = _told(one), _places(one, model)
        if not told or not places:
            measured = ", ".join(parent.reference for key, parent in one.parents.items() if key.startswith("models."))
            raise UserError(
                f"evaluations: {one.step or one.path.name} measured nothing of this model",
                cause=f"It measured {measured or 'no model'}.",
                remedy="Name results of stage=evaluate, stage=perplexity or stage=measure whose models= has it.",
            )
        for place in places:
            measures = _policy(told, place) if "models" in told else _judge(told, place)
            found.append(Evaluation(one.step, one.fingerprint, _how(one), float(told["confidence"]), tuple(measures)))
    return found


def _told(evaluation: Artifact) -> dict[str, Any]:
    """What results.json holds, where it is that of models or judges."""
    path = evaluation.path / RESULTS
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return (
        told
        if evaluation.stage in ("evaluate", "measure", "perplexity") and ("models" in told or "judges" in told)
        else {}
    )


def _places(evaluation: Artifact, model: Artifact) -> list[int]:
    """At which positions of ``models`` the model was measured."""
    keys = [key for key, parent in evaluation.parents.items() if parent.fingerprint == model.fingerprint]
    return sorted(int(key.removeprefix("models.")) for key in keys if key.startswith("models."))


def _policy(told: dict[str, Any], place: int) -> list[Measure]:
    """The results stand in the order of the models."""
    return _measures([*told["models"].values()][place])


def _judge(told: dict[str, Any], place: int) -> list[Measure]:
    """Accuracy by dataset and grade."""
    judge = [*told["judges"]][place]
    found = []
    for dataset, measures in told["measures"][judge].items():
        accuracy = measures["accuracy"]
        found += _measures({f"accuracy on {dataset}": accuracy["all"]["all"]})
        found += _measures({f"accuracy on {dataset}, {grade}": one for grade, one in accuracy["grade"].items()})
    return found


def _measures(told: Mapping[str, Mapping[str, float | None]]) -> list[Measure]:
    """Those that could be measured."""
    numbers = {name: (one["estimate"], one["low"], one["high"]) for name, one in told.items()}
    return [Measure(name, *map(float, one)) for name, one in numbers.items() if None not in one]  # type: ignore[arg-type]


def _how(evaluation: Artifact) -> str:
    """``prompts, split test, at most 1,024 rows, temperature 1``; suites, which have numbers of their own, by name."""
    settings = evaluation.settings
    keys = [key for key in evaluation.parents if key.startswith(("prompts", "comparisons", "data."))]
    parts = []
    if keys:
        data = ", ".join(shown(evaluation.parents[key].reference).partition(":")[2] for key in keys)
        parts += [data, f"split {settings['split']}", f"at most {settings['count']:,} rows"]
        if "temperature" in settings:
            parts.append(f"temperature {settings['temperature']:g}, at most {settings['max_new_tokens']} tokens")
    if "reference" in evaluation.parents:
        parts.append(f"KL to {shown(evaluation.parents['reference'].reference).partition(':')[2]}")
    suites = dict.fromkeys(
        key.removeprefix("suites.").rpartition(".")[0] for key in evaluation.parents if key.startswith("suites.")
    )
    if suites:
        parts.append(f"{'suite' if len(suites) == 1 else 'suites'} {', '.join(suites)}")
    return ", ".join(parts)
