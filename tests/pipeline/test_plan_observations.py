"""Llama 2's observations and memorisation by size, as they are laid out."""

from __future__ import annotations

from typing import Any

import pytest

from alignment import run
from alignment.pipeline import steps_of
from alignment.plans.step import Step


def plan(name: str, **changes: Any) -> dict[str, Step]:
    values = run.compose("pipeline", {"pipeline": name})["pipeline"] | changes
    return {step.name: step for step in steps_of(values)}


def test_the_versions_are_those_of_llama2_so_that_none_is_made_twice() -> None:
    laid = plan("observations")
    for name, step in plan("llama2").items():
        assert laid[name] == step
    versions = ["step:v0", "step:v1", "step:v2", "step:v3", "step:v4", "step:ppo"]
    assert laid["temperature"].settings == {"models": versions, "suites": ["miniature_diversity"]}
    assert laid["tools"].settings == {"models": versions, "suites": ["miniature_tool_calls"]}
    assert laid["temperature"].option == "evaluate/suites"


def test_models_of_time_differ_in_the_time_tagged_examples_alone() -> None:
    laid = plan("observations")
    one, other = laid["undated"].settings, laid["dated"].settings
    assert {key for key in one if one[key] != other[key]} == {"data"}
    assert other["data"] == "step:time_tagged"
    assert laid["time"].settings["models"] == ["step:undated", "step:dated"]


def test_every_size_is_trained_on_the_same_text_and_examined_on_it() -> None:
    laid = plan("memorisation")
    assert [*laid] == ["planted", "mini_small", "mini_small_known", "mini", "mini_known"]
    for shape in ("mini_small", "mini"):
        assert laid[shape].settings["data"] == laid[f"{shape}_known"].settings["suite.data"] == "step:planted"
        assert laid[f"{shape}_known"].settings["model"] == f"step:{shape}"


@pytest.mark.parametrize("name", ["observations", "memorisation"])
def test_every_step_composes(name: str) -> None:
    for step in plan(name).values():
        assert run.compose(step.option, step.settings)
