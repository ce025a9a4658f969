"""The gate on measures of suites: which way is better, pairs example by example, and suites of one name that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.artifacts import Artifact, Parent
from alignment.evals import gate, gate_rules
from alignment.evals.evidence import Evaluation, Evidence
from alignment.evals.suites import comparing, kept
from alignment.evals.suites.suite import Examined, Example, Measure

MEASURES = (
    Measure("violations", "lower", "share of unsafe answers"),
    Measure("nll", "lower", "perplexity", per="tokens", exponential=True),
    Measure("tokens", None, "tokens"),
)
COUNT = 200


def assessed(folder: Path, share: float, seed: int, made_of: str = "a") -> Path:
    """Violations are the same ``u`` for every model, below a share of its own: models differ only where shares do."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0).random(COUNT)
    tokens = np.random.default_rng(seed).integers(1, 9, COUNT).astype(float)
    some = [
        Example(f"e{p}", f"u{p}", {"violations": float(chance[p] < share), "nll": 2 * tokens[p], "tokens": tokens[p]})
        for p in range(COUNT)
    ]
    kept.write(folder, Examined(MEASURES, some))
    told = kept.told(kept.Kept.of(MEASURES, folder), 0.95, 0)
    results = {"kind": "safety", "made_of": made_of, "declared": [one._asdict() for one in MEASURES], **told}
    (folder / kept.RESULTS).write_text(json.dumps(results))
    return folder


def gated(folder: Path, measures: tuple[Measure, ...], some: list[Example]) -> Evaluation:
    """One model on one suite with these examples."""
    (folder / "m").mkdir()
    kept.write(folder / "m", Examined(measures, some))
    told = kept.told(kept.Kept.of(measures, folder / "m"), 0.95, 0)
    results = {"kind": "any", "made_of": "a", "declared": [one._asdict() for one in measures], **told}
    (folder / "m" / kept.RESULTS).write_text(json.dumps(results))
    return beside(folder, {"m": folder / "m"})


def evaluation(folder: Path, shares: dict[str, float], made_of: str = "a") -> Evaluation:
    """As stage=evaluate leaves it."""
    folders = {
        name: assessed(folder / name, share, place, made_of) for place, (name, share) in enumerate(shares.items())
    }
    return beside(folder, folders)


def beside(folder: Path, folders: dict[str, Path]) -> Evaluation:
    """What was assessed in these folders, by the models' names."""
    suite = comparing.told(folders, None, "first", 0.95, 0)
    empty: dict[str, Any] = {part: {} for part in ("differences", "skills", "skill_differences")}
    results = comparing.merged(
        {"confidence": 0.95, "models": {name: {} for name in folders}, **empty}, {"safety": suite}
    )
    (folder / "results.json").write_text(json.dumps(results))
    comparing.write_examples(folder / "examples.parquet", {"safety": folders})
    parents = {f"models.{place}": Parent(f"run:{name}", name * 16, name) for place, name in enumerate(folders)}
    return Evaluation(Artifact(folder, "evaluation", "evaluate", folder.name, "0" * 64, parents=parents, settings={}))


def found(rule: str, evaluations: list[Evaluation], candidate: str, best: str) -> Any:
    directions = {name: better for one in evaluations for name, better in one.directions}
    (read,) = gate_rules.read([rule], directions)
    return read, Evidence(evaluations, [], candidate, best).findings(read)


def test_a_suite_says_which_way_is_better(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"a": 0.3, "b": 0.2})
    rule, _ = found("safety/violations no_worse_than 0.02", [one], "b", "a")
    assert rule.better == "lower"
    with pytest.raises(Exception, match="nothing says whether more of it is better"):
        found("safety/tokens better_by 1", [one], "b", "a")


def test_models_of_one_evaluation_are_compared_example_by_example(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"a": 0.3, "b": 0.2, "c": 0.2})
    for base in ("a", "c"):  # told by the evaluation, and taken from its examples
        _, (finding,) = found("safety/violations better_by 0", [one], "b", base)
        told = one.results["models"]
        less = told["b"]["safety/violations"]["estimate"] - told[base]["safety/violations"]["estimate"]
        assert finding.paired
        assert finding.interval.estimate == pytest.approx(less)
        assert finding.prompts == COUNT


def test_models_of_two_evaluations_are_paired_where_their_suites_are_one(tmp_path: Path) -> None:
    one, two = evaluation(tmp_path / "one", {"a": 0.3}), evaluation(tmp_path / "two", {"b": 0.2})
    _, findings = found("safety/violations better_by 0", [one, two], "b", "a")
    (finding,) = [finding for finding in findings if finding.interval]
    assert finding.paired
    assert finding.interval.high < 0


def test_suites_of_one_name_that_were_made_otherwise_are_not_compared(tmp_path: Path) -> None:
    one, two = evaluation(tmp_path / "one", {"a": 0.3}), evaluation(tmp_path / "two", {"b": 0.2}, made_of="other")
    with pytest.raises(Exception, match="no other was made in the same way"):
        found("safety/violations better_by 0", [one, two], "b", "a")


def test_a_measure_that_is_no_mean_is_compared_as_the_evaluation_tells_it(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"a": 0.3, "b": 0.2, "c": 0.2})
    _, (told,) = found("safety/nll no_worse_than 1", [one], "b", "a")
    assert told.paired
    _, (apart,) = found("safety/nll no_worse_than 1", [one], "b", "c")
    assert not apart.paired
    assert apart.interval.low <= apart.interval.estimate <= apart.interval.high


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([(0.0, 1.0), (0.0, 1.0)], "nothing says how sure it is"),
        ([(0.0, 1.0)] * 30, "nothing says how sure it is"),
        ([(1.0, 4.0), (0.0, 2.0)], "2 prompts are too few for an interval"),
        ([(1.0, 4.0), (0.0, 2.0)] * 15, "at worst 0.2"),
    ],
)
def test_a_ratio_of_few_examples_or_without_doubt_keeps_no_bound(
    tmp_path: Path, values: list[tuple[float, float]], said: str
) -> None:
    """Σ bias / Σ told, as that of bbq: no column of values, but its examples are counted."""
    measures = (Measure("bias", None, "a ratio", per="told"), Measure("told", None, "what it is divided by"))
    some = [Example(f"e{p}", f"u{p}", dict(zip(("bias", "told"), one, strict=True))) for p, one in enumerate(values)]
    one = gated(tmp_path, measures, some)
    rule, (finding,) = found("safety/bias at_most 0.5", [one], "m", "m")
    assert finding.prompts == len(values)
    verdict = gate.judge(rule, finding)
    assert verdict.passed == said.startswith("at worst")
    assert said in verdict.why
