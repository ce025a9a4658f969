"""Figures beside the front: training over time, variety, perplexity, judges, skills, merges, the best of several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from alignment.data.grades import GRADES
from alignment.reporting.judges import LONGER
from alignment.reporting.page import models, texts
from alignment.reporting.page.figures import Group, Hues, Panel, trace
from alignment.reporting.page.gather import Lineage, Row
from alignment.reporting.page.models import RESULTS, Measured
from alignment.reporting.page.texts import Spoken
from alignment.reporting.perplexities import millions

METRICS, MERGE = "metrics.jsonl", "merge.json"
STEP = "step"
CHANCE = 0.5


def training(lineage: Lineage, hues: Hues) -> Group:
    """Reward and KL of every run of reinforcement learning, step by step."""
    runs = {lineage.name(run.fingerprint): run.rows(METRICS) for run in lineage.of_stage("rl")}
    wanted = {
        "held_out/reward": "reward on held-out prompts",
        "held_out/kl": "KL to the start, held-out prompts",
        "score/mean": "score of a batch",
        "kl/anchor": "KL to the anchor (k1), batch",
    }
    names = dict.fromkeys(name for rows in runs.values() for row in rows for name in row)
    for name in names:
        if name.startswith("held_out/"):
            score = models.measure_of(name.removeprefix("held_out/"))
            wanted.setdefault(name, f"{models.told(score)}, held-out prompts")
    return Group(
        "Reward and KL over time",
        "Every run of reinforcement learning. Held-out prompts are those it does not learn from; KL is in nats an "
        "answer. Scores of different rewards have different units: compare runs that learn from the same one.",
        [Panel(told, STEP, _lines(runs, name, hues)) for name, told in wanted.items()],
    )


def variety(rows: Sequence[Measured], lineage: Lineage, spoken: Mapping[str, Spoken], hues: Hues) -> Group:
    """Length, entropy and how varied answers are: along every run, and of every evaluated model."""
    runs = {lineage.name(run.fingerprint): run.rows(METRICS) for run in lineage.of_stage("rl")}
    looked = []
    for run in lineage.of_stage("rl"):
        name, by_step = lineage.name(run.fingerprint), texts.looks(run)
        values = [texts.distinct([row["answer"] for row in some], 2) for some in by_step.values()]
        if by_step:
            looked.append(trace(name, list(by_step), values, hues.look(name)))
    panels = [
        Panel("length of a batch's answers, tokens", STEP, _lines(runs, "length/mean", hues)),
        Panel("entropy, nats a token", STEP, _lines(runs, "entropy", hues)),
        Panel("different word pairs, held-out answers", STEP, looked),
    ]
    known = [row for row in rows if row.key in spoken]
    labels = models.labels(known, lineage)
    lengths = [row.measures.get("tokens") for row in known]
    told = trace("evaluated models", labels, lengths, {"hue": None, "symbol": "circle"}, mode="markers")
    panels.append(Panel("tokens an answer, evaluated models", "", [told] if known else [], named=True))
    shares, own = {"answers": "different answers", "pairs": "different word pairs", "words": "different words"}, Hues()
    varied = [
        trace(name, labels, [getattr(spoken[row.key], part) for row in known], own.look(name), mode="markers")
        for part, name in shares.items()
    ]
    panels.append(Panel("variety, evaluated models", "", varied if known else [], named=True))
    return Group(
        "Length and variety",
        "Answers that become one another show as entropy and shares that fall. The share of different word pairs "
        "(distinct-2) depends on how much text is counted: it compares models that answered the same prompts.",
        panels,
    )


def grades(lineage: Lineage) -> Group:
    """What every judge is right about, by how much better the chosen answer is."""
    panels, hues = [], Hues()
    for node in lineage.of_stage("measure"):
        results = node.json(RESULTS) or {"datasets": {}}
        for dataset, told in results["datasets"].items():
            tables = {judge: one[dataset]["accuracy"] for judge, one in results["measures"].items()}
            tables[LONGER] = told["longer"]
            values = ["all", *(grade for grade in GRADES if any(grade in table["grade"] for table in tables.values()))]
            traces = [_graded(judge, table, values, hues) for judge, table in tables.items()]
            panels.append(Panel(f"{dataset} ({lineage.name(node.fingerprint)})", "", traces, named=True, level=CHANCE))
    return Group(
        "What the judges are right about",
        "Share of held-out comparisons judged right, by how much better the chosen answer is. The dashed line is what "
        f"guessing gives, {LONGER} what preferring the longer one gives.",
        panels,
    )


def perplexity(lineage: Lineage, hues: Hues) -> Group:
    """Perplexity on held-out rows by size, a line for each way of training; the dashed line is the teacher's."""
    panels = []
    for node in lineage.of_stage("perplexity"):
        results = node.json(RESULTS) or {"arms": {}}
        for dataset, found in results["arms"].items():
            traces = [_by_size(name, arms, found, results, hues) for name, arms in results["lines"].items()]
            level = results["teacher"] and results["teacher"]["measures"][dataset]["perplexity"]["estimate"]
            panels.append(
                Panel(f"{dataset} ({lineage.name(node.fingerprint)})", "parameters", traces, named=True, level=level)
            )
    return Group(
        "Perplexity on held-out rows",
        "By size: the mean over the seeds of an arm, on rows that no model was trained on. The dashed line is the "
        "teacher's.",
        panels,
    )


