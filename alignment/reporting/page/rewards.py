"""Figures of a suite of rewards: how scores are spread, how two of them move together, and what each prompt gained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alignment.reporting.page.examined import Found, Suite
from alignment.reporting.page.figures import Hues, Panel, trace

EXAMPLES = "examples.parquet"
BINS = 20

Scores = Mapping[str, Mapping[str, float]]
"""By model and id."""


def spread(one: Found, hues: Hues) -> Iterator[Panel]:
    """How the scores of all answers are spread: the share in each of twenty bins."""
    for measure, scores in _by_measure(one).items():
        values = {model: np.array([*of.values()]) for model, of in scores.items() if of}
        if not values:
            continue
        every = np.concatenate([*values.values()])
        edges = np.linspace(every.min(), every.max() or 1.0, BINS + 1)
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        traces = [
            trace(model, middles, (np.histogram(some, edges)[0] / len(some)).tolist(), hues.look(model), mode="lines")
            for model, some in values.items()
        ]
        yield Panel(f"{one.where}: share of the answers by {measure}", measure, traces)


def together(one: Found, hues: Hues) -> Iterator[Panel]:
    """One score over another, a point for every model: helpfulness and safety where they are there."""
    scores = _scores(one.suite)
    pair = [next((name for name in scores if word in name), None) for word in ("help", "safe")]
    x, y = pair if None not in pair else (scores[:2] if len(scores) > 1 else (None, None))
    if x is None or y is None:
        return
    models: Mapping[str, Mapping[str, Any]] = one.suite.get("arms") or one.suite["models"]
    traces = [
        trace(model, [found[x]["estimate"]], [found[y]], hues.look(model), spread=[found[x]], mode="markers", size=10)
        for model, found in models.items()
        if x in found and y in found
    ]
    yield Panel(f"{one.where}: {y} over {x}", x, traces)


def moved(one: Found, hues: Hues) -> Iterator[Panel]:
    """Every prompt's score of one model over that of the model it is compared with; of arms the first seeds."""
    by_measure = _by_measure(one)
    for model, less in one.suite["differences"].items():
        for measure, scores in by_measure.items():
            after, before = (_of(scores, name) for name in (model, less["from"]))
            shared = [name for name in after if name in before]
            if not shared:
                continue
            x, y = [before[name] for name in shared], [after[name] for name in shared]
            ends = [min(*x, *y), max(*x, *y)]
            traces = [
                trace(model, x, y, hues.look(model), told=shared, mode="markers", size=4),
                trace("as before", ends, ends, hues.look(less["from"]), mode="lines", dash="dot"),
            ]
            yield Panel(f"{one.where}: {measure} of {model} over that of {less['from']}", less["from"], traces)


def _of(scores: Scores, model: str) -> Mapping[str, float]:
    """The scores of a model, or of the first seed of an arm."""
    return next((of for name, of in scores.items() if name == model or name.rpartition("#")[0] == model), {})


def _by_measure(one: Found) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by measure, model and id."""
    wanted = _scores(one.suite)
    found: dict[str, dict[str, dict[str, float]]] = {
        name: {model: {} for model in one.suite["models"]} for name in wanted
    }
    for label, node in one.nodes.items():
        for row in node.rows(EXAMPLES, ("suite", "model", "id", *wanted)):
            if row.get("suite", one.name) != one.name:
                continue
            for name in wanted:
                if row.get(name) is not None:
                    found[name][row.get("model", label)][row["id"]] = row[name]
    return found


def _scores(suite: Suite) -> list[str]:
    """The measures of a suite of rewards that are scores."""
    return [one["name"] for one in suite["declared"] if one["better"] == "higher" and one["name"] != "finished"]
