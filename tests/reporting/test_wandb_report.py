"""What a report tells W&B: the comparison, the page, and lineage as edges between runs and artifacts."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import wandb_support
from wandb_support import Told, closed, record_files

from alignment.artifacts import Artifact, Parent
from alignment.reporting import suites, wandb_report, wandb_view
from alignment.training import tracking
from alignment.training.tracking import TrackerSettings

OFFLINE = TrackerSettings(wandb="offline", project="test", every=1, upload="none")
ROWS = [{"model": "sft", "gold": 0.5}, {"model": "slerp", "gold": 0.7, "method": "slerp", "angle": 88.5}]


def made(store: Path, stage: str, step: str, digit: str, tracked: bool, *parents: Artifact) -> Artifact:
    folder = store / "mini" / f"{step}-{digit * 8}"
    folder.mkdir(parents=True)
    return Artifact(
        folder,
        "evaluation" if stage == "evaluate" else "dataset" if stage == "data" else "policy",
        stage,
        step,
        digit * 64,
        parents={f"models.{n}": Parent(f"step:{one.step}", one.fingerprint, "") for n, one in enumerate(parents)},
        settings={"seed": 1} | ({"tracker": {"wandb": "offline"}} if tracked else {}),
        metrics={"gold": 0.5},
        files={"file": digit * 64},
    )


@pytest.fixture
def lineage(tmp_path: Path) -> dict[str, Artifact]:
    """data → two tracked runs → merge → evaluation, which also asked gold."""
    data = made(tmp_path, "data", "data", "1", False)
    runs = [made(tmp_path, "rl", f"rl{n}", str(n), True, data) for n in (2, 3)]
    for n, run in enumerate(runs):
        rows = [{"step": 1, "loss": 1.0}, {"step": 1, "held_out/kl": 0.5, "held_out/reward": n}]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    merge = made(tmp_path, "merge", "slerp", "4", False, *runs)
    judged = made(tmp_path, "evaluate", "versions", "5", False, merge)
    gold = Parent("gold:overall", "9" * 64, ".")
    judged = replace(judged, parents=judged.parents | {"scorer": gold})
    return {one.step: one for one in (data, *runs, merge, judged)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "mini" / "report-66666666"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<!doctype html><title>é</title>", encoding="utf-8")
    return folder


def publish(out: Path, lineage: dict[str, Artifact], settings: TrackerSettings = OFFLINE, **changed: Any) -> None:
    given: dict[str, Any] = {
        "config": {"artifacts": ["step:versions"]},
        "inputs": {"artifacts.0": lineage["versions"]},
        "artifacts": list(lineage.values()),
        "rows": ROWS,
        "figures": {"front": go.Figure(go.Scatter(x=[0.0, 1.0], y=[0.1, 0.9], name="slerp"))},
        "tables": {},
        "page": out / "report.html",
    }
    wandb_report.publish(settings, out=out, **given | changed)
    report = Artifact(out, "evaluation", "report", "report", "6" * 64, files={"report.html": "a" * 64})
    tracking.conclude(report)


def told(out: Path) -> dict[str, Told]:
    return {run.run.run_id: run for run in map(closed, record_files(out))}


def test_the_report_is_one_run_with_table_front_page_and_view(out: Path, lineage: dict[str, Artifact]) -> None:
    publish(out, lineage)
    run = told(out)["mini-report-66666666"]
    assert (run.run.run_group, run.run.job_type) == ("mini", "report")
    media = {name: value for row in run.media for name, value in row.items()}
    assert {name: value["_type"] for name, value in media.items()} == {
        "comparison": "table-file",
        "front": "plotly-file",
        "report": "html-file",
    }
    [folder] = {path.parent for path in record_files(out) if path.name == "run-mini-report-66666666.wandb"}
    shown = {name: (folder / "files" / value["path"]).read_text() for name, value in media.items()}
    table = json.loads(shown["comparison"])
    assert table["columns"] == ["model", "gold", "method", "angle"]
    assert table["data"] == [["sft", 0.5, None, None], ["slerp", 0.7, "slerp", 88.5]]
    assert json.loads(shown["front"])["data"][0]["y"] == [0.1, 0.9]
    assert shown["report"] == (out / "report.html").read_text()
    assert run.taken().keys() == {"versions.evaluation"}
    given = run.given()
    assert given.keys() == {"report.page", "report-66666666.workspace", "report.evaluation"}
    [page] = given["report.page"].manifest.contents
    assert Path(page.local_path).read_text() == shown["report"]
    assert Path(page.local_path).is_relative_to(out)


def test_what_has_no_run_of_its_own_gets_one_under_its_stage(out: Path, lineage: dict[str, Artifact]) -> None:
    publish(out, lineage)
    runs = told(out)
    assert runs.keys() == {
        "mini-report-66666666",
        "mini-data-11111111",
        "mini-slerp-44444444",
        "mini-versions-55555555",
    }
    merge = runs["mini-slerp-44444444"]
    assert (merge.run.job_type, merge.run.run_group, merge.summary["gold"]) == ("merge", "mini", 0.5)
    assert {key: value for key, value in merge.config.items() if key != "_wandb"} == {"seed": 1}
    assert merge.taken().keys() == {"rl2.policy", "rl3.policy"}
    assert merge.given().keys() == {"slerp.policy"}
    judged = runs["mini-versions-55555555"]
    assert judged.taken().keys() == {"slerp.policy", "gold-overall.gold"}
    # An edge joins two runs only where both name one version.
    assert judged.taken()["slerp.policy"].digest == merge.given()["slerp.policy"].digest


def test_an_evaluations_run_has_a_table_for_every_suite(out: Path, lineage: dict[str, Artifact]) -> None:
    def one(value: float, examples: int = 4) -> dict[str, float]:
        return {"estimate": value, "low": value - 0.125, "high": value + 0.125, "examples": examples}

    declared = [{"name": "safe", "better": "higher"}, {"name": "tokens", "better": None}]
    suite = {
        "declared": declared,
        "models": {"sft": {"safe": one(0.5), "tokens": one(9.0)}, "rl": {"safe": one(0.75)}},
        "differences": {"rl": {"from": "sft", "measures": {"safe": one(0.25)}}},
    }
    arms = suite | {"arms": {"both": {"safe": one(0.625)}}, "differences": {}}
    tables = suites.tables({"suites": {"checks": suite, "seeds": arms}})
    publish(out, lineage, tables={lineage["versions"].fingerprint: tables})
    runs = told(out)
    assert runs["mini-versions-55555555"].summary["gold"] == 0.5, "its numbers are there as ever"
    media = {name: value for row in runs["mini-versions-55555555"].media for name, value in row.items()}
    assert {name: value["_type"] for name, value in media.items()} == {
        "suites/checks": "table-file",
        "suites/seeds": "table-file",
    }
    [folder] = {path.parent for path in record_files(out) if path.name == "run-mini-versions-55555555.wandb"}
    table = json.loads((folder / "files" / media["suites/checks"]["path"]).read_text())
    assert table["columns"] == [
        "model", "measure", "better", "estimate", "low", "high", "examples", "than", "less", "less_low", "less_high",
    ]  # fmt: skip
    assert table["data"] == [
        ["sft", "safe", "higher", 0.5, 0.375, 0.625, 4, None, None, None, None],
        ["sft", "tokens", None, 9.0, 8.875, 9.125, 4, None, None, None, None],
        ["rl", "safe", "higher", 0.75, 0.625, 0.875, 4, "sft", 0.25, 0.125, 0.375],
    ]
    seeds = json.loads((folder / "files" / media["suites/seeds"]["path"]).read_text())
    assert [row[0] for row in seeds["data"]] == ["both"], "arms stand for their seeds"
    assert not any("suites" in name for row in runs["mini-slerp-44444444"].media for name in row)
    view = json.loads((out / wandb_view.VIEW).read_text())
    assert view["sections"][0]["panels"] == [
        {"kind": "media", "keys": ["comparison", "front", "suites/checks", "suites/seeds", "report"]}
    ]


def test_an_interrupted_report_is_told_anew(out: Path, lineage: dict[str, Artifact]) -> None:
    publish(out, lineage)
    before = told(out).keys()
    publish(out, lineage)
    assert len(record_files(out)) == len(before)
    assert told(out).keys() == before


def test_a_server_that_takes_nothing_holds_nobody_up(
    out: Path, lineage: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on, closed_runs = threading.Event(), []

    def finish(run: Any) -> None:
        closed_runs.append(run.id)
        assert go_on.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "PATIENCE", 0.1)
        patch.setattr(wandb_report.Run, "finish", finish)
        publish(out, lineage)
        assert closed_runs == ["mini-data-11111111"], "the others would wait for it"
        go_on.set()
    assert "W&B may lack the end of report-66666666" in capsys.readouterr().out
    assert (out / wandb_view.VIEW).is_file()


def test_a_tracker_that_is_off_is_told_nothing(out: Path, lineage: dict[str, Artifact]) -> None:
    publish(out, lineage, TrackerSettings(wandb="off", project="test", every=1, upload="none"))
    assert [path.name for path in out.iterdir()] == ["report.html"]


def test_nothing_to_compare_is_no_table(out: Path, lineage: dict[str, Artifact]) -> None:
    publish(out, lineage, rows=[], figures={})
    media = [name for row in told(out)["mini-report-66666666"].media for name in row]
    assert media == ["report"]


def test_synced_the_graph_hangs_together(out: Path, lineage: dict[str, Artifact]) -> None:
    publish(out, lineage)
    told(out)
    with wandb_support.serving() as server:
        wandb_support.sync(server, *(path.parent for path in record_files(out)))
    edges = {(run, kind, name.rpartition(":")[0]) for run, kind, name in server.edges}
    assert {
        ("mini-data-11111111", "made", "data.dataset"),
        ("mini-slerp-44444444", "used", "rl2.policy"),
        ("mini-slerp-44444444", "made", "slerp.policy"),
        ("mini-versions-55555555", "used", "slerp.policy"),
        ("mini-versions-55555555", "made", "versions.evaluation"),
        ("mini-report-66666666", "used", "versions.evaluation"),
        ("mini-report-66666666", "made", "report.evaluation"),
    } <= edges
    versions = [name for _, _, name in server.edges if name.startswith("slerp.policy")]
    assert len(set(versions)) == 1
    assert any(body == (out / "report.html").read_bytes() for body in server.uploads.values())
    view = json.loads((out / wandb_view.VIEW).read_text())
    assert any(body == (out / wandb_view.VIEW).read_bytes() for body in server.uploads.values())
    assert view["pipeline"] == "mini"
