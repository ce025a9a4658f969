"""Results of evaluations that were run elsewhere: what is read, what is refused, and how the gate takes them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_support import evaluate
from report_support import Making

from alignment.artifacts import Artifact
from alignment.errors import DataError, UserError
from alignment.evals import imported
from alignment.evals.evidence import Evaluation, Evidence
from alignment.evals.gate import Rule
from alignment.evals.intervals import Interval

RESULT = {
    "model": "ppo",
    "measure": "uplift",
    "estimate": 0.1,
    "low": 0.05,
    "high": 0.2,
    "n": 40,
    "source": "a lab",
    "date": "2026-11-01",
}


def versions(folder: Path) -> Artifact:
    gold = np.random.default_rng(0).uniform(0, 1, 20)
    return evaluate(Making(folder), "versions", {"sft": {"gold": gold}, "ppo": {"gold": gold + 0.1}})


def written(path: Path, *results: dict[str, Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(results))
    else:
        lines = [",".join("" if value is None else str(value) for value in one.values()) for one in results]
        path.write_text("\n".join([",".join(results[0]), *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", ["elsewhere.csv", "elsewhere.json"])
def test_results_of_others_are_read_from_either_kind_of_file(name: str, tmp_path: Path) -> None:
    bare = RESULT | {"model": "sft", "low": None, "high": None, "n": None}
    one, other = imported.read(written(tmp_path / name, RESULT, bare))
    assert one.model_dump() == RESULT
    assert (one.interval, one.where) == (Interval(0.1, 0.05, 0.2), "a lab, 2026-11-01")
    assert (other.interval, other.n) == (Interval(0.1, -math.inf, math.inf), None)


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"estimate": 0.3}, "estimate=0.3 does not lie between low=0.05 and high=0.2"),
        ({"low": None}, "one bound of the interval"),
        ({"n": 0}, "n=0"),
        ({"date": "2026-13-01"}, "date='2026-13-01' is no date"),
        ({"date": "20261101"}, "is no date"),
        ({"model": "latest:ppo"}, "names whatever is newest"),
        ({"model": ""}, "model=''"),
        ({"source": ""}, "source=''"),
        ({"estimate": None}, "estimate"),
        ({"remark": "x"}, "(?s)remark: there is no such key.*measure, estimate"),
    ],
)
def test_a_result_that_is_not_as_it_should_be_is_refused_with_its_line(
    change: dict[str, Any], told: str, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told) as error:
        imported.read(
            written(
                tmp_path / f"elsewhere.{suffix}",
                RESULT | {"measure": "first"} | dict.fromkeys(change.keys() - RESULT.keys(), ""),
                RESULT | change,
            )
        )
    line = 3 if suffix == "csv" else 1
    assert error.value.where.startswith(f"{tmp_path}/elsewhere.{suffix}:")
    assert "remark" in change or error.value.where.endswith(f":{line}")


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="suffix says what the file is"):
        imported.read(tmp_path / "elsewhere.xlsx")
    with pytest.raises(UserError, match="No such file"):
        imported.read(tmp_path / "elsewhere.csv")
    for name, text, told in (
        ("a.csv", "model,measure,estimate\nppo,uplift,much\n", "estimate='much' is no number"),
        ("b.csv", "model,measure,estimate,n\nppo,uplift,1,2.5\n", "n='2.5' is no whole number"),
        ("c.csv", "model,measure,estimate\nppo,uplift,1\n", "low: a value is needed"),
        ("d.csv", "model,measure\n", "holds no results"),
        ("e.json", "[1]", "not int"),
        ("f.json", "[]", "holds no results"),
        ("g.json", json.dumps([RESULT | {"estimate": "0.1"}]), "estimate='0.1'"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=told):
            imported.read(tmp_path / name)
    with pytest.raises(DataError, match=r"uplift of ppo from a lab stands at .*twice\.json:1 already"):
        imported.read(written(tmp_path / "twice.json", RESULT, RESULT | {"estimate": 0.15}))


def test_results_of_others_are_judged_like_our_own(tmp_path: Path) -> None:
    one = versions(tmp_path)
    best = RESULT | {"model": one.parents["models.0"].fingerprint[:12], "estimate": 0.06, "low": 0.02, "high": 0.09}
    path = written(tmp_path / "elsewhere.json", RESULT, best, RESULT | {"source": "a board", "model": "ppo"})
    known = Evidence([Evaluation(one)], imported.read(path), None, None)
    values = known.findings(Rule("uplift", "at_most", 0.15))
    assert [(found.where, found.interval, found.prompts) for found in values] == [
        ("a lab, 2026-11-01", Interval(0.1, 0.05, 0.2), 40),
        ("a board, 2026-11-01", Interval(0.1, 0.05, 0.2), 40),
    ]
    lab, board = known.findings(Rule("uplift", "no_worse_than", 0.0, better="lower"))
    assert lab.interval == pytest.approx((0.04, 0.04 - math.hypot(0.05, 0.03), 0.04 + math.hypot(0.1, 0.04)))
    assert not lab.paired
    assert (board.interval, board.why) == (None, "not measured of sft by the same source")
    told = {(measure, where): (best, candidate) for measure, best, candidate, where in known.table()}
    assert told["uplift", "a board, 2026-11-01"][0] is None
    assert ("gold", "versions") in told


def test_a_model_that_others_call_otherwise_is_told_beside_the_missing_measure(tmp_path: Path) -> None:
    one = versions(tmp_path)
    results = imported.read(written(tmp_path / "elsewhere.json", RESULT | {"model": "PPO v2"}))
    (found,) = Evidence([Evaluation(one)], results, None, None).findings(Rule("uplift", "at_most", 0.5))
    assert found.why == "not measured of ppo, only of PPO v2"
