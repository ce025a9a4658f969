"""On a real Slurm of two nodes: pipelines as jobs, ranks on both nodes, and runs that are interrupted in every way."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import several
import test_stored_rollouts as stored
import tiny_runs
from planting import SECRETS, leaks
from stage_runs import TIMED
from tests_support import QUIET, call
from throwaway_slurm import Cluster, wait_for

from alignment import artifacts, run, signals
from alignment.artifacts import Artifact, load
from alignment.cluster import ledger
from alignment.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SURROUNDINGS = {
    "ALIGNMENT_ENVIRONMENT": sys.prefix,
    "ALIGNMENT_JOBS": str(ROOT / "jobs"),
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "CI": "true",
    "COLUMNS": "160",
}
RELATIVE = 2e-6
"""What a different order of summation may change, in fp32 over 20 steps."""
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--time=10")
STEPS, EVERY, LATE_ENOUGH = 240, 20, 50
"""Steps of a run that is interrupted, between two checkpoints, and done before anything happens to it."""
FEWER = {"rl": (40, 4, 8)}
"""The same where steps take longer."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tiny_runs.Given:
    return tiny_runs.given(tmp_path_factory.mktemp("given"))


def submit(cluster: Cluster, log: Path, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    """Submit one of the batch scripts; the job's number."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["sbatch", "--parsable", f"--output={log}", *options, str(ROOT / "jobs" / script), *arguments]
    return cluster.run(*command, cwd=ROOT, **SURROUNDINGS).strip()


def door(cluster: Cluster, store: Path, *arguments: str) -> str:
    """What a command line prints that is typed on the cluster."""
    return cluster.run(*(sys.executable, "-m", "alignment.run", f"store={store}", *arguments), cwd=ROOT, **SURROUNDINGS)


def closing_table(said: str) -> list[list[str]]:
    """The steps of a closing table with their headlines, without times and folders.

    Tables of other steps stand above it. A long folder's name goes on in a line of its own, which begins with a space.
    """
    lines = said.partition("\npipeline=")[2].partition("\nenergy of all")[0].splitlines()[2:]
    return [line.split()[:1] + line.split()[-3:-1] for line in lines if line.strip() and not line.startswith(" ")]


def untimed(artifact: Artifact) -> dict[str, str]:
    """The digests of an artifact's files, but for one that shows how long things took."""
    return {name: digest for name, digest in artifact.files.items() if name != TIMED.get(artifact.stage)}


# ── pipelines ────────────────────────────────────────────────────────────────────────────────────


def test_a_plan_runs_through_as_jobs_and_an_array(cluster: Cluster, smoke: Path, tmp_path: Path) -> None:
    plan = ("stage=pipeline", "pipeline=smoke", *QUIET, "launcher=slurm", "launcher.gpus=0", "launcher.cpus=1")
    said = door(cluster, tmp_path, *plan)
    entries = ledger.read_all(tmp_path)
    jobs = {entry.step: str(entry.job) for entry in entries.values() if "/smoke/" in entry.folder}
    assert jobs["warp_1_run_1"].partition("_")[0] == jobs["warp_1_run_2"].partition("_")[0], "one array"
    assert "stage=status shows how they fare" in said
    queued = cluster.run("squeue", "--noheader", "--array", "--format=%i").split()
    door(cluster, tmp_path, *plan)
    again = set(cluster.run("squeue", "--noheader", "--array", "--format=%i").split())
    assert again <= {*queued}, "what is queued is not submitted twice"
    wait_for(lambda: not cluster.run("squeue", "--noheader"), 2400, lambda: door(cluster, tmp_path, "stage=status"))
    assert f"{len(jobs)} finished" in door(cluster, tmp_path, "stage=status", "pipeline=smoke")

    # The same plan on this machine has the same artifacts, to the bit; and all is finished now, so the table is shown.
    made, local = (
        {one.step: one for one in Store(store).finished() if one.path.parent.name == "smoke"}
        for store in (tmp_path, smoke)
    )
    assert {step: one.fingerprint for step, one in made.items()} == {
        step: one.fingerprint for step, one in local.items()
    }
    for step in ("text", "tokenizer", "base", "sft", "preference", "ppo", "warp_1"):
        assert untimed(made[step]) == untimed(local[step]), step
    shown = closing_table(door(cluster, tmp_path, *plan))
    assert shown == closing_table(call(smoke, "stage=pipeline", "pipeline=smoke", *QUIET).stdout)
    assert len(shown) == len(jobs)


def test_a_plan_in_one_job_closes_like_one_on_this_machine(cluster: Cluster, smoke: Path, tmp_path: Path) -> None:
    log = tmp_path / "job.out"
    job = submit(cluster, log, "pipeline.sbatch", "pipeline=smoke", f"store={tmp_path}/runs", *QUIET)
    assert cluster.wait(job, "COMPLETED", "FAILED", seconds=1200) == "COMPLETED", log.read_text()
    local = call(smoke, "stage=pipeline", "pipeline=smoke", *QUIET).stdout
    table = closing_table(log.read_text())
    assert table == closing_table(local)
    assert len(table) > 30


def test_the_miniature_in_one_job_closes_as_the_demo_does(cluster: Cluster, tmp_path: Path) -> None:
    """Job and demo side by side, a core each, for a quarter of an hour."""
    log = tmp_path / "job.out"
    job = submit(cluster, log, "pipeline.sbatch", "pipeline=mini", f"store={tmp_path}/runs", *QUIET)
    local = call(tmp_path / "local", "stage=pipeline", "pipeline=mini", *QUIET, seconds=2700)
    assert local.returncode == 0, local.stdout + local.stderr
    assert cluster.wait(job, "COMPLETED", "FAILED", seconds=1200) == "COMPLETED", log.read_text()
    table = closing_table(log.read_text())
    assert table == closing_table(local.stdout)
    assert {"sft", "ppo", "warp_1", "versions"} <= {row[0] for row in table}


def test_what_has_failed_takes_along_what_waits_and_is_submitted_anew(cluster: Cluster, tmp_path: Path) -> None:
    plan = ("stage=pipeline", "pipeline=smoke", "only=[tokenizer]", *QUIET, "launcher=slurm", "launcher.gpus=0")
    told = (*plan, "launcher.cpus=1", "launcher.of={text: {extra: --hold}}")
    door(cluster, tmp_path, *told)
    jobs = {entry.step: str(entry.job) for entry in ledger.read_all(tmp_path).values()}
    assert "held: scontrol release" in door(cluster, tmp_path, "stage=status")
    cluster.run("scancel", jobs["text"])
    wait_for(lambda: cluster.state(jobs["tokenizer"]) == "CANCELLED", 60, "it waits for ever for what was cancelled")
    said = " ".join(door(cluster, tmp_path, "stage=status").split())
    assert "2 failed" in said
    assert "text failed cancelled" in said
    door(cluster, tmp_path, *plan, "launcher.cpus=1")
    anew = {entry.step: str(entry.job) for entry in ledger.read_all(tmp_path).values()}
    assert not {*anew.values()} & {*jobs.values()}
    cluster.wait(anew["tokenizer"], "COMPLETED")


# ── ranks on both nodes ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("stage", [*tiny_runs.STAGES, *tiny_runs.OWN_ANSWERS])
def test_two_nodes_train_what_one_process_trains(
    stage: str, engine: str, cluster: Cluster, given: tiny_runs.Given, tmp_path: Path
) -> None:
    line = tiny_runs.line(stage, given, tmp_path / "two", f"engine={engine}", *_micro(stage))
    log = tmp_path / "job.out"
    job = submit(cluster, log, "stage.sbatch", *line, options=TWO_NODES)
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", log.read_text()
    assert load(_folder(tmp_path / "two")).notes["processes"] == 2
    if stage == "rl":
        # Answers are drawn from weights that differ in their last bits; what holds live, the loop asserts itself.
        return
    assert run.door(tiny_runs.line(stage, given, tmp_path / "one")) == 0
    mine, theirs = (tiny_runs.curve(tmp_path / name, stage) for name in ("one", "two"))
    assert len(mine) == len(theirs) >= 20
    for row, other in zip(mine, theirs, strict=True):
        for name in {"loss", "held_out_loss"} & row.keys():
            assert other[name] == pytest.approx(row[name], rel=RELATIVE), (row["step"], name)


@pytest.mark.parametrize("engine", stored.CASES)
def test_two_nodes_learn_from_stored_rollouts(engine: str, cluster: Cluster, tmp_path: Path) -> None:
    log, port = tmp_path / "job.out", several.free_port()
    line = shlex.join(["srun", sys.executable, *stored.program(engine, tmp_path)])
    reached = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": stored.PATH}
    options = ("--parsable", f"--output={log}", *TWO_NODES, f"--wrap={line}")
    job = cluster.run("sbatch", *options, cwd=ROOT, **SURROUNDINGS, **reached).strip()
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", log.read_text()
    stored.need_alike(engine, tmp_path, log.read_text())


def _micro(stage: str) -> tuple[str, ...]:
    return () if stage == "rl" else ("engine.micro_batch=2",)


def _folder(store: Path) -> Path:
    (record,) = store.glob(f"solo/*/{artifacts.RECORD}")
    return record.parent


# ── interrupted ──────────────────────────────────────────────────────────────────────────────────


def told_of_its_limit(cluster: Cluster, job: str) -> None:
    """What Slurm tells a batch shell some time before the job's limit."""
    cluster.run("scancel", "--batch", "--signal=USR1", job)


def at_its_limit(cluster: Cluster, job: str) -> None:
    """Its limit comes near; Slurm looks twice a minute, for which the ranks are stopped."""
    ranks = cluster.processes(job, " -m alignment.run ")
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    *_, minutes, _ = cluster.run("squeue", "--noheader", f"--jobs={job}", "--format=0:%M").strip().split(":")
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={int(minutes) + 2}")
    wait_for(lambda: all(map(_is_told, ranks)), 120, "nobody tells the ranks")
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)


