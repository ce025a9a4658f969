"""Points of KL–reward fronts from what stages have left: runs' ``front.jsonl``, evaluations' ``results.json``.

Scores have the same names on both sides: ``proxy`` is the reward that was learned from, ``gold`` and ``gold_<aspect>``
the miniature's truth, others keep their names. What was measured in two ways is refused, not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment import console
from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError, nearest
from alignment.evals.fronts import KL, Answers, Claim, Cloud, Kind, Line

PROXY = "proxy"
FRONT, RESULTS, ANSWERS = "front.jsonl", "results.json", "answers.parquet"
REFERENCE = "watching.reference"
"""The key of the policy to which a run's KL is measured."""
LEFT_OUT = ("tokens", "finished", "perplexity")
"""Measures of an evaluation that are no scores."""
SAME_DRAWS = ("split", "count", "temperature", "top_p", "max_new_tokens", "seed")
SAME_LOOKS = ("watching.prompts", "drawing.temperature", "drawing.max_new_tokens", "drawing.stop")


class Wanted(NamedTuple):
    """A line to be made of evaluated models, by their names there."""

    name: str
    kind: Kind
    models: Sequence[str]
    etas: Sequence[float] | None


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────


def of_runs(runs: Sequence[Artifact], names: Sequence[str]) -> Cloud:
    """A line for every name; runs of one name are its seeds, joined at the steps that all of them looked at."""
    need_different(runs, "runs")
    for run in runs:
        if not (run.path / FRONT).is_file():
            raise UserError(f"{run.path}: has no {FRONT}", remedy="Name runs of stage=rl; models go into evaluations=.")
        _check_alike(runs[0], run, (REFERENCE, "prompts"), SAME_LOOKS)
    by_name: dict[str, list[Artifact]] = {}
    for name, run in zip(names, runs, strict=True):
        by_name.setdefault(name, []).append(run)
    _check_rewards(by_name)
    seeds = max(map(len, by_name.values()))
    lines: list[Line] = []
    columns: list[list[dict[str, float]]] = []
    fingerprints: list[str | None] = []
    for name, some in by_name.items():
        looks = [_looks(run) for run in some]
        steps = tuple(step for step in looks[0] if all(step in other for other in looks))
        if not steps:
            raise UserError(
                f"{name}: its {len(some)} runs have no look in common",
                cause="Seeds are joined at the steps at which all of them were measured.",
                remedy="Name runs with one watching.every.",
            )
        lost = len({step for one in looks for step in one}) - len(steps)
        if lost:
            console.say(
                f"  {name}: left out are {lost} looks that not all of its {len(some)} runs have", style="yellow"
            )
        lines.append(
            Line(
                name,
                "run",
                tuple(f"step {step:,}" for step in steps),
                tuple(range(len(columns), len(columns) + len(steps))),
                steps=steps,
            )
        )
        columns += [[one[step] for one in looks] for step in steps]
        kept = some[0].metrics.get("steps") if _setting(some[0], "watching.keep") == "last" else None
        fingerprints += [some[0].fingerprint if step == kept else None for step in steps]
    return Cloud(_means(columns, seeds), tuple(lines), tuple(fingerprints))


def _looks(run: Artifact) -> dict[int, dict[str, float]]:
    """The measures of every look, by step."""
    rows = [json.loads(line) for line in (run.path / FRONT).read_text(encoding="utf-8").splitlines()]
    return {
        row["step"]: {KL: row["kl"], PROXY: row["reward"], **{_plain(name): one for name, one in row["others"].items()}}
        for row in rows
    }


def _plain(name: str) -> str:
    """``gold:overall`` and ``gold:safety`` as an evaluation calls them: ``gold``, ``gold_safety``."""
    kind, _, aspect = name.partition(":")
    if kind != "gold":
        return name
    return kind if aspect == "overall" else f"{kind}_{aspect}"


