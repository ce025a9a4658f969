"""An evaluation as the terminal tells it: its own measures, its suites with a few examples, capabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_support import Making, estimate

from alignment.reporting import evaluations, examples, inside
from alignment.store import Store

DECLARED = [
    {"name": "right", "better": "higher", "doc": "share that is right"},
    {"name": "invalid", "better": "lower", "doc": "share that could not be read"},
]
EMPTY: dict[str, Any] = {part: {} for part in ("differences", "skills", "skill_differences")}


def of_suite(right: float) -> dict[str, Any]:
    return {"right": estimate(right) | {"examples": 4}, "invalid": estimate(0.25) | {"examples": 4}}


def rows(count: int = 6, **more: Any) -> list[dict[str, Any]]:
    """The fourth could not be read by the judge; two kinds in turn."""
    return [
        {
            **more,
            "id": f"e{place}",
            "unit": f"u{place}",
            "by_kind": f"kind {place % 2}",
            "shown": json.dumps({"prompt": [["user", f"Question {place}?"]], "answers": [f"answer {place}", "again"]}),
            "right": float(place % 2),
            "invalid": float(place == 3),
        }
        for place in range(count)
    ]


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.split("\n") if line.strip()]


def arms() -> dict[str, Any]:
    """Two arms of two seeds on a suite, and gold on the evaluation's own prompts."""
    models = {f"{arm}#{seed}": of_suite(right) for arm, right in (("with", 0.75), ("without", 0.5)) for seed in (1, 2)}
    own = {label: {"gold": estimate(0.5)} for label in models}
    in_arms = {arm: {"gold": estimate(0.5) | {"seeds": [0.4, 0.6]}} for arm in ("with", "without")}
    suite = {
        "kind": "any",
        "declared": DECLARED,
        "models": models,
        "arms": {"with": of_suite(0.75), "without": of_suite(0.5)},
        "groups": {},
        "differences": {"without": {"from": "with", "measures": {"right": estimate(-0.25)}, "groups": {}}},
    }
    merged = {label: one | {"checks/right": models[label]["right"]} for label, one in own.items()}
    told = {arm: one | {"checks/right": of_suite(0.5)["right"]} for arm, one in in_arms.items()}
    less = {"without": {"from": "with", "measures": {"gold": estimate(0.0), "checks/right": estimate(-0.25)}}}
    of = {"models": merged, "arms": told, "differences": less, "suites": {"checks": suite}}
    return {**EMPTY, "confidence": 0.95, **of}


def test_seeds_of_arms_and_suites_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    evaluations.show(arms())
    shown = lines(capsys)
    assert ["with", "0.500", "±0.020"] in shown
    assert ["with", "0.400", "0.600"] in shown
    begin = shown.index(["suite", "checks"])
    assert shown[begin + 2] == ["with#1", "0.750", "±0.020", "0.250", "±0.020"]
    assert ["without", "with", "-0.250", "±0.020"] in shown[begin:]
    assert not [line for line in shown[:begin] if "checks/right" in line]


def test_where_only_suites_were_asked_there_is_no_other_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = arms()
    for part in ("models", "arms"):
        for one in found[part].values():
            one.pop("gold")
    found["differences"]["without"]["measures"].pop("gold")
    evaluations.show(found)
    assert lines(capsys)[0] == ["suite", "checks"]


def test_a_measure_that_one_model_lacks_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    models = {name: {"gold": estimate(0.5)} for name in "abc"}
    models["b"]["kl"] = estimate(2.0)
    measured = {"b": {"gold": estimate(0.1)}, "c": {"kl": estimate(1.0)}}
    less = {name: {"from": "a", "measures": measures} for name, measures in measured.items()}
    evaluations.show({**EMPTY, "confidence": 0.95, "models": models, "differences": less})
    shown = lines(capsys)
    assert ["c", "a", "–", "+1.000", "±0.020"] in shown
    assert ["a", "0.500", "±0.020", "–"] in shown


def test_show_tells_what_was_examined_and_shows_unread_examples_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    making = Making(tmp_path)
    results = {"kind": "any", "confidence": 0.95, "declared": DECLARED, "measures": of_suite(0.5), "groups": {}}
    files = {"results.json": results, "examples.parquet": rows()}
    inside.evaluation(making.add("known", "assess", "evaluation", {"model": "sft"}, files))
    shown = capsys.readouterr().out
    assert "share that could not be read" in shown
    assert shown.index("Question 3?") < shown.index("Question 0?")
    assert "answer 3\nagain" in shown
    assert "right 1.00, invalid 1.00" in shown
    assert "Question 1?" not in shown


def test_show_tells_every_suite_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    making = Making(tmp_path)
    both = [*rows(suite="checks", model="with#1"), *rows(suite="checks", model="without#1")]
    files = {"results.json": arms(), "examples.parquet": both}
    inside.evaluation(making.add("versions", "evaluate", "evaluation", {}, files))
    shown = capsys.readouterr().out
    assert shown.count("Question 3?") == 1
    assert "with#1" in shown.partition("Question 3?")[2]
    assert "without#1" in shown.partition("Question 3?")[2]


def test_show_tells_what_an_attack_came_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    making = Making(tmp_path)
    results = {"kind": "redteam", "confidence": 0.95, "declared": DECLARED, "measures": of_suite(0.5), "groups": {}}
    files = {"results.json": results, "examples.parquet": rows()}
    made = making.add("attacked", "redteam", "dataset", {"model": "sft"}, files)
    monkeypatch.setattr(inside.card, "show", lambda *_: None)
    inside.dataset(made, 0, Store(tmp_path))
    assert "share that is right" in capsys.readouterr().out


# ── examples ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("shown", "turns", "text"),
    [
        ({"prompt": [["user", "a"], ["assistant", "b"]], "answers": ["c"]}, [["user", "a"], ["assistant", "b"]], "c"),
        (
            {"instruction": "Rhyme.", "question": "Q", "answer": None},
            [["instruction", "Rhyme."], ["user", "Q"]],
            "",
        ),
        (
            {"question": "Q", "options": ["x", "y"], "right": [0], "chosen": 1, "scores": [0, 1]},
            [["user", "Q"], ["A", "x"], ["B", "y"]],
            "B: y",
        ),
        (
            {"prefix": "a", "drawn": "b", "document": "c"},
            [["prefix", "a"], ["document", "c"]],
            "b",
        ),
        ({"asked": ["one"], "target": "2", "answers": ["3"]}, [["asked", '["one"]'], ["target", "2"]], "3"),
    ],
)
def test_whatever_a_suite_shows_is_turns_and_a_text(shown: Any, turns: list[list[str]], text: str) -> None:
    assert (examples.turns_of(shown), examples.text_of(shown)) == (turns, text)


def test_an_example_of_every_group_comes_before_a_second_of_one(tmp_path: Path) -> None:
    path = tmp_path / examples.FILE
    some = [row | {"by_kind": "rare" if row["id"] == "e5" else "common", "invalid": 0.0} for row in rows()]
    pq.write_table(pa.Table.from_pylist(some), path)
    (found,) = examples.some(path, 2, suite="checks", model="sft").values()
    assert [*found] == ["e0", "e5"]
    assert found["e5"].labels == ["rare"]
    assert found["e5"].said["sft"].values == {"right": 1.0, "invalid": 0.0}


def test_examples_without_anything_to_show_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / examples.FILE
    pq.write_table(pa.Table.from_pylist([row | {"shown": "{}"} for row in rows(2)] + rows()[2:]), path)
    (found,) = examples.some(path, 2, suite="checks", model="sft").values()
    assert [*found] == ["e3", "e2"]