def _is_told(pid: int) -> bool:
    """Whether a process that is stopped has a USR1 to attend to."""
    said = Path(f"/proc/{pid}/status").read_text()
    waiting = [int(line.split()[1], 16) for line in said.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (signal.SIGUSR1 - 1) & 1 for mask in waiting)


def preempted(cluster: Cluster, job: str) -> None:
    """A job of the partition that goes first wants both nodes."""
    options = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    cluster.run("sbatch", *options)


def a_rank_killed(cluster: Cluster, job: str) -> None:
    """As a machine does that runs out of memory."""
    _, second = cluster.processes(job, " -m alignment.run ")
    os.kill(second, signal.SIGKILL)


def its_shell_killed(cluster: Cluster, job: str) -> None:
    """Without its batch shell a job has failed; somebody queues it again."""
    (shell,) = cluster.processes(job, "slurm_script")
    os.kill(shell, signal.SIGKILL)
    cluster.wait(job, "FAILED", "NODE_FAIL")
    cluster.run("scontrol", "requeue", job)


def its_node_lost(cluster: Cluster, job: str) -> None:
    """The daemon of the second node dies, the controller gives the node up, and some time later it is back."""
    cluster.kill_node("n1")
    cluster.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=lost")
    wait_for(lambda: cluster.state(job) != "RUNNING", 300, "the job goes on on a lost node")
    cluster.start_node("n1")
    cluster.run("scontrol", "update", "NodeName=n1", "State=RESUME", check=False)
    wait_for(cluster.ready, 60, "the node does not come back")


