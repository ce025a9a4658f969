"""Models on suites: figures of what is told by groups, of how scores are spread and move together, and every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.reporting.page.figures import Group, Hues, Panel, trace
from alignment.reporting.page.gather import Lineage, Node
from alignment.reporting.page.models import RESULTS, number
from alignment.reporting.page.tables import table
from alignment.reporting.plots import plain
from alignment.reporting.suites import first_of

EXAMPLES = "examples.parquet"
BINS = 20
MOST_LABELS = 40
"""Of a group with more there is no figure."""
ABOUT = (
    "Every model on the same examples, with intervals over prompts. Where a suite has groups (turns, categories, "
    "temperatures …) its first measure is shown by group; of rewards also how the scores of all answers are spread, "
    "and how two of them move together from one model to the next. Self-BLEU over the temperature has a line for each "
    "kind of prompt: the lower it lies, the more the answers to a prompt differ."
)
BY_KIND = "_temperature"
"""Ends the groups of diversity that tell one kind of prompt by temperature."""
DASHES = {"solid": "solid", "dot": "dotted", "dash": "dashed", "dashdot": "dash-dotted"}
"""Plotly's lines, as the title calls them."""

Suite = Mapping[str, Any]


def group(lineage: Lineage, hues: Hues) -> Group:
    """A panel for every group of every suite, and for the scores of rewards."""
    panels = []
    for node, name, suite in _found(lineage):
        where = f"{name} ({lineage.name(node.fingerprint)})"
        curves = _by_kind(suite)
        panels += [_temperatures(where, suite, curves, hues)] if curves else []
        panels += [*_by_group(where, suite, hues, without=[f"{kind}{BY_KIND}" for kind in curves])]
        if suite["kind"] == "rewards":
            panels += [*_spread(where, name, suite, node, hues), *_together(where, suite, hues)]
        if not suite["groups"]:
            panels.append(_shares(where, suite, hues))
    return Group("Suites", ABOUT, panels)


def numbers(lineage: Lineage) -> str:
    """Every measure of every model by suite, and how far models are from those they are compared with."""
    parts = []
    for node, name, suite in _found(lineage):
        measures = [one["name"] for one in suite["declared"]]
        lines = [[model, *(_cell(found.get(one)) for one in measures)] for model, found in _models(suite).items()]
        parts.append(f"<h3>{plain(name)} ({plain(lineage.name(node.fingerprint))})</h3>")
        parts.append(table(("model", *measures), lines))
        less = [
            [f"{model} − {one['from']}", *(_cell(one["measures"].get(measure), "+") for measure in measures)]
            for model, one in suite["differences"].items()
        ]
        parts += [table(("less", *measures), less)] if less else []
        parts.append(table(("measure", "what it is"), [[one["name"], one["doc"]] for one in suite["declared"]]))
    return "".join(parts)


def _found(lineage: Lineage) -> Iterator[tuple[Node, str, Suite]]:
    for node in lineage.of_stage("evaluate"):
        for name, suite in (node.json(RESULTS) or {}).get("suites", {}).items():
            yield node, name, suite


def _models(suite: Suite) -> Mapping[str, Mapping[str, Any]]:
    """The models that stand beside each other: arms where there are."""
    found: Mapping[str, Mapping[str, Any]] = suite.get("arms") or suite["models"]
    return found


