"""The plan of Ghost Attention: what its two arms have in common, and what they are measured on."""

from __future__ import annotations

from typing import Any

import pytest

from alignment import pipeline, run
from alignment.plans.step import Step


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    return run.compose("pipeline", {"pipeline": "ghost_effects"})["pipeline"]


@pytest.fixture(scope="module")
def laid(plan: dict[str, Any]) -> dict[str, Step]:
    return {step.name: step for step in pipeline.steps_of(plan)}


def test_arms_of_a_seed_differ_in_their_dialogues_alone(plan: dict[str, Any], laid: dict[str, Step]) -> None:
    for seed in plan["seeds"]:
        one, other = laid[f"without_{seed}"].settings, laid[f"with_{seed}"].settings
        assert {key for key in one if one[key] != other[key]} == {"data"}
        plain, ghost = (laid[each["data"].removeprefix("step:")].settings for each in (one, other))
        assert {key for key in plain if plain[key] != ghost[key]} == {"recipe.sources.1.dataset"}
        assert laid[f"ghost_{seed}"].settings["dialogues"] == plain["recipe.sources.1.dataset"] == "step:long_dialogues"
    assert laid["long_dialogues"].settings["recipe.sources.0.miniature"]["train"] == {"rows": 2200, "turns": 24}


def test_both_begin_from_a_model_that_was_shown_to_obey_for_two_turns(laid: dict[str, Step]) -> None:
    shown = laid["instructed"].settings["recipe.sources.0.miniature"]
    assert shown["train"] == {"rows": 3000, "turns": 2, "instructed": True}
    assert shown["world"] == {"noise": 0.0}
    assert laid["demonstrations"].settings["recipe.sources.1.dataset"] == "step:instructed"
    assert laid["chat"].settings["data"] == "step:demonstrations"


def test_recall_is_measured_over_all_turns_and_finely_in_the_first_two(
    plan: dict[str, Any], laid: dict[str, Step]
) -> None:
    told = laid["recall"].settings
    assert told["names"] == ["without"] * 2 + ["with"] * 2
    assert told["models"] == [f"step:{arm}_{seed}" for arm in ("without", "with") for seed in plan["seeds"]]
    suites = [run.compose("assess", {"suite": name})["suite"] for name in told["suites"]]
    (late, early), sizes = suites, ("dialogues", "turns", "attention", "seed")
    assert {key for key in late if late[key] != early[key]} == set(sizes)
    assert [late[key] for key in sizes[:2]] == [40, plan["turns"]]
    assert [early[key] for key in sizes[:2]] == [300, 2]


def test_every_step_composes(laid: dict[str, Step]) -> None:
    for step in laid.values():
        assert run.compose(step.option, step.settings)