FAULTS: list[Callable[[Cluster, str], None]] = [
    *(told_of_its_limit, at_its_limit, preempted, a_rank_killed, its_shell_killed, its_node_lost)
]


INTERRUPTED = [
    *((stage, "ddp", fault) for stage in tiny_runs.STAGES for fault in FAULTS),
    # Checkpoints of DeepSpeed are others: each stage meets three faults on ZeRO, and each fault every engine.
    *(
        (stage, f"zero{level}", FAULTS[(place + 2 * level) % len(FAULTS)])
        for place, stage in enumerate(tiny_runs.STAGES)
        for level in (1, 2, 3)
    ),
]


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, given: tiny_runs.Given, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The store of a run of each stage on an engine to which nothing happened, made once."""
    made: dict[tuple[str, str], Path] = {}

    def of(stage: str, engine: str) -> Path:
        if (stage, engine) not in made:
            store = tmp_path_factory.mktemp(f"undisturbed-{stage}-{engine}")
            line = _long(stage, given, store, engine)
            job = submit(cluster, store / "job.out", "stage.sbatch", *line, options=TWO_NODES)
            assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", (store / "job.out").read_text()
            made[stage, engine] = store
        return made[stage, engine]

    return of


def _long(stage: str, given: tiny_runs.Given, store: Path, engine: str = "ddp", times: int = 1) -> list[str]:
    steps, every, _ = FEWER.get(stage, (STEPS, EVERY, LATE_ENOUGH))
    steps *= times
    return tiny_runs.line(stage, given, store, f"engine={engine}", *_micro(stage), steps=steps, every=every)


@pytest.mark.parametrize(
    ("stage", "engine", "fault"),
    INTERRUPTED,
    ids=[f"{stage}-{engine}-{f.__name__}" for stage, engine, f in INTERRUPTED],
)
def test_an_interrupted_run_comes_back_with_the_same_numbers(
    stage: str,
    engine: str,
    fault: Callable[[Cluster, str], None],
    cluster: Cluster,
    given: tiny_runs.Given,
    undisturbed: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    expected = undisturbed(stage, engine)
    log = tmp_path / "job.out"
    job = submit(cluster, log, "stage.sbatch", *_long(stage, given, tmp_path, engine), options=TWO_NODES)
    late = FEWER.get(stage, (STEPS, EVERY, LATE_ENOUGH))[2]
    wait_for(lambda: _has_rows(tmp_path, late), 600, log.read_text)
    fault(cluster, job)
    wait_for(lambda: cluster.restarts(job) >= 1, 600, lambda: f"{cluster.state(job)}: {log.read_text()}")
    assert not list(tmp_path.glob(f"solo/*/{artifacts.RECORD}")), "it was to be interrupted before its end"
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", log.read_text()
    assert _curve(tmp_path, stage) == _curve(expected, stage)
    mine, theirs = load(_folder(tmp_path)), load(_folder(expected))
    assert mine.files["model.safetensors"] == theirs.files["model.safetensors"]
    assert mine.verify() == []


def _has_rows(store: Path, goal: int) -> bool:
    return sum(len(path.read_text().splitlines()) for path in store.glob("solo/*/metrics.jsonl")) >= goal


def _curve(store: Path, stage: str) -> list[dict[str, float]]:
    """The rows without what tells of time."""
    timed = ("second", "time")
    return [
        {name: value for name, value in row.items() if not any(word in name for word in timed)}
        for row in tiny_runs.curve(store, stage)
    ]


def test_a_cancelled_job_saves_and_stays_away(cluster: Cluster, given: tiny_runs.Given, tmp_path: Path) -> None:
    log = tmp_path / "job.out"
    job = submit(cluster, log, "stage.sbatch", *_long("sft", given, tmp_path), options=TWO_NODES)
    wait_for(lambda: _has_rows(tmp_path, LATE_ENOUGH), 600, log.read_text)
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED")
    wait_for(lambda: not cluster.processes(job, "alignment.run"), 300, "its ranks go on")
    assert cluster.restarts(job) == 0
    assert any(tmp_path.glob("solo/*/checkpoints/*")), "the same command goes on from there"


def test_a_job_on_two_nodes_tells_no_secret(cluster: Cluster, given: tiny_runs.Given, tmp_path: Path) -> None:
    """Slurm hands its submitter's environment on to the ranks; what they print and write does not tell it."""
    line = [*_long("sft", given, tmp_path / "runs"), "tracker=offline"]
    log, said = tmp_path / "job.out", tmp_path / "said.out"
    options = ("--parsable", f"--output={log}", *TWO_NODES)
    planted = {**SURROUNDINGS, **SECRETS, "WANDB_MODE": "offline"}
    job = cluster.run("sbatch", *options, str(ROOT / "jobs" / "stage.sbatch"), *line, cwd=ROOT, **planted).strip()
    wait_for(lambda: _has_rows(tmp_path / "runs", LATE_ENOUGH), 600, log.read_text)
    said.write_text(cluster.run("scontrol", "show", "job", job))
    a_rank_killed(cluster, job)
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", log.read_text()
    assert cluster.restarts(job) == 1
    assert list(tmp_path.rglob("*.wandb"))
    assert leaks(tmp_path) == []


