"""Suites on real files, a few examples each: recipe, tiny model, examples, and what they come to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import suite_support as support
from scoring import tiny_classifier

from alignment.artifacts import Artifact, foreign

COUNT = 4
SHORT = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 5, "seed": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return support.policy(tmp_path_factory.mktemp("tiny"))


def told(name: str, inputs: dict[str, Artifact], model: Artifact, out: Path, **changes: Any) -> dict[str, Any]:
    """What a suite as it comes finds of the first rows, and the rows."""
    said = support.settings(name, count=COUNT, decoding=SHORT, **changes)
    found = support.examined(said, inputs, model, out)
    found = found._replace(examples=[*found.examples])
    return support.estimates(found, out) | {"rows": support.rows(found, out)}


def test_gsm8k(shared_data: Path, model: Artifact, tmp_path: Path) -> None:
    data = support.ready("gsm8k", shared_data / "gsm8k", "train.jsonl", tmp_path / "data")
    found = told("gsm8k", {"prompts": data}, model, tmp_path / "out")
    assert found["correct"] == 0.0
    assert len(found["rows"]) == COUNT
    for row in found["rows"]:
        shown = json.loads(row["shown"])
        assert re.fullmatch(r"-?[\d.,]+", shown["reference"])
        assert len(shown["prompt"][-1][1]) > 40
        assert len(shown["answers"]) == 1
        assert 1 <= row["tokens"] <= SHORT["max_new_tokens"]


def test_safety_on_harmfulqa(shared_data: Path, model: Artifact, tmp_path: Path) -> None:
    """Judged by a classifier; without the taxonomy's categories a question is told by its topic."""
    data = support.real("harmfulqa", shared_data, tmp_path / "data")
    judge = foreign(tiny_classifier.build(tmp_path / "judge", "unsafe", "safe"), "dir:judge")
    judging = {"by": "dir:judge", "safe_above": 0.5, "rubric": None}
    judging |= {"classifier": {"label": "safe", "text": "answer"}}
    found = told("safety", {"prompts": data, "judge.by": judge}, model, tmp_path / "out", judge=judging)
    assert len(found["rows"]) == COUNT
    topics = set(json.loads((shared_data / "red_instruct" / "harmfulqa.json").read_text()))
    assert {row["by_category"] for row in found["rows"]} <= topics
    assert all(row["violation"] + row["safe"] == 1 for row in found["rows"])
    assert all(1 <= row["rating"] <= 5 for row in found["rows"])
    assert found["invalid"] == 0
    assert (tmp_path / "out" / "to_rate.csv").read_text(encoding="utf-8").count("\n") >= COUNT


def test_xstest(shared_data: Path, model: Artifact, tmp_path: Path) -> None:
    data = support.ready("xstest", shared_data / "xstest", "xstest_prompts.csv", tmp_path / "data")
    found = told("xstest", {"prompts": data}, model, tmp_path / "out")
    assert len(found["rows"]) == COUNT
    assert {row["by_side"] for row in found["rows"]} <= {"safe", "unsafe"}
    assert found["full_compliance"] + found["partial_refusal"] + found["full_refusal"] == pytest.approx(1.0)
