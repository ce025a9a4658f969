"""W&B: who a run is, what it read and made, and that an offline run loses nothing, killed or not."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import wandb_support
from wandb_support import closed, read, record_files

from alignment.artifacts import Artifact, Parent, Tokens
from alignment.training import tracking, wandb_runs
from alignment.training.tracking import Tracker, TrackerSettings, read_metrics

OFFLINE = TrackerSettings(wandb="offline", project="test", every=1, upload="none")
DIGESTS = {"model.safetensors": "ab" * 32, "sub/config.json": "cd" * 32}


def finished(out: Path, **told: Any) -> Artifact:
    """The artifact of a stage that wrote ``out``."""
    given = {"metrics": {"loss": 0.5, "broken": math.inf}, "headline": "loss", "files": DIGESTS} | told
    return Artifact(out, "policy", "sft", "sft", out.name.rpartition("-")[2] * 8, **given)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "mini" / "sft-12345678"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def parents(tmp_path: Path) -> dict[str, Artifact]:
    base = Artifact(tmp_path / "base", "policy", "pretrain", "base", "b" * 64, files={"model.safetensors": "ef" * 32})
    return {"model.weights": base, "data": Artifact(Path(), "gold", "", "gold:overall", "9" * 64)}


def only(out: Path) -> wandb_support.Told:
    [path] = record_files(out)
    return closed(path)


def test_a_run_says_who_it_is_what_it_read_and_what_it_made(out: Path, parents: dict[str, Artifact]) -> None:
    config = {"seed": 3, "server": {"url": "http://me:secret@host:1/v1"}, "names": ["https://a:b@c"]}
    tracker = Tracker(OFFLINE, out, config, stage="sft", inputs=parents)
    tracker.log(1, {"loss": 2.0})
    tracker.finish({"loss": 2.0})
    made = finished(out, parents={"model.weights": Parent("step:base", "b" * 64, "base")}, licences=("MIT",))
    tracking.conclude(made)
    told = only(out)
    assert (told.run.run_id, told.run.display_name) == ("mini-sft-12345678", "sft-12345678")
    assert (told.run.run_group, told.run.job_type, list(told.run.tags)) == ("mini", "sft", ["sft"])
    config = {key: value for key, value in told.config.items() if key != "_wandb"}
    assert config == {"seed": 3, "server": {"url": "http://host:1/v1"}, "names": ["https://c"]}
    assert told.summary["loss"] == 0.5  # what the record says, over what the trainer said
    assert told.exited

    assert told.taken().keys() == {"base.policy", "gold-overall.gold"}
    assert told.given().keys() == {"sft.policy"}
    sft = told.given()["sft.policy"]
    assert sft.type == "policy"
    assert set(sft.aliases) == {"latest", "12345678"}
    assert {entry.path: (entry.ref, entry.digest, entry.local_path) for entry in sft.manifest.contents} == {
        name: (f"sha256:{digest}", f"sha256:{digest}", "") for name, digest in DIGESTS.items()
    }
    facts = json.loads(sft.metadata)
    assert facts["metrics"] == {"loss": 0.5, "broken": None}
    assert (facts["fingerprint"], facts["licences"], facts["files"]) == (made.fingerprint, ["MIT"], DIGESTS)
    assert facts["parents"]["model.weights"]["fingerprint"] == "b" * 64
    [entry] = told.taken()["gold-overall.gold"].manifest.contents
    assert entry.digest == f"fingerprint:{'9' * 64}"


def test_who_makes_and_who_reads_name_the_same_version(out: Path) -> None:
    made = finished(out)
    one, other = (wandb_runs.wandb_artifact(made, "none") for _ in range(2))
    assert one.digest == other.digest
    assert one.digest != wandb_runs.wandb_artifact(finished(out, files={"model.safetensors": "00" * 32}), "none").digest


def test_models_are_uploaded_when_asked_and_nothing_else_is(out: Path) -> None:
    (out / "model.safetensors").write_bytes(b"weights")
    asked = finished(out, files={"model.safetensors": "ab" * 32})
    whole = wandb_runs.wandb_artifact(asked, "models").manifest.entries["model.safetensors"]
    assert Path(whole.local_path) == out / "model.safetensors"  # read from where it lies, not copied
    for kept in (wandb_runs.wandb_artifact(asked, "none"), wandb_runs.wandb_artifact(_data(out), "models")):
        assert [entry.local_path for entry in kept.manifest.entries.values()] == [None]


def _data(out: Path) -> Artifact:
    return Artifact(out, "dataset", "data", "data", "d" * 64, files={"model.safetensors": "ab" * 32})


def test_names_that_wandb_does_not_take(tmp_path: Path) -> None:
    long = Artifact(tmp_path, "foreign", "", "dir:/some/where/" + "x" * 200, "f" * 64)
    name = wandb_runs.wandb_artifact(long, "none").name
    assert len(name) == 128
    assert name.endswith(".foreign")
    tokens = Tokens("t", 1, 2, "gemma")
    assert wandb_runs.facts(Artifact(tmp_path, "policy", "", "x", "f", tokens=tokens))["tokens"]["padded"] == 2


def test_an_offline_run_holds_every_row_and_every_table(out: Path) -> None:
    tracker = Tracker(OFFLINE, out, {})
    for step in range(1, 60):
        tracker.log(step, {"loss": 1 / step, "held_out/kl": step * 0.1, "broken": math.nan if step == 7 else 0.0})
        if step % 20 == 0:
            tracker.table("held_out/samples", step, [{"answer": f"é \u2028 {step}", "score": math.nan}, {"more": 1}])
    tracker.finish({"loss": 0.1})
    tracking.conclude(finished(out))
    told = only(out)
    assert told.rows == read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in told.media] == [20, 40]
    [folder] = {path.parent for path in record_files(out)}
    for row in told.media:
        shown = json.loads((folder / "files" / row["held_out/samples"]["path"]).read_text())
        assert shown["columns"] == ["answer", "score", "more"]
        assert shown["data"][0][0] == f"é \u2028 {row['step']}"
    # What is staged to be uploaded lies beside the run, not in somebody's home.
    staged = [entry for one in told.artifacts if one.type == "run_table" for entry in one.manifest.contents]
    assert len(staged) == 2
    assert all(Path(entry.local_path).is_relative_to(out) and Path(entry.local_path).exists() for entry in staged)
    assert "WANDB_DATA_DIR" not in os.environ


KILLED = """
import os, signal, sys
from pathlib import Path
from alignment.training.tracking import Tracker, TrackerSettings
out = Path(sys.argv[1])
tracker = Tracker(TrackerSettings(wandb="offline", project="test", every=1, upload="none"), out, {"seed": 1})
for step in range(1, 31):
    tracker.log(step, {"loss": float(step)})
    if step % 10 == 0:
        tracker.table("samples", step, [{"answer": step}])
