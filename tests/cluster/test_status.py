"""What stage=status says of a step, by what its folder, the ledger and the queue say."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from stub_slurm import Stub

from alignment import artifacts, run, signals
from alignment.artifacts import Artifact
from alignment.cluster import ledger, slurm, state
from alignment.cluster.state import Fare
from alignment.errors import UserError
from alignment.training import incidents


def asked(store: Path, step: str, job: str | None = "7") -> Path:
    """Put a step into the ledger; its folder, which is not there yet."""
    folder = store / "mini" / f"{step}-00000000"
    folder.parent.mkdir(parents=True, exist_ok=True)
    ledger.write([ledger.Entry(step, "sft", step, str(folder), job, (), str(store / "mini" / f"{step}.out"), "ann")])
    return folder


def beating(folder: Path, *, host: str = "n1", seconds_ago: float = 0, **said: object) -> None:
    """Leave a heartbeat."""
    folder.mkdir(exist_ok=True)
    at = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="seconds")
    beat = {"step": 120, "steps": 400, "unit": "steps", "at": at, "rate": 2.0, "rank": 0, "host": host, "process": 1}
    (folder / signals.HEARTBEAT).write_text(json.dumps(beat | said))


def fare(store: Path) -> Fare:
    (found,) = state.fares(store, "mini", lambda folder: incidents_of(folder))
    return found


def incidents_of(folder: Path) -> str:
    told = incidents.told(folder)
    return told["incidents"][-1]["why"] if told else ""


def finish(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    artifacts.finish(
        Artifact(folder, "policy", "sft", "sft", "sft", metrics={"loss": 0.5}, headline="loss", seconds=75)
    )


Prepare = Callable[[Path], None]


@pytest.mark.parametrize(
    ("job", "prepare", "expected", "told"),
    [
        (slurm.Job("7", "COMPLETED"), finish, "finished", "1 min 15 s  loss 0.5"),
        (slurm.Job("7", "RUNNING", nodes="n[0-1]"), None, "running", "begins, on n[0-1]"),
        (
            slurm.Job("7", "RUNNING", nodes="n0"),
            beating,
            "running",
            "120 of 400 steps, 2.0 a second, 2 min 0 s left, on n0",
        ),
        (slurm.Job("7", "PENDING", reason="Dependency"), None, "queued", "waits for its inputs"),
        (slurm.Job("7", "PENDING", reason="AssocGrpGRES"), None, "queued", "AssocGrpGRES"),
        (
            slurm.Job("7", "PENDING", 3, reason="BeginTime"),
            beating,
            "queued",
            "waits to be queued again, at 120 of 400 steps",
        ),
        (slurm.Job("7", "PENDING", reason=slurm.HOPELESS), None, "failed", "what it waits for has failed"),
        (slurm.Job("7", "FAILED"), None, "failed", "failed"),
        (slurm.Job("7", "OUT_OF_MEMORY"), beating, "failed", "ran out of memory, at 120 of 400 steps"),
        (slurm.Job("7", "COMPLETED"), None, "stopped", "nothing of it is here; its command makes it"),
        (slurm.Job("7", "COMPLETED"), Path.mkdir, "stopped", "its command goes on with it"),
    ],
)
def test_a_step_with_a_job(
    job: slurm.Job,
    prepare: Prepare | None,
    expected: str,
    told: str,
    tmp_path: Path,
    stub: Stub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "_age", lambda beat: 20.0)
    folder = asked(tmp_path, "sft")
    stub.queue([job])
    if prepare is not None:
        prepare(folder)
    found = fare(tmp_path)
    assert (found.state, found.told, found.job, found.restarts) == (
        expected,
        told,
        "7",
        job.restarts * (expected != "finished"),
    )


def test_a_job_that_the_queue_has_forgotten_is_asked_of_the_accounts(tmp_path: Path, stub: Stub) -> None:
    folder = asked(tmp_path, "sft")
    assert fare(tmp_path).state == "stopped", "a cluster without accounts"
    (stub.folder / "sacct.says").write_text("7|TIMEOUT\n")
    assert fare(tmp_path).told == "ran into its time limit"
    folder.mkdir()
    (folder / incidents.FILE).write_text(json.dumps({"at": "", "why": "the loss is nan"}) + "\n")
    assert fare(tmp_path).told == "ran into its time limit, the loss is nan"


def test_a_finished_step_asks_nobody(tmp_path: Path, stub: Stub) -> None:
    finish(asked(tmp_path, "sft"))
    assert fare(tmp_path).state == "finished"
    assert stub.calls("squeue") == []


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = asked(tmp_path, "sft", job=None)
    assert fare(tmp_path).state == "waiting"
    beating(folder, host="elsewhere")
    assert fare(tmp_path).state == "running"
    beating(folder, host="elsewhere", seconds_ago=2 * state.SILENCE)
    assert (fare(tmp_path).state, fare(tmp_path).told) == ("stopped", "at 120 of 400 steps")
    beating(folder, host=os.uname().nodename)
    assert fare(tmp_path).state == "stopped", "nobody on this machine holds it"
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fare(tmp_path).state == "running"
    assert fare(tmp_path).state == "stopped"


def test_a_folder_that_nobody_asked_for_is_shown_too(tmp_path: Path) -> None:
    (tmp_path / "mini").mkdir()
    finish(tmp_path / "mini" / "sft-12345678")
    found = fare(tmp_path)
    assert (found.step, found.state, found.job) == ("sft", "finished", "")


@pytest.mark.parametrize(
    ("beat", "told"),
    [
        ({"rate": None}, "120 of 400 steps"),
        ({"rate": None, "steps": None, "unit": "rows"}, "120 rows"),
        ({"rate": 0.1}, "120 of 400 steps, 10 s each, 46 min 20 s left"),
        ({"step": 4, "steps": 40000, "rate": 1250.0}, "4 of 40,000 steps, 1,250.0 a second, 12 s left"),
        ({"step": 399}, "399 of 400 steps, 2.0 a second"),
    ],
)
def test_progress_says_how_far_how_fast_and_how_long_yet(
    beat: dict[str, object], told: str, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_age", lambda beat: 20.0)
    folder = asked(tmp_path, "sft")
    stub.queue([slurm.Job("7", "RUNNING", nodes="n0")])
    beating(folder, **beat)
    assert fare(tmp_path).told == f"{told}, on n0"


def test_the_page_counts_and_says_where_to_look(
    tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(asked(tmp_path, "base", "1"))
    asked(tmp_path, "sft", "2")
    asked(tmp_path, "rl", "3")
    (tmp_path / "mini" / "sft.out").write_text("…")
    stub.queue([slurm.Job("2", "FAILED", 4), slurm.Job("3", "PENDING", reason=slurm.HOPELESS)])
    assert run.door(["stage=status", f"store={tmp_path}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "pipeline=mini 1 finished, 2 failed" in printed
    assert "sft failed failed 2 5" in printed
    assert f"sft: see {tmp_path}/mini/sft.out" in printed.replace("/ ", "/")
    assert "rl: see" not in printed, "it has no log"


def test_it_looks_until_nothing_is_under_way(tmp_path: Path, stub: Stub) -> None:
    folder = asked(tmp_path, "sft")
    stub.queue([slurm.Job("7", "RUNNING")])
    seen = []

    def look() -> list[Fare]:
        found = state.fares(tmp_path, "mini", incidents_of)
        seen.append(found[0].state)
        if len(seen) == 2:
            finish(folder)
        return found

    assert len(list(state.watch(look, 0.01))) == 3
    assert seen == ["running", "running", "finished"]


def test_a_store_without_anything_and_an_unknown_pipeline_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.door(["stage=status", f"store={tmp_path}/runs"]) == 2
    assert "no pipeline was ever run or submitted here" in capsys.readouterr().err
    finish(asked(tmp_path, "sft"))
    assert run.door(["stage=status", f"store={tmp_path}", "pipeline=mino"]) == 2
    assert "Did you mean 'mini'?" in capsys.readouterr().err


def test_a_queue_that_does_not_answer_is_told(tmp_path: Path, stub: Stub) -> None:
    asked(tmp_path, "sft")
    (stub.folder / "squeue").write_text(
        "#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    with pytest.raises(UserError, match="squeue refuses: Unable to contact slurm controller") as told:
        fare(tmp_path)
    assert "sinfo" in told.value.remedy
