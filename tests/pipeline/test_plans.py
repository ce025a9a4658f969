"""Every plan that is shipped lays out, and every step of it composes, validates and has a name of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from alignment import pipeline, run
from alignment.store import Store


@pytest.mark.parametrize("name", run.options("pipeline"))
def test_a_shipped_plan_can_be_planned_to_its_end(name: str, tmp_path: Path) -> None:
    plan = run.compose("pipeline", {"pipeline": name})["pipeline"]
    steps = pipeline.steps_of(plan)
    planned = pipeline.Maker(Store(tmp_path), run.compose, {}).plan_all(name, steps)
    assert len({one.fingerprint for one in planned}) == len(planned), "two steps would make the same thing"
    assert max(Counter(step.name for step in steps).values()) == 1
    assert all(step.budget > 0 for step in steps), "every step says how long it may take"
    assert not list(tmp_path.iterdir()), "planning makes nothing"


def test_warm_averages_members_that_differ_and_share_their_head() -> None:
    steps = {one.name: one for one in pipeline.steps_of(run.compose("pipeline", {"pipeline": "warm"})["pipeline"])}
    for average in (one for one in steps.values() if one.stage == "merge"):
        members = [steps[name].settings for name in average.needs]
        assert len(members) > 1
        assert {one["model.weights"] for one in members} == {"step:shared"}, "they part where the shared model ends"
        assert len({one["seed"] for one in members}) == len(members)
    seeds = [one.settings["seed"] for one in steps.values() if one.name.startswith("member")]
    assert len(set(seeds)) == len(seeds), "no member is in two groups"
    ensembles = steps["averaged"].settings["ensembles"]
    models = steps["averaged"].settings["models"]
    for average, places in zip((one for one in steps.values() if one.stage == "merge"), ensembles, strict=True):
        assert tuple(models[place].removeprefix("step:") for place in places) == average.needs


def test_rounds_train_one_model_after_the_other() -> None:
    steps = {
        one.name: one for one in pipeline.steps_of(run.compose("pipeline", {"pipeline": "reward_rounds"})["pipeline"])
    }
    assert steps["reward_2_1"].settings["model.weights"] == "step:reward_1_1"
    assert steps["reward_1_1"].settings["model.weights"] == "mini:sft"
    matrix = steps["rounds"].settings
    assert matrix["comparisons"] == ["step:round_1", "step:round_2", "step:round_3"]
    assert matrix["names"][:3] == ["through 1"] * 3


LLAMA2_NUMBERS = ("pairs", "pool", "samples", "drawn", "sft_steps", "ppo_steps", "beta")


@pytest.mark.parametrize("own", [False, True])
def test_llama2_takes_its_presets_numbers_or_those_it_is_given(own: bool, tmp_path: Path) -> None:
    plan = run.compose("pipeline", {"pipeline": "llama2"})["pipeline"]
    plan |= {"preset": "llama2"} | ({} if own else dict.fromkeys(LLAMA2_NUMBERS))
    recipes = {"helpful": "llama2_helpfulness", "safe": "llama2_safety"}
    plan["recipes"] |= recipes
    steps = pipeline.steps_of(plan)
    maker = pipeline.Maker(Store(tmp_path), run.compose, {})
    planned = {one.step.name: one.settings for one in maker.plan_all("llama2", steps)}
    tuned, pool, ppo = (planned[name].model_dump() for name in ("v1", "pool_1", "ppo"))
    assert (tuned["optimisation"]["steps"], tuned["optimisation"]["epochs"]) == ((290, None) if own else (None, 2))
    assert (pool["count"], pool["samples"]) == ((1000, 8) if own else (None, 32))
    assert (ppo["updating"]["steps"], ppo["anchoring"]["beta"]) == ((60, 0.05) if own else (300, 0.01))
    assert planned["ghost"].model_dump()["count"] == (600 if own else None)
    for kind, recipe in recipes.items():
        written = run.compose("data", {"recipe": recipe})["recipe"]["sources"]
        used = planned[f"{kind}_mixture_1"].model_dump()["recipe"]["sources"]
        assert [one["licence"] for one in used] == [one["licence"] for one in written]
        first = {"helpful": "helpfulness", "safe": "safety"}[kind]
        assert used[0]["dataset"] == f"step:{first}_1", "its own pairs come first, as in the recipe"
        assert written[0]["name"] == first