def test_ranks_that_do_not_heed_their_limit_are_queued_again_before_it(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm would take the job for failed, and with it what waits for it."""
    script, log = tmp_path / "deaf.sbatch", tmp_path / "job.out"
    script.write_text(
        '#!/bin/bash\nsource "$ALIGNMENT_JOBS/lib.sh"\n((restarts)) && ranks true\n'
        "ranks bash -c 'trap \"\" USR1 TERM; exec sleep 600'\n"
    )
    options = (*TWO_NODES[:2], "--time=2", "--signal=B:USR1@60", "--requeue", "--open-mode=append", f"--output={log}")
    job = cluster.run("sbatch", "--parsable", *options, str(script), cwd=ROOT, **SURROUNDINGS).strip()
    assert cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", seconds=400) == "COMPLETED", log.read_text()
    assert cluster.restarts(job) == 1
    assert "still at work shortly before its end; queueing again" in log.read_text()


def _trains(store: Path, cluster: Cluster, job: str) -> bool:
    """Whether the job's ranks, and not those of an earlier start, have left steps behind them."""
    beats = [json.loads(path.read_text()) for path in store.glob(f"solo/*/{signals.HEARTBEAT}")]
    ranks = cluster.processes(job, " -m alignment.run ")
    return any(beat["rate"] is not None and beat["process"] in ranks for beat in beats)


def test_a_rank_that_is_killed_again_and_again_gives_up(
    cluster: Cluster, given: tiny_runs.Given, tmp_path: Path
) -> None:
    log = tmp_path / "job.out"
    line = _long("sft", given, tmp_path, times=20)
    options = (*TWO_NODES, "--export=ALL,ALIGNMENT_FAULTS=1")
    job = submit(cluster, log, "stage.sbatch", *line, options=options)
    for _ in range(2):
        wait_for(lambda: cluster.state(job) == "RUNNING", 600, log.read_text)
        wait_for(partial(_trains, tmp_path, cluster, job), 600, log.read_text)
        a_rank_killed(cluster, job)
        wait_for(lambda: cluster.state(job) != "RUNNING", 600, "a lost rank goes unnoticed")
    assert cluster.wait(job, "FAILED") == "FAILED"
    assert cluster.restarts(job) == 1
    assert "that is fault 2, and ALIGNMENT_FAULTS=1" in log.read_text()
