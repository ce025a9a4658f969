"""stage=gate from the door: its exit code, what it prints and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_support import evaluate
from report_support import Making

from alignment import run

PROMPTS = 200


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """SFT, and PPO: 0.05 ± 0.01 more helpful, and hardly less safe."""
    rng = np.random.default_rng(0)
    helpful, safe = rng.uniform(0.2, 0.8, PROMPTS), rng.uniform(0.8, 1.0, PROMPTS)
    values = {
        "sft": {"gold_helpfulness": helpful, "gold_safety": safe},
        "ppo": {
            "gold_helpfulness": helpful + rng.normal(0.05, 0.05, PROMPTS),
            "gold_safety": safe - rng.normal(0.01, 0.02, PROMPTS),
        },
    }
    evaluate(Making(tmp_path / "runs"), "versions", values)
    return tmp_path / "runs"


def said(capsys: pytest.CaptureFixture[str], store: Path, *arguments: str, code: int) -> str:
    assert run.door(["stage=gate", f"store={store}", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_the_common_sentence_passes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "rules=[gold_safety no_worse_than 0.02, gold_helpfulness better_by 0]"
    text = " ".join(said(capsys, store, rules, code=0).split())
    assert "may ppo take the place of sft?" in text
    assert "gold_safety, less sft" in text
    assert "≥ -0.02 pass at worst" in text
    assert "> +0 pass at worst +0.0" in text
    assert "PASS: ppo (" in text
    assert "keeps all 2 rules" in text


def test_a_loss_beyond_the_bound_fails_with_1_and_its_reason(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(
        said(capsys, store, "rules=[gold_safety no_worse_than 0.001, gold_safety at_least 0.5]", code=1).split()
    )
    assert "FAIL: ppo (" in text
    assert "breaks 1 of 2 rules: gold_safety no_worse_than 0.001: the estimate itself is -0.0" in text


def test_the_miniatures_rules_are_asked_by_default_and_a_missing_measure_breaks_its_rule(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``finished`` stands in the answers alone; without them nobody knows it."""
    assert "keeps all 3 rules" in said(capsys, store, code=0)
    next(store.glob("*/versions-*/answers.parquet")).unlink()
    text = " ".join(said(capsys, store, code=1).split())
    assert "breaks 1 of 3 rules: finished at_least 0.9: not measured of ppo." in text


def told(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_verdict_is_written_for_machines(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text("model,measure,estimate,low,high,n,source,date\nppo,uplift,0.1,,,,a lab,2026-11-01\n")
    out = tmp_path / "new" / "verdict.json"
    rules = "rules=[gold_helpfulness better_by 0, uplift at_most 0.2 by_estimate, uplift at_least 0]"
    text = said(capsys, store, rules, f"imports={elsewhere}", f"out={out}", code=1)
    assert "a lab, 2026-11-01" in text
    one = told(out)
    assert (one["passed"], one["candidate"]["name"], one["best"]["name"]) == (False, "ppo", "sft")
    assert [rule["passed"] for rule in one["rules"]] == [True, True, False]
    results = told(next(store.glob("*/versions-*/results.json")))["differences"]["ppo"]["measures"]["gold_helpfulness"]
    gain, uplift, _ = one["rules"]
    assert {key: gain[key] for key in ("estimate", "low", "high")} == results
    assert (gain["measure"], gain["rule"], gain["bound"], gain["better"]) == (
        "gold_helpfulness",
        "better_by",
        0,
        "higher",
    )
    assert (gain["from"], gain["prompts"], gain["paired"], gain["by"]) == ("versions", 180, True, "interval")
    assert (uplift["estimate"], uplift["low"], uplift["high"], uplift["prompts"]) == (0.1, None, None, None)
    assert list(one["evaluations"]) == ["versions"]
    assert list(one["imports"]) == [str(elsewhere)]
    assert [path.name for path in out.parent.iterdir()] == ["verdict.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("candidate=pppo",), "candidate=pppo: no evaluation has measured it Did you mean 'ppo'?"),
        (("best=ppo",), "ppo would be compared with itself"),
        (("rules=[gold is fine]",), "'gold is fine' is no rule"),
        (("rules=mine.yaml",), "mine.yaml: there is no such file"),
        (("imports=[elsewhere.csv]",), "imports=elsewhere.csv: there is no such file"),
        (("evaluations=[latest:sft]",), "a evaluation is needed here"),
        (("launcher=slurm",), "runs where it is typed"),
    ],
)
def test_mistakes_exit_with_2(
    arguments: tuple[str, ...], words: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in " ".join(said(capsys, store, *arguments, code=2).split())


def test_one_no_among_several_runs_is_the_answer(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(
        capsys, store, "-m", "evaluations=latest:versions,latest:evaluate", "rules=[gold_safety at_least 2]", code=1
    )
    assert text.count("FAIL: ppo") == 2
