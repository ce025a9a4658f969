"""Results from elsewhere beside those of an evaluation: whose they are, what is compared, what the gate says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Parent
from alignment.errors import UserError
from alignment.evals import elsewhere, gate, gate_rules
from alignment.evals.evidence import Evaluation, Evidence
from alignment.evals.imported import Model
from alignment.evals.intervals import Interval, unpaired
from alignment.evals.suites import capabilities, comparing
from alignment.reporting import evaluations

HEAD = "model,measure,estimate,low,high,n,source,date"
LINES = (
    "sft,pass@1,0.25,0.19,0.32,164,sandbox,2026-10-12",
    "run:/store/ppo-1,pass@1,0.31,0.24,0.38,164,sandbox,2026-11-01",
    "bbbbbbbbbb,uplift,0.03,,,120,team,2026-11-01",
    "other,uplift,0.5,,,120,team,2026-11-01",
)
MODELS = (
    Model.of("sft", [("a" * 64, "latest:sft", "/store/sft-1")]),
    Model.of("ppo", [("b" * 64, "latest:ppo", "/store/ppo-1")]),
)


def file(folder: Path, *lines: str) -> Path:
    path = folder / "elsewhere.csv"
    path.write_text("\n".join((HEAD, *(lines or LINES))) + "\n")
    return path


def told(folder: Path, *lines: str, models: tuple[Model, ...] = MODELS, names: list[str] | None = None) -> Any:
    return elsewhere.told([file(folder, *lines)], models, names, "first")


def test_every_line_stands_with_its_model_and_those_of_others_are_left_aside(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert found["models"]["sft"] == {"pass@1": {"estimate": 0.25, "low": 0.19, "high": 0.32, "examples": 164}}
    assert found["models"]["ppo"]["uplift"] == {"estimate": 0.03, "low": None, "high": None, "examples": 120}
    assert [(one["name"], one["doc"]) for one in found["declared"]] == [
        ("pass@1", "sandbox, 2026-10-12 to 2026-11-01"),
        ("uplift", "team, 2026-11-01"),
    ]
    json.dumps(found, allow_nan=False)


def test_models_are_compared_as_if_independent_where_both_were_measured(tmp_path: Path) -> None:
    less = told(tmp_path)["differences"]["ppo"]
    wanted = unpaired(Interval(0.31, 0.24, 0.38), Interval(0.25, 0.19, 0.32))
    assert (less["from"], set(less["measures"])) == ("sft", {"pass@1"})
    assert [less["measures"]["pass@1"][key] for key in ("estimate", "low", "high")] == pytest.approx([*wanted])


def test_what_two_sources_measured_is_told_apart_and_not_compared_across_them(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        "sft,pass@1,0.25,0.19,0.32,164,sandbox,2026-10-12",
        "ppo,pass@1,0.31,0.24,0.38,164,board,2026-11-01",
    )
    assert [*found["models"]["ppo"]] == ["pass@1 (board)"]
    assert not found["differences"]["ppo"]["measures"]


def test_an_arm_has_what_all_its_seeds_have(tmp_path: Path) -> None:
    lines = [f"m#{seed},pass@1,0.{2 + seed},0.1,0.6,164,sandbox,2026-10-12" for seed in (1, 2)]
    models = tuple(Model.of(f"m#{seed}", [(str(seed) * 64, f"latest:{seed}", f"/s/{seed}")]) for seed in (1, 2))
    found = told(tmp_path, *lines, "m#1,uplift,0.1,,,9,team,2026-10-12", models=models, names=["m", "m"])
    assert [*found["arms"]["m"]] == ["pass@1"]
    assert found["arms"]["m"]["pass@1"]["estimate"] == pytest.approx(0.35)


def test_a_file_of_other_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no line of sft, ppo") as error:
        told(tmp_path, LINES[-1])
    assert "It tells of other." in str(error.value.cause)


def test_a_capability_may_be_what_was_measured_elsewhere(tmp_path: Path) -> None:
    suites = {elsewhere.NAME: told(tmp_path)}
    capabilities.check({"code": ["imports/pass@1"]}, [elsewhere.NAME])
    found = capabilities.told({"code": ["imports/pass@1"], "uplift": ["imports/uplift"]}, suites)
    assert found["code"]["models"]["ppo"] == pytest.approx({"estimate": 0.31, "low": 0.24, "high": 0.38})
    assert found["code"]["differences"]["ppo"]["estimate"] == pytest.approx(0.06)
    assert found["uplift"]["models"]["ppo"] == {"estimate": 0.03, "low": None, "high": None}
    with pytest.raises(UserError, match="imports/pass is not told by the suite imports") as error:
        capabilities.told({"code": ["imports/pass"]}, suites)
    assert "imports/pass@1" in f"{error.value.cause}{error.value.remedy}"


def results(folder: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {part: {} for part in ("differences", "skills", "skill_differences")}
    found = comparing.merged(
        {"confidence": 0.95, "models": {"sft": {}, "ppo": {}}, **empty}, {elsewhere.NAME: told(folder)}
    )
    (folder / "results.json").write_text(json.dumps(found, allow_nan=False))
    return found


def test_they_stand_in_the_closing_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations.show(results(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert ["model", "pass@1", "uplift"] in [line.split() for line in lines]
    assert ["sft", "0.250", "±0.065", "–"] in [line.split() for line in lines]
    assert ["ppo", "0.310", "±0.070", "0.030"] in [line.split() for line in lines]


def test_the_gate_reads_them_and_lets_nothing_pass_of_which_nobody_is_sure(tmp_path: Path) -> None:
    results(tmp_path)
    parents = {
        f"models.{place}": Parent(f"latest:{one.name}", one.fingerprints[0], f"/store/{one.name}-1")
        for place, one in enumerate(MODELS)
    }
    one = Evaluation(Artifact(tmp_path, "evaluation", "evaluate", "e", "0" * 64, parents=parents, settings={}))
    evidence = Evidence([one], [], "ppo", "sft")
    said = ["imports/pass@1 no_worse_than 0.05 higher_is_better", "imports/uplift at_most 0.1"]
    code, uplift = (evidence.findings(rule)[0] for rule in gate_rules.read(said, {}))
    assert code.interval is not None
    assert code.interval.estimate == pytest.approx(0.06)
    assert not code.paired
    assert uplift.interval is not None
    assert math.isinf(uplift.interval.high)
    (rule,) = gate_rules.read(said[1:], {})
    assert not gate.judge(rule, uplift).passed


def test_two_lines_of_one_measure_by_one_source_are_refused(tmp_path: Path) -> None:
    """Under two names of a model, and in two files; another source is another measure."""
    twice = "ppo-1,pass@1,0.5,,,9,sandbox,2026-11-02"
    with pytest.raises(UserError, match=r"pass@1 of ppo from sandbox is there twice") as error:
        told(tmp_path, *LINES, twice)
    assert error.value.cause == "0.31 of run:/store/ppo-1 (2026-11-01) and 0.5 of ppo-1 (2026-11-02)"
    (later := tmp_path / "later").mkdir()
    with pytest.raises(UserError, match="is there twice"):
        elsewhere.told([file(tmp_path), file(later, twice)], MODELS, None, "first")
    assert "pass@1 (board)" in told(tmp_path, *LINES, twice.replace("sandbox", "board"))["models"]["ppo"]


def test_models_that_are_left_aside_are_known(tmp_path: Path) -> None:
    assert elsewhere.others([file(tmp_path)], MODELS) == ["other"]


def test_what_two_evaluations_imported_is_not_compared(tmp_path: Path) -> None:
    """They may be of two sources, which only one evaluation that has both tells apart."""
    made = []
    for one in MODELS:
        (folder := tmp_path / one.name).mkdir()
        line = next(line for line in LINES if ("ppo" in line) == (one.name == "ppo"))
        suite = elsewhere.told([file(folder, line)], [one], None, "first")
        nothing = {"confidence": 0.95, "models": {one.name: {}}, "differences": {}}
        nothing |= {"skills": {}, "skill_differences": {}}
        (folder / "results.json").write_text(json.dumps(comparing.merged(nothing, {elsewhere.NAME: suite})))
        parents = {"models.0": Parent(f"latest:{one.name}", one.fingerprints[0], f"/store/{one.name}-1")}
        made.append(Evaluation(Artifact(folder, "evaluation", "evaluate", one.name, "0" * 64, parents=parents)))
    evidence = Evidence(made, [], "ppo", "sft")
    (rule,) = gate_rules.read(["imports/pass@1 no_worse_than 0.5 higher_is_better"], {})
    (found,) = evidence.findings(rule)
    assert found.interval is None
    assert "not measured of sft in the same way" in found.why
