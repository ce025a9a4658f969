"""The plan of safety data: what grows, what stays, and who is compared with whom."""

from __future__ import annotations

from alignment import pipeline, run


def test_safety_data_grows_and_nothing_else_does() -> None:
    plan = run.compose("pipeline", {"pipeline": "safety_scaling"})["pipeline"]
    steps = {one.name: one for one in pipeline.steps_of(plan)}
    data = {name: one.settings for name, one in steps.items() if one.stage == "data"}
    assert data.pop("data_0") == {"recipe": "miniature_help_only"}
    rows = {name: one["recipe.sources.1.miniature"]["train"]["rows"] for name, one in data.items()}
    assert rows == {"data_1": 6, "data_10": 60, "data_25": 150, "data_50": 300, "data_100": 600}
    alone = run.compose("data", {"recipe": "miniature_help_only"})["recipe"]["sources"][0]
    both = run.compose("data", {"recipe": "miniature_help_and_safety"})["recipe"]["sources"]
    assert both[0] == alone, "the helpfulness data are the same"
    assert both[1]["miniature"]["train"]["rows"] == plan["safety_rows"], "the last share is all of it"
    tuned = [one for one in steps.values() if one.stage == "sft"]
    assert {one.settings["model.weights"] for one in tuned} == {"mini:base"}
    told = steps["safety_scaling"].settings
    assert [name.removeprefix("step:") for name in told["models"]] == [one.name for one in tuned]
    assert told["names"][:4] == ["0 % safety"] * 3 + ["1 % safety"]
    assert set(told["suites"]) >= {"miniature_safety", "miniature"}