def skills(lineage: Lineage, hues: Hues) -> Group:
    """Mean gold by the prompts' tags."""
    panels = []
    for node in lineage.of_stage("evaluate"):
        found: Mapping[str, Mapping[str, float]] = (node.json(RESULTS) or {}).get("skills", {})
        traces = [
            trace(name, list(one), list(one.values()), hues.look(name), mode="markers") for name, one in found.items()
        ]
        panels.append(Panel(f"gold ({lineage.name(node.fingerprint)})", "", traces, named=True))
    return Group("Gold by skill", "The mean over the prompts that carry a tag. Few prompts make a noisy mean.", panels)


def merges(lineage: Lineage) -> Group:
    """Angles between the task vectors of merged models, and their norms, layer by layer; models go by their numbers."""
    panels: list[Panel] = []
    hues = Hues()
    for node in lineage.of_stage("merge"):
        told = node.json(MERGE) or {}
        geometry = told.get("geometry")
        if geometry is None:
            continue
        members = [str(one["model"]) for one in told["models"]]
        found: Mapping[str, Any] = geometry["groups"]
        layers = sorted(found, key=_layer)

        def line(name: str, said: str, values: Sequence[Any], layers: Sequence[str] = layers) -> dict[str, Any]:
            return trace(name, layers, values, hues.look(name), told=[said] * len(layers))

        angles = []
        for key in geometry["whole"]["angles"]:
            first, second = map(int, key.split(","))
            said = f"{members[first]} and {members[second]}"
            values = [found[layer]["angles"].get(key) for layer in layers]
            angles.append(line(f"models {first + 1} and {second + 1}", said, values))
        norms = [line("the merge", "", [found[layer]["result_norm"] for layer in layers])]
        for place, member in enumerate(members):
            values = [found[layer]["task_norms"][place] for layer in layers]
            norms.append(line(f"model {place + 1}", member, values))
        name = f"{lineage.name(node.fingerprint)} of {', '.join(members)}"
        panels.append(Panel(f"angle, degrees: {name}", "", angles, named=True, level=90.0))
        panels.append(Panel(f"norm of the task vector: {name}", "", norms, named=True))
    return Group(
        "Layers of merges",
        "A task vector is what training added to the common start. At 90° two are unrelated, and slerp keeps a norm "
        "that averaging would shrink; near 0° they agree.",
        panels,
    )


def best_of(lineage: Lineage) -> Group:
    """What choosing the best of several answers is worth, by their number."""
    panels, hues = [], Hues()
    for node in lineage.of_stage("reject"):
        curves: Mapping[str, Sequence[Mapping[str, Any]]] = (node.json(RESULTS) or {}).get("curves", {})
        name = lineage.name(node.fingerprint)
        kinds = {"maximum": "the best", "median": "the median", "gold": "gold of the best"}
        lines = {
            kind: trace(told, list(range(1, len(curves[kind]) + 1)), curves[kind], hues.look(told))
            for kind, told in kinds.items()
            if kind in curves
        }
        panels.append(
            Panel(f"reward ({name})", "answers to a prompt", [line for kind, line in lines.items() if kind != "gold"])
        )
        panels.append(
            Panel(f"gold ({name})", "answers to a prompt", [line for kind, line in lines.items() if kind == "gold"])
        )
    return Group(
        "The best of several answers",
        "The expected reward of the best of so many answers, their median, and the gold of the one the reward takes.",
        panels,
    )


def _lines(runs: Mapping[str, Sequence[Row]], measure: str, hues: Hues) -> list[dict[str, Any]]:
    """One line for every run that has the measure; a value that was not finite leaves a gap."""
    found = []
    for name, rows in runs.items():
        having = [row for row in rows if measure in row]
        if having:
            mode = "lines+markers" if measure.startswith("held_out/") else "lines"
            steps, values = [row[STEP] for row in having], [row[measure] for row in having]
            found.append(trace(name, steps, values, hues.look(name), mode=mode))
    return found


def _graded(judge: str, table: Mapping[str, Any], values: Sequence[str], hues: Hues) -> dict[str, Any]:
    merged = {**table["all"], **table["grade"]}
    told = [f"{merged[value]['count']:,} pairs" if value in merged else "" for value in values]
    return trace(judge, values, [merged.get(value) for value in values], hues.look(judge), told=told, mode="markers")


def _by_size(
    name: str, arms: Sequence[str], found: Mapping[str, Any], results: Mapping[str, Any], hues: Hues
) -> dict[str, Any]:
    """One line over sizes; what is not known has no bar."""
    values = [found[arm]["perplexity"] for arm in arms]
    sizes = [millions(results["parameters"][arm]) for arm in arms]
    bars = [one["estimate"] if one["low"] is None else one for one in values]
    return trace(name, sizes, bars, hues.look(name), told=arms)


def _layer(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Embeddings first, layers by number, whatever stands behind them last."""
    kind = 0 if "embed" in name else 1 if re.search(r"\d", name) else 2
    pieces = chain.from_iterable(
        [(int(part), "") if part.isdecimal() else (-1, part)] for part in re.split(r"(\d+)", name)
    )
    return kind, list(pieces)
