"""KL–reward fronts of a lineage: the steps of its runs, every evaluated model, and what ``stage=front`` compared.

A KL says how far from which policy: what was measured to another one stands in another view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.reporting import fronts
from alignment.reporting.page import models, texts
from alignment.reporting.page.figures import Group, Hues, Panel, Value, trace
from alignment.reporting.page.gather import Lineage, Node
from alignment.reporting.page.models import Measured
from alignment.reporting.page.texts import Spoken

FRONTS = "fronts.json"
MARKED = 14
"""Models that carry their names; of more, only who points learns them."""
KL = "KL, nats an answer"


def views(rows: Sequence[Measured], lineage: Lineage, spoken: Mapping[str, Spoken], hues: Hues) -> dict[str, Group]:
    """A group for every front that was compared, then one for every policy that KLs were measured to, by name."""
    samples = {row.model.fingerprint: spoken[row.key].sample for row in rows if row.model and row.key in spoken}
    found = {
        f"{lineage.name(node.fingerprint)}: compared lines": compared(node, samples, hues)
        for node in lineage.of_stage("front")
    }
    runs = [run for run in lineage.of_stage("rl") if run.rows(texts.FRONT)]
    ways = [models.reference_of(row) for row in rows if "kl" in row.measures] + [
        run.parents.get("policy") for run in runs
    ]
    starts = sorted(dict.fromkeys(way for way in ways if way), key=lambda way: -ways.count(way))
    for start in starts:
        told = [row for row in rows if "kl" in row.measures and models.reference_of(row) == start]
        along = [run for run in runs if run.parents.get("policy") == start]
        elsewhere = [lineage.name(run.fingerprint) for run in runs if run not in along]
        view = _from(start, told, along, lineage, spoken, hues)
        if elsewhere:
            view = view._replace(
                text=f"{view.text} Runs from elsewhere have a view of their own: {', '.join(elsewhere)}."
            )
        found[f"KL to {lineage.name(start)}"] = view
    return {name: one for name, one in found.items() if any(panel.traces for panel in one.panels)}


def compared(node: Node, samples: Mapping[str, str], hues: Hues) -> Group:
    """The lines of ``stage=front``, a panel for every score, and rings around the points of the Pareto front."""
    told = node.json(FRONTS) or {"lines": {}}
    lines: Mapping[str, Any] = told["lines"]
    scores = dict.fromkeys(score for line in lines.values() for point in line["points"] for score in point["scores"])
    panels = []
    for score in _ordered(scores):
        traces = [_compared(name, line, score, samples, hues) for name, line in lines.items()]
        ringed = [lines[line]["points"][place] for line, place in told.get("pareto", {}).get(score, ())]
        if ringed:
            ring = {"hue": None, "symbol": "circle-open"}
            x, y = [point["kl"] for point in ringed], [point["scores"][score] for point in ringed]
            traces.append(trace("Pareto front", x, y, ring, mode="markers", size=15))
        panels.append(Panel(models.told(score), KL, [one for one in traces if one["x"]]))
    return Group(
        f"The fronts that {node.name} compared",
        "Points along runs, of merges and of sweeps, as stage=front compared them. Ringed ones are on the Pareto "
        "front: no other point has more reward at less KL. Runs were measured on held-out prompts of their own.",
        panels,
    )


def _compared(name: str, line: Mapping[str, Any], score: str, samples: Mapping[str, str], hues: Hues) -> dict[str, Any]:
    points = [point for point in line["points"] if point["scores"].get(score) is not None]
    told = [
        "\n".join(filter(None, (str(point["label"]), _step(point), samples.get(point.get("model") or "", ""))))
        for point in points
    ]
    mode = "markers" if line["kind"] == "points" else "lines+markers"
    return trace(
        name,
        [point["kl"] for point in points],
        [_bounded(point, score) for point in points],
        hues.look(name),
        told=told,
        spread=[_bounded(point, "kl") for point in points],
        mode=mode,
        dash="dot" if line["kind"] == "sweep" else "solid",
    )


def _bounded(point: Mapping[str, Any], score: str) -> Value:
    low, high = ((point.get(side) or {}).get(score) for side in ("low", "high"))
    value: float = point["kl"] if score == "kl" else point["scores"][score]
    return value if low is None or high is None else {"estimate": value, "low": low, "high": high}


def _step(point: Mapping[str, Any]) -> str:
    return "" if point.get("step") is None else f"step {point['step']:,}"


def _from(
    start: str,
    rows: Sequence[Measured],
    runs: Sequence[Node],
    lineage: Lineage,
    spoken: Mapping[str, Spoken],
    hues: Hues,
) -> Group:
    """What was measured to one policy."""
    scores: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for score, line in _along(run, lineage, hues).items():
            scores.setdefault(score, []).append(line)
    for score in dict.fromkeys(name for row in rows for name in row.measures if name.startswith(("gold", "reward_"))):
        having = [row for row in rows if score in row.measures]
        marked = len(having) <= MARKED
        scores.setdefault(score, []).extend(_evaluated(row, score, marked, lineage, spoken, hues) for row in having)
    name = lineage.name(start)
    text = (
        f"How far a model has gone from {name}, and what it gained. Lines are runs of reinforcement learning from it, "
        "a point each look at their held-out prompts; single points are evaluated models with their intervals, on the "
        "prompts of their evaluation. Up and to the left is better. Where a reward rises and gold does not, the reward "
        "is over-optimised."
    )
    return Group(
        f"Reward over the distance from {name}",
        text,
        [Panel(models.told(score), KL, scores[score]) for score in _ordered(scores)],
    )


def _along(run: Node, lineage: Lineage, hues: Hues) -> dict[str, dict[str, Any]]:
    """One run's line by score: its reward goes by the name under which evaluations measure that scorer."""
    points = run.rows(texts.FRONT)
    first: dict[int, str] = {}
    for row in run.rows(texts.SAMPLES):
        first.setdefault(row["step"], texts.short(row["prompt"], row["answer"]))
    told = [f"step {point['step']:,}\n{first.get(point['step'], '')}".rstrip() for point in points]
    name, kls = lineage.name(run.fingerprint), [point["kl"] for point in points]
    return {
        score_of(run, scorer, lineage): trace(
            name, kls, [fronts.value(point, scorer) for point in points], hues.look(name), told=told
        )
        for scorer in fronts.scorers(points)
    }


