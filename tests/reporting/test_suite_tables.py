"""Suites on the terminal: every measure that is known, and no line of dashes."""

from __future__ import annotations

from typing import Any

import pytest
from report_support import estimate

from alignment.reporting import suites


def result(**groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    declared = [{"name": name, "better": None, "doc": f"what {name} is"} for name in ("right", "vague", "never")]
    measures = {"right": estimate(0.75) | {"examples": 4}, "vague": estimate(0.25) | {"examples": 4}}
    return {"confidence": 0.95, "declared": declared, "measures": measures, "groups": groups}


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.split("\n") if line.strip()]


def test_labels_and_measures_of_which_nothing_is_known_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    suites.show_one(
        result(kind={"a": {"right": estimate(1.0)}, "b": {}, "c": {"right": estimate(0.5)}}, empty={"x": {}})
    )
    shown = lines(capsys)
    begin = shown.index(["by", "kind"])
    assert shown[begin + 1 :] == [["kind", "right"], ["a", "1.000", "±0.020"], ["c", "0.500", "±0.020"]]
    assert ["by", "empty"] not in shown


def test_what_some_label_has_keeps_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    suites.show_one(result(kind={"a": {"right": estimate(1.0)}, "b": {"vague": estimate(0.5)}}))
    shown = lines(capsys)
    begin = shown.index(["by", "kind"])
    assert shown[begin + 1 :] == [
        ["kind", "right", "vague"],
        ["a", "1.000", "±0.020", "–"],
        ["b", "–", "0.500", "±0.020"],
    ]


def test_models_beside_each_other_have_no_lines_of_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    found = result()
    one = {
        "declared": found["declared"],
        "models": {"sft": found["measures"], "silent": {}},
        "groups": {"kind": {"a": {"sft": {"right": estimate(1.0)}}, "b": {"sft": {"vague": estimate(0.5)}}}},
        "differences": {"silent": {"from": "sft", "measures": {}}},
    }
    suites.show({"checks": one})
    shown = lines(capsys)
    assert not any("–" in line for line in shown)
    assert not any(line[0] in ("silent", "b", "less") for line in shown)
    assert ["sft", "0.750", "±0.020", "0.250", "±0.020"] in shown
    assert ["a", "1.000", "±0.020"] in shown


def test_by_label_stands_how_far_a_model_is_from_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    found, by = result(), {"1": {"with": {"right": estimate(1.0)}, "without": {"right": estimate(0.5)}}}
    one = {
        "declared": found["declared"],
        "models": {"without": found["measures"], "with": found["measures"]},
        "groups": {"turn": by},
        "differences": {
            "with": {
                "from": "without",
                "measures": {"right": estimate(0.5)},
                "groups": {"turn": {"1": {"right": estimate(0.5)}}},
            }
        },
    }
    suites.show({"recall": one})
    shown = lines(capsys)
    begin = shown.index(["right", "by", "turn"])
    assert shown[begin + 1 :][:2] == [
        ["turn", "with", "without", "with", "−", "without"],
        ["1", "1.000", "±0.020", "0.500", "±0.020", "+0.500", "±0.020"],
    ]