def _check_rewards(by_name: Mapping[str, Sequence[Artifact]]) -> None:
    """The k-th seeds of all lines have one reward, or their scores would not be on one scale."""
    for seed in range(max(map(len, by_name.values()))):
        rewards = {
            name: [(key, parent.fingerprint) for key, parent in some[seed].parents.items() if key.startswith("reward.")]
            for name, some in by_name.items()
            if seed < len(some)
        }
        (first, wanted), *others = rewards.items()
        other = next((name for name, one in others if one != wanted), None)
        if other is not None:
            raise UserError(
                f"runs: seed {seed + 1} of {first} and of {other} learn from different rewards",
                cause="Seeds are paired in the order in which runs are named, and two rewards have two scales.",
                remedy="Name runs of one reward, the seeds of every line in the same order.",
            )


# ── evaluations ──────────────────────────────────────────────────────────────────────────────────


class _Seed(NamedTuple):
    """One seed of an evaluation; ``number`` is which of those whose names end in ``#1``, ``#2`` …"""

    artifact: Artifact
    results: Mapping[str, Any]
    proxy: str | None
    number: int

    def label(self, name: str) -> str | None:
        """What the model is called in the results; one that is there once stands for every seed."""
        models = self.results["models"]
        numbered = f"{name}#{self.number}"
        return name if name in models else numbered if numbered in models else None

    def measures(self, name: str) -> dict[str, float]:
        """The KL and the scores of a model; nothing where the evaluation does not have it."""
        label = self.label(name)
        found = {} if label is None else self.results["models"][label]
        return {self.called(one): value["estimate"] for one, value in found.items() if one not in LEFT_OUT}

    def called(self, measure: str) -> str:
        """The measure's name here."""
        return PROXY if measure == self.proxy else measure

    def fingerprint(self, name: str) -> str | None:
        """Of the model."""
        label = self.label(name)
        if label is None:
            return None
        parent = self.artifact.parents.get(f"models.{list(self.results['models']).index(label)}")
        return None if parent is None else parent.fingerprint


def of_evaluations(
    evaluations: Sequence[Artifact], proxies: Sequence[str] | None, wanted: Sequence[Wanted], claims: Sequence[Claim]
) -> Cloud:
    """The points of all lines and claims. Each evaluation is a seed, or as many as its arms have (``name#1`` …)."""
    need_different(evaluations, "evaluations")
    for one in evaluations:
        _check_alike(evaluations[0], one, ("prompts", "reference"), SAME_DRAWS)
    names = tuple(
        dict.fromkeys(
            [name for line in wanted for name in line.models]
            + [name for claim in claims for name in (claim.model, *claim.than)]
        )
    )
    seeds = [
        seed
        for place, one in enumerate(evaluations)
        for seed in _seeds(one, None if proxies is None else proxies[place], names)
    ]
    columns = [[seed.measures(name) for seed in seeds] for name in names]
    for name, column in zip(names, columns, strict=True):
        if not any(column):
            known = dict.fromkeys(label.partition("#")[0] for seed in seeds for label in seed.results["models"])
            raise UserError(f"{name}: no evaluation has a model of that name", remedy=nearest(name, [*known]))
    for line in wanted:
        if not any(all(seed.measures(name) for name in line.models) for seed in seeds):
            raise UserError(
                f"{line.name}: no evaluation has all of its models",
                cause=f"They are {', '.join(line.models)}, and each evaluation is a seed.",
                remedy="Name with lines= what one evaluation measured, or evaluate all of them together.",
            )
    lines = tuple(
        Line(
            line.name,
            line.kind,
            tuple(line.models),
            tuple(names.index(name) for name in line.models),
            None if line.etas is None else tuple(line.etas),
        )
        for line in wanted
    )
    fingerprints = tuple(seeds[0].fingerprint(name) for name in names)
    answers = _answers(seeds[0], names) if len(seeds) == 1 else None
    return Cloud(_means(columns, len(seeds)), lines, fingerprints, names, answers)


def need_different(artifacts: Sequence[Artifact], key: str) -> None:
    """Refuse what is named twice: it would count as two seeds that agree."""
    for place, one in enumerate(artifacts):
        if any(one.path == other.path for other in artifacts[:place]):
            raise UserError(f"{key}: {one.path} is there twice", remedy="Name each once.")


def everything(evaluations: Sequence[Artifact]) -> Wanted:
    """One line of all models, an arm's seeds as one."""
    labels = [label for one in evaluations for label in _results(one)["models"]]
    return Wanted("models", "points", list(dict.fromkeys(label.partition("#")[0] for label in labels)), None)


