"""Models beside each other on suites: shares of prompts won, and what several suites say of a capability."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import UserError
from alignment.evals import intervals
from alignment.evals.intervals import Interval
from alignment.evals.suites import capabilities, comparing, kept
from alignment.evals.suites.suite import Examined, Example, Measure

MEASURES = (
    Measure("help", "higher", "helpfulness"),
    Measure("help_low", "lower", "share below"),
    Measure("finished", "higher", "share that ended"),
)
SCORES = {"a": [1.0, 1.0, 1.0, 1.0], "b": [2.0, 1.0, 0.5, 3.0], "c": [0.0, 1.0, math.nan, 4.0]}


def assessed(folder: Path, scores: list[float], kind: str = "rewards", turned: bool = False) -> Path:
    folder.mkdir(parents=True)
    some = [
        Example(f"e{place}", f"u{place}", {"finished": 1.0} | ({} if math.isnan(one) else {"help": one}), {"kind": "k"})
        for place, one in enumerate(scores)
    ]
    kept.write(folder, Examined(MEASURES, some[::-1] if turned else some))
    told = kept.told(kept.Kept.of(MEASURES, folder), 0.95, 0)
    results = {"kind": kind, "made_of": "a", "declared": [one._asdict() for one in MEASURES], **told}
    (folder / kept.RESULTS).write_text(json.dumps(results))
    return folder


def test_of_rewards_the_share_of_prompts_won_is_told_ties_by_half(tmp_path: Path) -> None:
    folders = {name: assessed(tmp_path / name, some, turned=name == "b") for name, some in SCORES.items()}
    found = comparing.told(folders, None, "first", 0.95, 0)["wins"]
    assert {name: one["over"] for name, one in found.items()} == {"b": "a", "c": "a"}
    assert found["b"]["measures"]["help"]["estimate"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    # What has no score for one of the two is no win and no loss.
    assert found["c"]["measures"]["help"]["estimate"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert found["c"]["measures"]["help"]["examples"] == 3
    assert found["b"]["groups"]["kind"]["k"] == found["b"]["measures"]
    assert set(found["b"]["measures"]) == {"help"}


def test_arms_win_by_the_mean_over_pairs_of_their_seeds(tmp_path: Path) -> None:
    folders = {f"{place}": assessed(tmp_path / f"{place}", SCORES[name]) for place, name in enumerate("abab")}
    found = comparing.told(folders, ["x", "x", "y", "y"], "first", 0.95, 0)["wins"]["y"]["measures"]["help"]
    a, b = np.array(SCORES["a"]), np.array(SCORES["b"])
    pairs = [(one, other) for one in (a, b) for other in (a, b)]
    wanted = np.mean([np.mean((one > other) + (one == other) / 2) for one, other in pairs])
    assert found["estimate"] == pytest.approx(wanted) == pytest.approx(0.5)


def test_other_suites_have_no_wins(tmp_path: Path) -> None:
    folders = {name: assessed(tmp_path / name, SCORES[name], kind="safety") for name in "ab"}
    assert "wins" not in comparing.told(folders, None, "first", 0.95, 0)


# ── capabilities ─────────────────────────────────────────────────────────────────────────────────


def interval(estimate: float, half: float) -> dict[str, float]:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def suite(values: dict[str, float], **groups: Any) -> dict[str, Any]:
    first, *others = values
    return {
        "declared": [{"name": "correct"}, {"name": "chance"}],
        "models": {name: {"correct": interval(value, 0.03)} for name, value in values.items()},
        "groups": groups,
        "differences": {
            name: {
                "from": first,
                "measures": {"correct": interval(values[name] - values[first], 0.02)},
                "groups": groups,
            }
            for name in others
        },
    }


SUITES = {"arc": suite({"base": 0.4, "rl": 0.5}), "piqa": suite({"base": 0.6, "rl": 0.8})}


def test_a_capability_is_the_mean_of_what_measures_it() -> None:
    found = capabilities.told({"commonsense": ["arc", "piqa"], "code": []}, SUITES)
    assert found["commonsense"]["of"] == ["arc", "piqa"]
    assert found["commonsense"]["models"]["rl"]["estimate"] == pytest.approx(0.65)
    assert found["commonsense"]["differences"]["rl"]["from"] == "base"
    assert found["commonsense"]["differences"]["rl"]["estimate"] == pytest.approx(0.15)
    # Two independent halves of 0.02 each: √(2 · 0.02²) / 2.
    assert found["commonsense"]["differences"]["rl"]["low"] == pytest.approx(0.15 - 0.02 / math.sqrt(2))
    assert found["code"] == {"of": [], "models": {}, "differences": {}}


def test_the_bounds_of_a_mean_cover_it_at_their_rate() -> None:
    """Three means of 40 normal values each, of different spread."""
    rng, spread = np.random.default_rng(0), np.array([1.0, 3.0, 0.2])
    inside = 0
    for _ in range(2_000):
        values = rng.normal(0, spread[:, None], (3, 40))
        half = 1.96 * values.std(1, ddof=1) / math.sqrt(40)
        one = intervals.mean_of([Interval(m, m - h, m + h) for m, h in zip(values.mean(1), half, strict=True)])
        inside += one.low <= 0 <= one.high
    assert inside / 2_000 == pytest.approx(0.95, abs=0.02)


def test_a_label_of_a_group_can_measure_one() -> None:
    labels = {"sum": {"base": {"correct": interval(0.1, 0.01)}, "rl": {"correct": interval(0.3, 0.01)}}}
    one = suite({"base": 0.4, "rl": 0.5}, skill=labels)
    one["differences"]["rl"]["groups"] = {"skill": {"sum": {"correct": interval(0.2, 0.01)}}}
    found = capabilities.told({"maths": ["own/skill/sum"]}, {"own": one})["maths"]
    assert found["models"]["base"]["estimate"] == pytest.approx(0.1)
    assert found["differences"]["rl"]["estimate"] == pytest.approx(0.2)
    with pytest.raises(UserError, match="own/skill/sums is not told") as error:
        capabilities.told({"maths": ["own/skill/sums"]}, {"own": one})
    assert "own/skill/sum" in str(error.value.remedy)


@pytest.mark.parametrize("said", ["acr", "acr/skill", "arc/skill/sum/more"])
def test_what_is_not_asked_for_measures_nothing(said: str) -> None:
    with pytest.raises(UserError, match=f"capabilities.knowledge: {said} is none of the suites"):
        capabilities.check({"knowledge": [said]}, ["arc", "piqa"])
    capabilities.check({"knowledge": ["arc", "arc/nll", "arc/skill/sum"], "code": []}, ["arc"])
