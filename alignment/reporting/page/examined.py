"""The suites of a lineage: those of its evaluations, and what was examined or attacked outside of any."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.reporting.page.gather import Lineage, Node
from alignment.reporting.page.models import RESULTS

Suite = Mapping[str, Any]


class Found(NamedTuple):
    """A suite with its models beside each other, and the artifacts whose examples it rests on, by model.

    Of an evaluation there is one artifact, under the empty name.
    """

    where: str
    name: str
    suite: Suite
    nodes: Mapping[str, Node]
    models: Mapping[str, Node]
    """The artifacts of the models themselves; what is behind a server has no folder."""


def suites(lineage: Lineage) -> list[Found]:
    """All of them: evaluations first, then what belongs to none, models on the same suite together."""
    return [*_evaluated(lineage), *_alone(lineage)]


def _evaluated(lineage: Lineage) -> Iterator[Found]:
    for node in lineage.of_stage("evaluate"):
        results = node.json(RESULTS) or {}
        of = [lineage.nodes[fingerprint] for fingerprint in node.parts("models")]
        models = dict(zip(results.get("models", {}), of, strict=False))
        for name, suite in results.get("suites", {}).items():
            yield Found(f"{name} ({lineage.name(node.fingerprint)})", name, suite, {"": node}, models)


def _alone(lineage: Lineage) -> Iterator[Found]:
    """``stage=assess`` that no evaluation compares, and ``stage=redteam``: versions of a model, one after another."""
    compared = {of for node in lineage.of_stage("evaluate") for key, of in node.parents.items() if "suites." in key}
    alike: dict[str, list[tuple[Node, Suite]]] = {}
    for node in [*lineage.of_stage("assess"), *lineage.of_stage("redteam")]:
        results = node.json(RESULTS)
        if results is not None and node.fingerprint not in compared:
            alike.setdefault(_way(results), []).append((node, results))
    for some in alike.values():
        labels = _labels([node for node, _ in some], lineage)
        told = {label: results for label, (_, results) in zip(labels, some, strict=True)}
        nodes = {label: node for label, (node, _) in zip(labels, some, strict=True)}
        models = {label: lineage.nodes[node.parents["model"]] for label, node in nodes.items()}
        first = some[0][1]
        suite = {
            "kind": first["kind"],
            "declared": first["declared"],
            "models": {label: one["measures"] for label, one in told.items()},
            "groups": _groups(told),
            "differences": {},
        }
        name = first["kind"]
        yield Found(name if len(alike) == 1 else f"{name} ({', '.join(labels)})", name, suite, nodes, models)


def _groups(told: Mapping[str, Suite]) -> dict[str, dict[str, dict[str, Any]]]:
    """By group and label, then by model, as evaluations tell them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for model, results in told.items():
        for group, labels in results["groups"].items():
            for label, measures in labels.items():
                found.setdefault(group, {}).setdefault(label, {})[model] = measures
    return found


def _way(results: Suite) -> str:
    """What must be equal for models to stand beside each other; attacks on a version know those on the one before."""
    return json.dumps([results["kind"], results.get("made_of")], sort_keys=True)


def _labels(nodes: Sequence[Node], lineage: Lineage) -> list[str]:
    """The models' names; with that of the artifact where one was examined several times."""
    names = [lineage.name(node.parents["model"]) for node in nodes]
    return [
        name if names.count(name) == 1 else f"{name} ({lineage.name(node.fingerprint)})"
        for name, node in zip(names, nodes, strict=True)
    ]