def _results(evaluation: Artifact) -> dict[str, Any]:
    path = evaluation.path / RESULTS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "models" not in found:
        raise UserError(f"{evaluation.path}: measures no policies", remedy="Name evaluations of stage=evaluate.")
    return found


def _seeds(evaluation: Artifact, proxy: str | None, names: Sequence[str]) -> list[_Seed]:
    """As many as the most numerous of the arms that are asked for."""
    results = _results(evaluation)
    models = results["models"]
    without = next((label for label, measures in models.items() if KL not in measures), None)
    if without is not None:
        raise UserError(
            f"{evaluation.path}: {without} has no KL", remedy="Run the evaluation with reference=, the start of all."
        )
    rewards = [name for name in next(iter(models.values())) if name.startswith("reward_")]
    if proxy is None and len(rewards) > 1:
        raise UserError(
            f"{evaluation.path}: has the rewards {', '.join(rewards)}",
            remedy=f"Say which of them was learned from, for every evaluation: proxy=[{rewards[0]}].",
        )
    if proxy is not None and proxy not in rewards:
        raise UserError(f"proxy={proxy}: {evaluation.path} has no such measure", remedy=nearest(proxy, rewards))
    proxy = proxy or next(iter(rewards), None)
    arms = [sum(label.startswith(f"{name}#") for label in models) for name in names]
    return [_Seed(evaluation, results, proxy, number + 1) for number in range(max(1, *arms))]


def _answers(seed: _Seed, names: Sequence[str]) -> Answers | None:
    """What every prompt got, where the answers are kept; prompts that read alike are drawn together."""
    import pyarrow.parquet as pq

    path = seed.artifact.path / ANSWERS
    if not path.is_file():
        return None
    rows = pq.read_table(path).to_pylist()
    labels = [seed.label(name) for name in names]
    by_model = {label: [row for row in rows if row["model"] == label] for label in labels}
    first = by_model[labels[0]]
    measures = [name for name in first[0] if seed.called(name) in seed.measures(names[0])]
    assert all([row["id"] for row in some] == [row["id"] for row in first] for some in by_model.values())
    return Answers(
        [json.dumps(row["prompt"], sort_keys=True) for row in first],
        {
            seed.called(name): np.array([[row[name] for row in by_model[label]] for label in labels]).T
            for name in measures
        },
    )


# ── both ─────────────────────────────────────────────────────────────────────────────────────────


def _means(columns: Sequence[Sequence[Mapping[str, float]]], seeds: int) -> dict[str, np.ndarray]:
    """``[S, N]`` by measure, of those that every point has; NaN where a seed lacks the point."""
    measured = [one for column in columns for one in column if one]
    shared = [name for name in measured[0] if all(name in one for one in measured)]
    return {
        name: np.array(
            [
                [column[seed].get(name, np.nan) if seed < len(column) else np.nan for column in columns]
                for seed in range(seeds)
            ],
            dtype=float,
        )
        for name in shared
    }


def _parent(run: Artifact, name: str) -> Parent | None:
    """What a run or an evaluation read under this key; a run's KL is to where it began unless that says otherwise."""
    return run.parents.get(name) or (run.parents.get("policy") if name == REFERENCE else None)


def _check_alike(first: Artifact, other: Artifact, parents: Sequence[str], keys: Sequence[str]) -> None:
    """Both were measured in one way, from one start: else their points have nothing to do with each other."""
    for name in parents:
        mine, theirs = (_parent(one, name) for one in (first, other))
        if (mine and mine.fingerprint) != (theirs and theirs.fingerprint):
            raise UserError(
                f"{other.path}: its {name} is {theirs.reference if theirs else 'none'}, that of {first.path} is "
                f"{mine.reference if mine else 'none'}",
                cause="KL and scores are compared that were measured on the same prompts, and from the same start.",
                remedy="Name those that share them.",
            )
    for key in keys:
        mine_value, theirs_value = _setting(first, key), _setting(other, key)
        if mine_value != theirs_value:
            raise UserError(
                f"{other.path}: {key} is {theirs_value}, that of {first.path} is {mine_value}",
                cause="Points are compared that were measured in the same way.",
                remedy="Name those that share it.",
            )


def _setting(artifact: Artifact, key: str) -> Any:
    value: Any = artifact.settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
