"""WARP's plans lay out the algorithm: who starts from whom, who is merged with whom, by which names."""

from __future__ import annotations

from typing import Any

import pytest

from alignment import pipeline, run
from alignment.plans.step import Step
from alignment.plans.warp import Loop, batches, warp_steps
from alignment.stages import front

BUDGET = {"rl": 1.0, "merge": 1.0}


def laid_out(plan: str, **changes: Any) -> dict[str, Step]:
    values = run.compose("pipeline", {"pipeline": plan})["pipeline"]
    return {step.name: step for step in pipeline.steps_of({**values, **changes})}


def loop_steps(prefix: str = "w", **changes: Any) -> dict[str, Step]:
    said: dict[str, Any] = {
        "policy": "mini:sft",
        "prompts": "mini:prompts",
        "reward": {"reward__model": "mini:preference"},
        "iterations": 3,
        "runs": 2,
        "steps": [9, 7],
        "eta": 0.3,
        "budget": BUDGET,
    }
    return {step.name: step for step in warp_steps(prefix, **said | changes)}


def test_an_iteration_starts_where_the_one_before_was_drawn_back_to() -> None:
    steps = loop_steps()
    for iteration, start in ((1, "mini:sft"), (2, "step:w_1"), (3, "step:w_2")):
        runs = [f"w_{iteration}_run_{number}" for number in (1, 2)]
        for name in runs:
            one = steps[name]
            assert (one.stage, one.settings["policy"], one.settings["anchoring.kind"]) == ("rl", start, "ema")
        slerp, linear, drawn = (steps[f"w_{iteration}{end}"].settings for end in ("_slerp", "_linear", ""))
        assert slerp["models"] == linear["models"] == [f"step:{name}" for name in runs]
        assert (slerp["method"], slerp["groups"], slerp["init"]) == ("slerp", "layer", start)
        assert (linear["method"], linear["init"]) == ("linear", start)
        assert (drawn["method"], drawn["eta"], drawn["init"]) == ("liti", 0.3, start)
        assert drawn["models"] == [f"step:w_{iteration}_slerp"]
    assert len(steps) == 3 * (2 + 3), "no sweep was asked for"


def test_runs_differ_in_their_seeds_alone() -> None:
    steps = loop_steps(seed=40)
    runs = [step for step in steps.values() if step.stage == "rl"]
    assert [step.settings["seed"] for step in runs] == [40, 41, 42, 43, 44, 45]
    first, second = (dict(step.settings) for step in runs[:2])
    assert {key for key in first if first[key] != second[key]} == {"seed"}


def test_batches_go_by_iteration_and_the_last_number_holds() -> None:
    steps = loop_steps()
    assert [steps[f"w_{one}_run_1"].settings["updating.steps"] for one in (1, 2, 3)] == [9, 7, 7]
    assert [batches(5, one) for one in (1, 4)] == [5, 5]


def test_what_is_none_stays_as_the_stage_or_its_preset_has_it() -> None:
    plain = loop_steps(preset="warp")["w_1_run_1"]
    assert plain.option == "rl/warp"
    assert not {"anchoring.rate", "anchoring.beta", "updating.learning_rate"} & plain.settings.keys()
    said = loop_steps(beta=0.0, rate=0.5, learning_rate=1e-3, watching__every=3)["w_1_run_1"].settings
    assert (said["anchoring.beta"], said["anchoring.rate"], said["updating.learning_rate"]) == (0.0, 0.5, 1e-3)
    assert said["watching.every"] == 3
    assert said["reward.model"] == "mini:preference"


ETAS = [0.0, 0.1, 0.3, 0.5, 1.0]


def test_a_sweep_goes_from_the_very_first_start_to_the_slerp() -> None:
    steps = loop_steps(etas=ETAS)
    swept = {name: step for name, step in steps.items() if "_eta_" in name}
    assert list(swept) == ["w_3_eta_0.1", "w_3_eta_0.3", "w_3_eta_0.5"], "the last iteration alone; its ends are there"
    for name, step in swept.items():
        said = step.settings
        assert (said["method"], said["init"], said["models"]) == ("liti", "mini:sft", ["step:w_3_slerp"])
        assert said["eta"] == float(name.rpartition("_")[2])


