"""Slurm by its own programs: ``sbatch``, ``squeue``, ``sacct``, ``scancel``. What they refuse is said in words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import UserError

PATIENCE = 60.0
"""Seconds that a controller may take to answer."""
COLUMNS = ("JobArrayID", "State", "RestartCnt", "StartTime", "NodeList", "Reason", "UserName")
SEPARATOR = "\x1f"
ENDED_WELL = "COMPLETED"
ENDED = {
    ENDED_WELL: "ended",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "ran into its time limit",
    "NODE_FAIL": "its machine failed",
    "BOOT_FAIL": "its machine did not start",
    "OUT_OF_MEMORY": "ran out of memory",
    "PREEMPTED": "preempted, and not queued again",
    "DEADLINE": "did not fit before its deadline",
    "REVOKED": "runs on another cluster",
    "SPECIAL_EXIT": "held after its exit code",
}
"""States from which a job does not come back by itself, and what they mean."""
HOPELESS = "DependencyNeverSatisfied"
"""The reason of a job that waits for one which has failed."""


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array, as the queue has it."""

    id: str
    """``12``, or ``12_3``."""
    state: str
    restarts: int = 0
    start: str = ""
    """When it began, or is expected to begin, in the controller's time."""
    nodes: str = ""
    reason: str = ""
    user: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is still to begin, or to begin again."""
        return self.alive and self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")

    @property
    def alive(self) -> bool:
        """Whether it may still come to its end."""
        return self.state not in ENDED and self.reason != HOPELESS


def need() -> None:
    """Raise :class:`UserError` where this machine cannot submit."""
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"launcher=slurm: there is no {missing[0]} on this machine",
            cause="Jobs are submitted with Slurm's own programs.",
            remedy="Log in to the cluster and say it there; launcher=local runs the steps here.",
        )


def there() -> bool:
    """Whether a queue can be asked on this machine."""
    return shutil.which("squeue") is not None


def submission(script: Path, options: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command that submits a batch script; it prints the job's number."""
    return ["sbatch", "--parsable", *options, str(script), *arguments]


def submit(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit by :func:`submission`, with ``environment`` laid over this process's; the job's number."""
    said = _run(command, {**os.environ, **environment})
    # With several clusters: number;cluster.
    return said.strip().splitlines()[-1].partition(";")[0]


def queue(users: Iterable[str]) -> dict[str, Job]:
    """The jobs of these users that Slurm still knows, those that ended lately included, by number."""
    layout = ",".join(f"{column}:{SEPARATOR}" for column in COLUMNS)
    said = _run(["squeue", "--noheader", "--array", "--states=all", f"--user={','.join(users)}", f"--Format={layout}"])
    jobs = [_job(line) for line in said.splitlines() if SEPARATOR in line]
    return {job.id: job for job in jobs}


def _job(line: str) -> Job:
    parts = [part.strip() for part in line.split(SEPARATOR)]
    number, state, restarts, start, nodes, reason, user = parts[: len(COLUMNS)]
    return Job(number, state, int(restarts or 0), start, nodes, "" if reason == "None" else reason, user)


def ended(numbers: Sequence[str]) -> dict[str, Job]:
    """Jobs that the queue has forgotten, by number; empty where the cluster keeps no accounts."""
    if not numbers or shutil.which("sacct") is None:
        return {}
    asked = subprocess.run(
        ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(numbers)}", "--format=JobID,State"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    rows = [line.split("|") for line in asked.stdout.splitlines() if line.count("|") == 1]
    # `CANCELLED by 1000` names who did it.
    return {number: Job(number, state.split()[0]) for number, state in rows if state}


def cancel(numbers: Sequence[str]) -> None:
    """Take jobs out of the queue."""
    if numbers:
        _run(["scancel", *numbers])


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: there is no such program here", remedy="Log in to the cluster.") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} has not answered within {PATIENCE:.0f} s",
            remedy="See whether Slurm is up: `sinfo`.",
        ) from None
    if done.returncode != 0:
        told = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(
            f"{command[0]} refuses: {told[0].removeprefix(f'{command[0]}: ').removeprefix('error: ')}",
            cause=" ".join(told[1:]),
            remedy=_remedy(" ".join(told)),
        )
    return done.stdout


def _remedy(told: str) -> str:
    """What to change, by what Slurm says."""
    known = {
        "partition": "launcher.partition=… names one; `sinfo` lists them.",
        "account": "launcher.account=… names one; `sacctmgr show associations user=$USER` lists yours.",
        "qos": "launcher.qos=… names one; `sacctmgr show qos` lists them.",
        "Requested node configuration": "Ask for less of nodes, gpus, cpus or memory; `sinfo -Nel` shows them.",
        "time limit": "launcher.time=… is more than the partition gives; `sinfo` shows its limit.",
        "generic resource": "launcher.gpus=0 where there are none, or launcher.extra=--gpus-per-node=<kind>:<number>.",
        "contact": "See whether Slurm is up: `sinfo`.",
        "configuration source": "This machine knows of no cluster: log in to one, or set SLURM_CONF.",
    }
    return next((remedy for word, remedy in known.items() if word.lower() in told.lower()), "")