def _by_kind(suite: Suite) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Of diversity, by kind of prompt: measures by temperature and model. Nothing where there are too many kinds."""
    found = {
        name.removesuffix(BY_KIND): labels
        for name, labels in suite["groups"].items()
        if suite["kind"] == "diversity" and name.endswith(BY_KIND) and len(labels) > 1
    }
    return found if len(found) <= len(DASHES) else {}


def _temperatures(where: str, suite: Suite, kinds: Mapping[str, Mapping[str, Mapping[str, Any]]], hues: Hues) -> Panel:
    """Self-BLEU over the temperature, a line for every model and kind of prompt (Llama 2, figure 21)."""
    first = suite["declared"][0]["name"]
    dashes = dict(zip(kinds, DASHES, strict=False))
    traces = [
        trace(
            model,
            [float(label) for label in labels],
            [found.get(model, {}).get(first) for found in labels.values()],
            hues.look(model),
            told=[kind] * len(labels),
            dash=dashes[kind],
        )
        for model in _models(suite)
        for kind, labels in kinds.items()
    ]
    lines = ", ".join(f"{kind} {DASHES[dash]}" for kind, dash in dashes.items())
    return Panel(f"{where}: {first} by temperature ({lines})", "temperature", traces)


def _by_group(where: str, suite: Suite, hues: Hues, without: Sequence[str]) -> Iterator[Panel]:
    measures = [one["name"] for one in suite["declared"]]
    for name, labels in suite["groups"].items():
        if name in without or not 1 < len(labels) <= MOST_LABELS:
            continue
        first = first_of(measures, labels)
        counted = all(_is_number(label) for label in labels)
        x = [float(label) for label in labels] if counted else list(labels)
        traces = [
            trace(
                model,
                x,
                [labels[label].get(model, {}).get(first) for label in labels],
                hues.look(model),
                mode="lines+markers" if counted else "markers",
            )
            for model in _models(suite)
        ]
        yield Panel(f"{where}: {first} by {name}", name if counted else "", traces, named=not counted)


def _shares(where: str, suite: Suite, hues: Hues) -> Panel:
    """All measures that are shares, beside each other."""
    models = _models(suite)
    names = [one["name"] for one in suite["declared"]]
    shares = [name for name in names if all(0 <= one[name]["estimate"] <= 1 for one in models.values() if name in one)]
    traces = [
        trace(model, shares, [found.get(name) for name in shares], hues.look(model), mode="markers")
        for model, found in models.items()
    ]
    return Panel(where, "", traces if shares else [], named=True)


def _spread(where: str, name: str, suite: Suite, node: Node, hues: Hues) -> Iterator[Panel]:
    """How the scores of all answers are spread: the share in each of twenty bins."""
    rows = [row for row in node.rows(EXAMPLES) if row["suite"] == name]
    for measure in _scores(suite):
        values = {
            model: np.array([row[measure] for row in rows if row["model"] == model and row[measure] is not None])
            for model in suite["models"]
        }
        values = {model: some for model, some in values.items() if len(some)}
        if not values:
            continue
        every = np.concatenate([*values.values()])
        edges = np.linspace(every.min(), every.max() or 1.0, BINS + 1)
        middles = ((edges[1:] + edges[:-1]) / 2).tolist()
        traces = [
            trace(model, middles, (np.histogram(some, edges)[0] / len(some)).tolist(), hues.look(model), mode="lines")
            for model, some in values.items()
        ]
        yield Panel(f"{where}: share of the answers by {measure}", measure, traces)


def _together(where: str, suite: Suite, hues: Hues) -> Iterator[Panel]:
    """One score over another, a point for every model: helpfulness and safety where they are there."""
    scores = _scores(suite)
    pair = [next((one for one in scores if word in one), None) for word in ("help", "safe")]
    x, y = pair if None not in pair else (scores[:2] if len(scores) > 1 else (None, None))
    if x is None or y is None:
        return
    traces = [
        trace(model, [found[x]["estimate"]], [found[y]], hues.look(model), spread=[found[x]], mode="markers", size=10)
        for model, found in _models(suite).items()
        if x in found and y in found
    ]
    yield Panel(f"{where}: {y} over {x}", x, traces)


def _scores(suite: Suite) -> list[str]:
    """The measures of a suite of rewards that are scores."""
    return [one["name"] for one in suite["declared"] if one["better"] == "higher" and one["name"] != "finished"]


def _cell(one: Mapping[str, float] | None, sign: str = "") -> str:
    if one is None:
        return "–"
    told = number(one["estimate"]) if not sign else f"{one['estimate']:+.3f}"
    return f"{told} ({number(one['low'], one['estimate'])} … {number(one['high'], one['estimate'])})"


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