with open(out / "metrics.jsonl", "a") as file:
    file.write('{"step": 31, "lo')
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(out: Path) -> None:
    """A run that is killed at step 30."""
    # A process of its own has a W&B service of its own; one that this process started would be handed down.
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    called = [sys.executable, "-c", KILLED, str(out)]
    done = subprocess.run(called, capture_output=True, timeout=60, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def resumed(out: Path, parents: dict[str, Artifact]) -> None:
    """It goes on from the checkpoint of step 20, with other numbers, so that it shows whose row is kept."""
    tracker = Tracker(OFFLINE, out, {"seed": 1}, stage="sft", inputs=parents)
    tracker.rewind(20)
    for step in range(21, 41):
        tracker.log(step, {"loss": -float(step)})
        if step % 10 == 0:
            tracker.table("samples", step, [{"answer": -step}])
    tracker.finish({})
    tracking.conclude(finished(out))


def test_a_killed_and_resumed_run_is_one_file_with_every_row_once(out: Path, parents: dict[str, Artifact]) -> None:
    killed(out)
    [first] = record_files(out)
    assert first.name == "run-mini-sft-12345678.wandb"
    written = read(first).rows  # as far as W&B's own process came
    assert written == read_metrics(out / "metrics.jsonl")[: len(written)]
    resumed(out, parents)
    told = only(out)
    assert told.run.run_id == "mini-sft-12345678"
    assert told.rows == read_metrics(out / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in told.rows] == [(n, n if n <= 20 else -n) for n in range(1, 41)]
    [folder] = {path.parent for path in record_files(out)}
    shown = [json.loads((folder / "files" / row["samples"]["path"]).read_text())["data"] for row in told.media]
    assert sorted(shown) == [[[-40]], [[-30]], [[10]], [[20]]]


def test_a_run_that_never_rewinds_is_told_what_the_killed_one_was(out: Path) -> None:
    killed(out)
    tracker = Tracker(OFFLINE, out, {})
    tracker.log(31, {"loss": 31.0})
    tracker.finish({})
    tracking.conclude(finished(out))
    told = only(out)
    assert sorted(row["step"] for row in told.rows) == list(range(1, 32))
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == list(
        range(1, 32)
    )  # no row glued to a cut one


class Known:
    """A run that the server has been told of up to step 25."""

    resumed = True
    dir = "."

    def __init__(self) -> None:
        self.summary, self.rows = {"step": 25}, []

    def define_metric(self, *_: Any, **__: Any) -> None:
        return

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def test_online_only_what_the_server_does_not_know_is_told_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": n}) + "\n" for n in range(1, 41)))
    known = Known()
    monkeypatch.setattr(wandb_runs, "_init", lambda *_: known)
    tracker = Tracker(OFFLINE, out, {})
    tracker.rewind(30)
    tracker.log(31, {"loss": 0.0})
    assert [row["step"] for row in known.rows] == [26, 27, 28, 29, 30, 31]


def test_a_run_left_open_by_a_stage_that_failed_is_not_written_into(tmp_path: Path) -> None:
    for name in ("a-11111111", "b-22222222"):
        (tmp_path / "mini" / name).mkdir(parents=True)
        tracker = Tracker(OFFLINE, tmp_path / "mini" / name, {}, stage=name[0])
        tracker.log(1, {name[0]: 1.0})
    tracker.finish({})
    tracking.conclude(finished(tmp_path / "mini" / "b-22222222"))
    assert only(tmp_path / "mini" / "a-11111111").rows == [{"step": 1, "a": 1.0}]
    assert only(tmp_path / "mini" / "b-22222222").rows == [{"step": 1, "b": 1.0}]


def test_synced_later_nothing_is_lost(out: Path, parents: dict[str, Artifact]) -> None:
    """The real ``wandb sync`` against a server of our own: rows, group, config, tables, and lineage as edges."""
    killed(out)
    resumed(out, parents)
    with wandb_support.serving() as server:
        wandb_support.sync(server, *(path.parent for path in record_files(out)))
    name = "mini-sft-12345678"
    rows = server.rows(name)
    assert [row for row in rows if "samples" not in row] == read_metrics(out / "metrics.jsonl")
    assert sorted(row["step"] for row in rows if "samples" in row) == [10, 20, 30, 40]
    assert {server.runs[name][key] for key in ("groupName", "displayName", "jobType")} == {"mini", out.name, "sft"}
    edges = {(kind, artifact.partition(":")[0]) for run, kind, artifact in server.edges if run == name}
    assert {("used", "base.policy"), ("used", "gold-overall.gold"), ("made", "sft.policy")} <= edges
    assert ("made", "base.policy") not in edges
    assert len(server.committed) == len(server.made)
    manifest = next(
        json.loads(server.uploads[f"manifest/{key}"])
        for key, one in server.made.items()
        if one["artifactCollectionName"] == "sft.policy"
    )
    assert {path: entry["digest"] for path, entry in manifest["contents"].items()} == {
        path: f"sha256:{digest}" for path, digest in DIGESTS.items()
    }


ONLINE = """
import sys
from pathlib import Path
from alignment.artifacts import Artifact
from alignment.training import tracking
from alignment.training.tracking import Tracker, TrackerSettings
out = Path(sys.argv[1])
base = Artifact(out, "policy", "pretrain", "base", "b" * 64, files={"model.safetensors": "ef" * 32})
online = TrackerSettings(wandb="online", project="test", every=1, upload="models")
tracker = Tracker(online, out, {"seed": 1}, stage="sft", inputs={"model.weights": base})
tracker.rewind(0)
for step in (1, 2, 3):
    tracker.log(step, {"loss": float(step)})
tracker.table("samples", 3, [{"answer": "a"}])
tracker.finish({})
files = {"model.safetensors": "ab" * 32}
tracking.conclude(Artifact(out, "policy", "sft", "sft", "12345678" * 8, files=files))
"""


def online(out: Path, server: wandb_support.Server, program: str) -> str:
    """What a program says that is logged in at the server; it ends well, within a minute."""
    own = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"} | own
    called = [sys.executable, "-c", program, str(out)]
    done = subprocess.run(called, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["tracking.conclude(made)", "tracking.abandon(out, 'stopped')"])
def test_a_server_that_falls_silent_lets_the_program_end(ends: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself would wait for the server for ever."""
    (out / "model.safetensors").write_bytes(b"weights")
    program = ONLINE.replace("tracking.conclude(", "made = (") + f"tracking.PATIENCE = tracking.GRACE = 2.0\n{ends}\n"
    with wandb_support.serving() as server:
        monkeypatch.setattr(server, "stream", lambda *_: threading.Event().wait())
        said = " ".join(online(out, server, program).split())
    assert "W&B may lack the end of sft-12345678: it has not taken everything within 2 s" in said


@pytest.mark.slow
def test_online_everything_arrives_at_once(out: Path) -> None:
    (out / "model.safetensors").write_bytes(b"weights")
    with wandb_support.serving() as server:
        online(out, server, ONLINE)
    name = "mini-sft-12345678"
    assert [row for row in server.rows(name) if "samples" not in row] == read_metrics(out / "metrics.jsonl")
    edges = {(kind, artifact.partition(":")[0]) for run, kind, artifact in server.edges if run == name}
    assert {("used", "base.policy"), ("made", "sft.policy")} <= edges
    sent = [body for where, body in server.uploads.items() if where.endswith("/model.safetensors")]
    assert b"weights" in sent