def score_of(run: Node, scorer: str, lineage: Lineage) -> str:
    """What evaluations call a scorer of a run: ``gold``, ``reward_<name>``; a rule over several stays the run's own."""
    if scorer != fronts.REWARD:
        return models.measure_of(scorer)
    settings = run.artifact.settings if run.artifact is not None else {}
    model = run.parents.get("reward.model")
    if settings.get("reward", {}).get("rule") != "single" or model is None:
        return f"reward of {lineage.name(run.fingerprint)}"
    return models.measure_of(lineage.nodes[model].name)


def _evaluated(
    row: Measured, score: str, marked: bool, lineage: Lineage, spoken: Mapping[str, Spoken], hues: Hues
) -> dict[str, Any]:
    told = f"{row.name}, measured by {lineage.name(row.evaluation.fingerprint)}"
    return trace(
        row.name,
        [row.measures["kl"]["estimate"]],
        [row.measures[score]],
        hues.look(row.name),
        told=[f"{told}\n{spoken[row.key].sample}" if row.key in spoken else told],
        marks=[row.name] if marked else (),
        spread=[row.measures["kl"]],
        mode="markers+text" if marked else "markers",
        size=9,
    )


def _ordered(scores: Any) -> list[str]:
    """Gold, then rewards, then the aspects of gold."""
    return sorted(scores, key=lambda score: (score != "gold", score.startswith("gold_")))
