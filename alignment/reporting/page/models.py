"""Every evaluated model with what was measured of it: the rows of the closing table, on the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alignment import console
from alignment.reporting.evaluations import own_of
from alignment.reporting.numbers import brief, fixed
from alignment.reporting.page.gather import Lineage, Node

RESULTS = "results.json"
FIRST = ("gold", "gold_helpfulness", "gold_safety")
LAST = ("kl", "tokens", "finished", "perplexity")
TOLD = {"gold_helpfulness": "gold: helpfulness", "gold_safety": "gold: safety", "kl": "KL"}
PROTOCOL = ("split", "count", "temperature", "top_p", "max_new_tokens", "seed", "classifier")
"""Settings that must be equal, beside the prompts, for two rows to be compared."""

Estimate = Mapping[str, float]


class Measured(NamedTuple):
    """One model, or arm of several seeds, as one evaluation measured it."""

    name: str
    model: Node | None
    """None for an arm, which is several."""
    seeds: int
    evaluation: Node
    measures: Mapping[str, Estimate]

    @property
    def key(self) -> str:
        """Tells rows apart: several evaluations may measure a model."""
        return f"{self.evaluation.fingerprint[:8]} {self.name}"

    @property
    def stage(self) -> str:
        """The stage that made the model."""
        return "arm" if self.model is None else self.model.stage or self.model.kind


def measured(lineage: Lineage) -> list[Measured]:
    """All rows, the best by gold first; those without gold after them, in the order of the lineage."""
    rows = [row for evaluation in lineage.of_stage("evaluate") for row in _of(evaluation, lineage)]
    return sorted(rows, key=lambda row: -row.measures["gold"]["estimate"] if "gold" in row.measures else float("inf"))


def columns(rows: Sequence[Measured]) -> list[str]:
    """The measures that any row has: gold, then rewards and whatever else, then KL and the rest."""
    found = dict.fromkeys(measure for row in rows for measure in row.measures)
    between = [name for name in found if name not in (*FIRST, *LAST)]
    return [name for name in (*FIRST, *between, *LAST) if name in found]


def measure_of(scorer: str) -> str:
    """What evaluations call a scorer: ``gold`` for ``gold:overall``, ``reward_helpful`` for ``helpful``."""
    kind, _, aspect = scorer.partition(":")
    if kind in ("gold", "raters"):
        return kind if aspect in ("", "overall") else f"{kind}_{aspect}"
    return f"reward_{scorer}"


def told(measure: str) -> str:
    """A measure as a person reads it: ``reward_helpful`` is ``reward: helpful``."""
    name = measure.removeprefix("reward_")
    return TOLD.get(measure, measure if name == measure else f"reward: {name}")


def number(value: float, like: float | None = None) -> str:
    """Three places; two and one where numbers are large (as large as ``like``)."""
    size = abs(value if like is None else like)
    return fixed(value, 3 if size < 10 else 2 if size < 100 else 1)


def labels(rows: Sequence[Measured], lineage: Lineage) -> list[str]:
    """Names for an axis: with the evaluation where several have measured a model of that name."""
    names = [row.name for row in rows]
    return [
        row.name if names.count(row.name) == 1 else f"{row.name} ({lineage.name(row.evaluation.fingerprint)})"
        for row in rows
    ]


def reference_of(row: Measured) -> str | None:
    """The fingerprint of the policy to which the KL was measured."""
    return row.evaluation.parents.get("reference")


def protocols(rows: Sequence[Measured]) -> dict[str, str]:
    """A letter for every evaluation, the same for those that asked the same prompts in the same way."""
    letters: dict[str, str] = {}
    found: dict[str, str] = {}
    for row in rows:
        asked = row.evaluation.artifact.settings if row.evaluation.artifact is not None else {}
        way = repr([row.evaluation.parents.get("prompts"), *(asked.get(name) for name in PROTOCOL)])
        found[row.evaluation.fingerprint] = letters.setdefault(way, chr(ord("a") + len(letters) % 26))
    return found


def show(rows: Sequence[Measured], lineage: Lineage) -> None:
    """Print the ranking by gold, with rewards and KL; ± is half of an interval."""
    if not rows:
        console.say("no gold, reward or KL was measured among these artifacts: there is no ranking", style="yellow")
        return
    wanted = [name for name in columns(rows) if name in ("gold", "kl") or name.startswith("reward_")]
    heads = [told(name) for name in wanted]
    several = len({row.evaluation.fingerprint for row in rows}) > 1
    lines = []
    for place, row in enumerate(rows, start=1):
        evaluation = [lineage.name(row.evaluation.fingerprint)] if several else []
        lines.append((place, row.name, *evaluation, *(brief(row.measures.get(name)) for name in wanted)))
    title = "models, best first by gold, ± half of the interval"
    console.say()
    console.table(title, ("", "model", *(["evaluation"] if several else []), *heads), lines, right=heads)


def _of(evaluation: Node, lineage: Lineage) -> list[Measured]:
    results = evaluation.json(RESULTS)
    if results is None:
        return []
    models = [lineage.nodes[of] for of in evaluation.parts("models")]
    rows = [
        Measured(name, model, 1, evaluation, own_of(measures))
        for (name, measures), model in zip(results["models"].items(), models, strict=True)
        if own_of(measures)
    ]
    arms = {name: own_of(one) for name, one in results.get("arms", {}).items()}
    several = {name: one for name, one in arms.items() if one and len(next(iter(one.values()))["seeds"]) > 1}
    return rows + [
        Measured(name, None, len(next(iter(one.values()))["seeds"]), evaluation, one) for name, one in several.items()
    ]