def test_every_iteration_may_have_one_and_no_model_is_made_twice() -> None:
    steps = loop_steps(etas=ETAS, every=True)
    made = [str(sorted(map(str, step.settings.items()))) for step in steps.values()]
    assert len(set(made)) == len(made), "η of the first iteration's sweep is its LITI point"
    loop = Loop("w", "mini:sft", 3, 2, 0.3, ETAS, True)
    assert loop.sweep(1) == {
        0.0: "mini:sft",
        0.1: "step:w_1_eta_0.1",
        0.3: "step:w_1",
        0.5: "step:w_1_eta_0.5",
        1.0: "step:w_1_slerp",
    }
    assert loop.sweep(2)[0.3] == "step:w_2_eta_0.3", "step:w_2 lies between w_1 and the slerp"
    assert sorted(loop.models()) == sorted(["mini:sft", *(f"step:{name}" for name in steps)])
    assert [loop.name(model) for model in ("mini:sft", "step:w_2_slerp")] == ["sft", "warp_2_slerp"]


@pytest.mark.parametrize("plan", ["warp", "warp_effects"])
def test_fronts_name_models_that_are_evaluated(plan: str) -> None:
    steps = laid_out(plan)
    values = {**run.compose("front", {}), **steps["front"].settings}
    said = front.Settings.parse(values)
    evaluations = [step for step in steps.values() if step.stage == "evaluate" and step.name.startswith("evaluated")]
    assert [f"step:{one.name}" for one in evaluations] == said.evaluations
    for evaluated in evaluations:
        names = set(evaluated.settings["names"])
        assert len(names) == len(evaluated.settings["names"]) == len(evaluated.settings["models"])
        assert {name for line in said.lines or [] for name in line.models} <= names
        assert {name for claim in said.claims for name in (claim.model, *claim.than)} <= names
    lines = {line.name for line in said.lines or []} | set(said.run_names or [])
    assert {name for pair in said.pairs or [] for name in pair} | set(said.iterations or []) <= lines


def test_the_plan_of_warp_takes_the_papers_preset() -> None:
    papers = {"preset": "warp", "iterations": 5, "steps": [9000, 7000, 7000, 5000, 5000], "swept": "last"}
    steps = laid_out("warp", **papers, beta=None, rate=None, learning_rate=None, etas=ETAS)
    runs = [step for step in steps.values() if step.stage == "rl"]
    assert {step.option for step in runs} == {"rl/warp"}
    assert steps["warp_3_run_2"].settings["updating.steps"] == 7000
    assert steps["warp_fixed"].settings["updating.steps"] == 33_000
    composed = run.compose(runs[0].option, runs[0].settings)
    assert (composed["anchoring"]["beta"], composed["anchoring"]["rate"]) == (0.1, 0.01)
    assert (composed["updating"]["learning_rate"], composed["watching"]["kl_bound"]) == (1e-6, 200)
    assert "warp_4_eta_0.5" not in steps
    assert steps["front"].settings.get("iterations") is None
    assert "warp_fixed" not in laid_out("warp", fixed=False)


def test_the_effects_are_paired_and_stand_on_those_of_reinforcement_learning() -> None:
    steps, before = laid_out("warp_effects"), laid_out("rl_effects")
    shared = [name for name in steps if name in before]
    assert {"chat", "large_chat", "label", "reward_1", "rloo_0.2_3", "ema_0.2_2"} <= set(shared)
    assert all(steps[name] == before[name] for name in shared), "so that what is there is taken"
    for seed in (1, 2, 3):
        arms = [step for step in steps.values() if step.stage == "rl" and f"step:reward_{seed}" in str(step.settings)]
        # Four runs of WARP, its fixed anchor, RLOO at three β and under the moving anchor.
        assert len(arms) == 4 + 1 + 3 + 1
        fixed = steps[f"s{seed}_warp_fixed"].settings
        first = steps[f"s{seed}_warp_1_run_1"].settings
        assert fixed["seed"] == first["seed"], "the same prompts in the same order"
        assert fixed["updating.steps"] == 2 * first["updating.steps"]
        assert all(fixed[key] == first[key] for key in ("anchoring.beta", "updating.learning_rate", "policy"))
        assert steps[f"evaluated_{seed}"].settings["rewards"] == [f"step:reward_{seed}"]
    seeds = [step.settings["seed"] for step in steps.values() if "_run_" in step.name]
    assert len(set(seeds)) == len(seeds)
