"""``stage=front`` writes fronts.json and a page, prints what is above what, and refuses what does not go together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from front_support import PROMPTS, evaluation, run

from alignment import artifacts
from alignment import run as door
from alignment.artifacts import Artifact, Outcome
from alignment.errors import UserError
from alignment.evals import intervals
from alignment.reporting import front_plots, plots
from alignment.stages import front

CONF = Path(__file__).parents[2] / "conf" / "stage" / "front.yaml"
MARKUP = "<b>linear</b>"
LOOKS = [(0, 0.0, 0.0, 0.5), (10, 1.0, 1.0, 0.6), (20, 2.0, 1.5, 0.5)]
SWEEP: dict[str, Any] = {"name": "sweep", "kind": "sweep", "models": ["sft", "half", "slerp"], "etas": [0.0, 0.5, 1.0]}
OTHER: dict[str, Any] = {"name": MARKUP, "kind": "points", "models": ["sft", "linear"], "etas": None}
CLAIM: dict[str, Any] = {"model": "slerp", "than": ["linear", "half"]}


def settings(**changes: Any) -> front.Settings:
    return front.Settings.parse({**yaml.safe_load(CONF.read_text()), **changes})


def seed(folder: Path, number: int) -> Artifact:
    """An evaluation whose sweep is concave, and above the line to ``linear`` by 1 at its KL of 2."""
    rng = np.random.default_rng(number)
    means = {"sft": (0.0, 0.0), "half": (1.0, 2.0), "slerp": (4.0, 4.0), "linear": (2.0, 5 / 3)}
    values = {
        name: {
            "kl": kl + rng.normal(0, 0.02, PROMPTS),
            "reward_helper": score + rng.normal(0, 0.2, PROMPTS),
            "gold": 0.5 - score / 20 + rng.normal(0, 0.02, PROMPTS),
        }
        for name, (kl, score) in means.items()
    }
    return evaluation(folder / f"seed-{number}", values)


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., tuple[Outcome, dict[str, Any]]]:
    """Run the stage on three seeds of evaluations and two lines of runs."""

    def go(seeds: int = 3, **changes: Any) -> tuple[Outcome, dict[str, Any]]:
        inputs = {f"evaluations.{place}": seed(tmp_path, place) for place in range(seeds)}
        slower = [(step, 2 * kl, score, gold) for step, kl, score, gold in LOOKS]
        for place, looks in enumerate((LOOKS, slower)):
            inputs[f"runs.{place}"] = run(tmp_path / f"run-{place}", looks)
        said: dict[str, Any] = {
            "runs": ["run:1", "run:2"],
            "run_names": ["moving", "fixed"],
            "evaluations": ["run:e"] * seeds,
            "lines": [SWEEP, OTHER],
            "claims": [CLAIM],
        }
        outcome = front.run(settings(**said | changes), inputs, tmp_path)
        return outcome, json.loads((tmp_path / front.RESULTS).read_text())

    return go


def test_everything_is_told_of_runs_and_of_evaluations(measured: Callable[..., Any]) -> None:
    outcome, told = measured(kl_bound=3.0)
    assert list(told["lines"]) == ["moving", "fixed", "sweep", MARKUP]
    assert [told["lines"][name]["kind"] for name in told["lines"]] == ["run", "run", "sweep", "points"]
    assert set(told["matched"]["proxy"]) == {"moving - fixed", f"sweep - {MARKUP}"}, "each with its like alone"
    # At KL k the sweep is worth 2 k up to 1 and 2 + ⅔ (k − 1) beyond; the other line 5/6 k.
    for one in told["matched"]["proxy"][f"sweep - {MARKUP}"]:
        kl = one["kl"]
        wanted = (2 * kl if kl <= 1 else 2 + (kl - 1) * 2 / 3) - kl * 5 / 6
        assert one["estimate"] == pytest.approx(wanted, abs=0.06)
        assert one["verdict"] == "above"
    assert told["curvature"]["proxy"]["sweep"]["score"]["shape"] == "within noise", "0, 2, 4: straight"
    assert told["curvature"]["proxy"]["sweep"]["kl"]["shape"] == "convex"
    (claim,) = told["claims"]["proxy"]
    assert claim["estimate"] == pytest.approx(2, abs=0.05)
    assert claim["kl"]["estimate"] == pytest.approx(3, abs=0.01)
    assert told["claims"]["gold"][0]["verdict"] == "below", "gold falls where the proxy rises"
    assert told["rules"]["stops"] == {"moving": None, "fixed": "step 20", "sweep": "slerp", MARKUP: None}
    assert told["worst"]["runs"]["kl"] == 4
    assert ["sweep", 2] in told["pareto"]["proxy"]
    assert ["fixed", 1] not in told["pareto"]["proxy"]
    assert outcome.kind == "evaluation"
    assert outcome.metrics["sweep/hypervolume_proxy"] == told["hypervolume"]["proxy"]["sweep"]["estimate"]
    assert told["intervals"] == {
        "runs": "none: one seed, and no answers by prompt",
        "evaluations": "Student's, over 3 seeds",
    }


def test_iterations_are_compared_in_their_order(measured: Callable[..., Any]) -> None:
    _, told = measured(iterations=[MARKUP, "sweep"], pairs=[[MARKUP, "sweep"]])
    assert told["rules"]["gains"] == [f"sweep - {MARKUP}"]
    assert told["rules"]["worth"] == {"proxy": 2, "gold": 1}
    assert list(told["matched"]["proxy"]) == [f"sweep - {MARKUP}"], "once, the later less the earlier"


def test_the_page_and_the_tables(measured: Callable[..., Any], tmp_path: Path, capsys: Any) -> None:
    _, told = measured(iterations=[MARKUP, "sweep"])
    page, printed = (tmp_path / front.PLOTS).read_text(), capsys.readouterr().out
    assert MARKUP not in page
    figure = front_plots.lines(told, ["sweep", MARKUP])
    bold = [trace for trace in figure.data if trace.name == "sweep"]
    assert [list(trace.x) for trace in bold] == [[point["kl"] for point in told["lines"]["sweep"]["points"]]] * 2
    assert re.fullmatch(r"half, η 0.5: proxy [12]\.\d{3} \(1\.\d+ … 2\.\d+\) at KL [01]\.\d+", bold[0].text[1])
    assert bold[0].xaxis != bold[1].xaxis, "proxy and gold have a panel each"
    assert [bool(trace.showlegend) for trace in bold] == [True, False]
    faint = [trace for trace in figure.data if trace.opacity and trace.opacity < 1 and trace.xaxis == bold[0].xaxis]
    assert len(faint) == 6, "two lines of three seeds"
    ring = next(trace for trace in figure.data if trace.name == "dominated by nothing")
    assert len(ring.x) == len([one for one in told["pareto"]["proxy"] if one[0] in ("sweep", MARKUP)])
    assert plots.plain(MARKUP) in {trace.name for trace in figure.data}
    for title in ("lines: the best point", "one line less another", "along η", "models by themselves"):
        assert title in printed
    assert re.search(r"sweep - <b>linear</b> +proxy .*above 5/5, below 0/5", printed)
    assert re.search(r"sweep +KL +-0\.\d+ ±\S+ +convex", printed)
    assert "iterations by proxy: area gained" in printed


def test_one_seed_is_told_by_its_prompts(
    measured: Callable[..., Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    _, told = measured(seeds=1, runs=None, run_names=None)
    assert told["intervals"] == {"evaluations": "bootstrap over prompts, of one seed"}
    assert told["claims"]["proxy"][0]["verdict"] == "above"
    assert told["claims"]["proxy"][0]["low"] < told["claims"]["proxy"][0]["estimate"]
    assert "higher" not in capsys.readouterr().out


def test_without_lines_all_models_are_one(measured: Callable[..., Any]) -> None:
    _, told = measured(runs=None, run_names=None, lines=None, claims=[])
    assert [point["label"] for point in told["lines"]["models"]["points"]] == ["sft", "half", "slerp", "linear"]
    assert told["matched"] == {"proxy": {}, "gold": {}}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"runs": [], "evaluations": []}, "nothing to measure"),
        ({"runs": ["run:a"], "run_names": ["a", "b"]}, "2 names for 1 runs"),
        ({"proxy": ["a", "b"]}, "2 names for 1 evaluations"),
        ({"lines": []}, "would not be looked at"),
        ({"lines": [SWEEP, SWEEP]}, "there twice"),
        ({"lines": [SWEEP | {"etas": None}]}, "3 models and etas=None"),
        ({"lines": [SWEEP | {"etas": [0.0, 1.0, 0.5]}]}, "they rise"),
        ({"lines": [OTHER | {"etas": [0.0, 1.0]}]}, "kind=points"),
        ({"lines": [SWEEP], "runs": ["run:a"], "run_names": ["sweep"], "evaluations": ["run:b"]}, "there twice"),
        ({"evaluations": None, "runs": ["run:a"], "claims": [CLAIM]}, "there are no evaluations"),
        ({"pairs": [["a", "b", "c"]]}, "3 lines"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(**changes)
    assert word in f"{caught.value} {caught.value.remedy}"


def test_runs_alone_are_measured_alone_and_nothing_named_is_the_miniature() -> None:
    assert settings(runs=["run:a"]).evaluations is None
    assert settings().evaluations == ["mini:versions"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pairs": [["moving", "sweep"]]}, "different prompts"),
        ({"pairs": [["moving", "sweeep"]]}, "sweep"),
        ({"iterations": ["moving", "sweep"]}, "different prompts"),
        ({"iterations": ["sweep", "nothing"]}, "no such line"),
        ({"scores": ["silver"]}, "silver"),
    ],
)
def test_what_was_not_measured_together_is_refused(
    measured: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    with pytest.raises(UserError) as caught:
        measured(**changes)
    assert word in f"{caught.value} {caught.value.remedy}"
    assert not (tmp_path / front.RESULTS).exists()


def test_through_the_door(tmp_path: Path, capsys: Any) -> None:
    for number in range(2):
        artifacts.finish(seed(tmp_path, number))
    where = ",".join(f"run:{tmp_path / f'seed-{number}'}" for number in range(2))
    lines = "lines=[{name: sweep, kind: sweep, models: [sft, half, slerp], etas: [0, 0.5, 1]}]"
    assert door.door(["stage=front", f"store={tmp_path / 'runs'}", f"evaluations=[{where}]", lines]) == 0
    printed = capsys.readouterr().out
    assert "sweep/hypervolume_proxy" in printed
    assert (tmp_path / "runs" / "solo").is_dir()


def test_what_is_named_twice_is_no_second_seed(measured: Callable[..., Any], tmp_path: Path) -> None:
    from alignment.evals import front_points

    one = seed(tmp_path, 0)
    with pytest.raises(UserError, match="there twice"):
        front_points.of_evaluations([one, one], None, [front_points.everything([one])], [])
    looks = run(tmp_path / "looks", LOOKS)
    with pytest.raises(UserError, match="there twice"):
        front_points.of_runs([looks, looks], ["a", "a"])
    other = run(tmp_path / "other", [(5, 0.0, 0.0, 0.5), (15, 1.0, 1.0, 0.6)])
    with pytest.raises(UserError, match="no look in common"):
        front_points.of_runs([looks, other], ["a", "a"])


def test_looks_that_a_seed_lacks_are_told(tmp_path: Path, capsys: Any) -> None:
    from alignment.evals import front_points

    runs = [run(tmp_path / "whole", LOOKS), run(tmp_path / "ended", LOOKS[:2])]
    (line,) = front_points.of_runs(runs, ["a", "a"]).lines
    assert line.steps == (0, 10)
    assert "a: left out are 1 looks that not all of its 2 runs have" in capsys.readouterr().out


def test_lines_of_one_name_are_refused(measured: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="two lines"):
        measured(lines=None, claims=[], run_names=["models", "other"], pairs=None)


def test_what_is_asked_twice_is_answered_once(measured: Callable[..., Any]) -> None:
    _, told = measured(seeds=1, pairs=[["sweep", MARKUP], ["sweep", MARKUP]], kls=[1.0, 1.0])
    assert len(told["matched"]["proxy"][f"sweep - {MARKUP}"]) == 1
