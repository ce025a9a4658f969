"""How the steps of a pipeline fare, as their folders, the ledger and Slurm's queue tell together."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from alignment import artifacts, console, signals
from alignment.cluster import ledger, slurm
from alignment.cluster.ledger import Entry
from alignment.cluster.slurm import Job
from alignment.store import Store

State = Literal["finished", "running", "queued", "waiting", "stopped", "failed"]
SILENCE = 600.0
"""Seconds after which a heartbeat from another machine, without a job to ask for, no longer counts."""
REASONS = {
    "Dependency": "waits for its inputs",
    "BeginTime": "waits to be queued again",
    "Priority": "others go first",
    "Resources": "waits for machines",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "launch failed requeued held": "could not start and is held: scontrol release",
    "JobHoldMaxRequeue": "queued again too often, and is held",
    "PartitionTimeLimit": "its time limit is more than the partition's",
    "PartitionNodeLimit": "asks for more machines than the partition has",
    "ReqNodeNotAvail": "its machines are down or reserved",
    "QOSMaxJobsPerUserLimit": "as many jobs as one user may run",
}
"""What Slurm's reasons mean; others are shown as they are."""


@dataclass(frozen=True)
class Fare:
    """How one step fares."""

    step: str
    state: State
    told: str
    """Progress, or why it is so."""
    folder: Path
    job: str = ""
    restarts: int = 0
    log: str = ""


def pipelines(store: Path) -> list[str]:
    """Every pipeline that the store knows, the one that was touched last at the end."""
    found = {path.parent for path in store.glob(f"*/{ledger.LEDGER}")} | {
        path.parent for path in Store(store).folders()
    }
    return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def fares(store: Path, pipeline: str, why: Callable[[Path], str]) -> list[Fare]:
    """Every step of a pipeline, as asked for; then those of which only the folder knows.

    ``why(folder)`` is what a step that stopped has left word of. Raises :class:`UserError` where Slurm does not answer.
    """
    entries = {entry.folder: entry for entry in ledger.read(store / pipeline)}
    for folder in Store(store).folders():
        if folder.parent.name == pipeline and str(folder.resolve()) not in entries:
            entries[str(folder.resolve())] = Entry(folder.name[:-9], "", "", str(folder.resolve()))
    jobs = _jobs(entries.values())
    return [_fare(entry, Path(entry.folder), jobs, why) for entry in entries.values()]


def _jobs(entries: Iterable[Entry]) -> Mapping[str, Job]:
    """What Slurm knows of the jobs of unfinished steps."""
    asked = [one for one in entries if one.job is not None and not (Path(one.folder) / artifacts.RECORD).is_file()]
    if not asked or not slurm.there():
        return {}
    known = slurm.queue({one.user for one in asked})
    return {**slurm.ended([str(one.job) for one in asked if one.job not in known]), **known}


def _fare(entry: Entry, folder: Path, jobs: Mapping[str, Job], why: Callable[[Path], str]) -> Fare:
    job = jobs.get(entry.job or "")
    state, told = _state(entry, folder, job, why)
    return Fare(entry.step, state, told, folder, entry.job or "", job.restarts if job else 0, entry.log or "")


def _state(entry: Entry, folder: Path, job: Job | None, why: Callable[[Path], str]) -> tuple[State, str]:
    if (folder / artifacts.RECORD).is_file():
        made = artifacts.load(folder)
        return "finished", "  ".join(part for part in (console.duration(made.seconds), made.headline_text) if part)
    beat = _heartbeat(folder)
    if job is not None and job.alive:
        if job.waits:
            return "queued", ", ".join(part for part in (REASONS.get(job.reason, job.reason), _place(beat)) if part)
        return "running", ", ".join(part for part in (progress(beat) if beat else "begins", f"on {job.nodes}") if part)
    if _is_at_work(folder, beat, job):
        return "running", progress(beat) if beat else "at work"
    reason = ", ".join(part for part in (why(folder), _place(beat)) if part)
    if job is not None and job.state != slurm.ENDED_WELL:
        ended = (
            "what it waits for has failed" if job.reason == slurm.HOPELESS else slurm.ENDED.get(job.state, job.state)
        )
        return "failed", ", ".join(part for part in (ended, reason) if part)
    if folder.is_dir():
        return "stopped", reason or "its command goes on with it"
    if entry.job is not None:
        return "stopped", "nothing of it is here; its command makes it"
    return "waiting", "its turn comes later"


def _heartbeat(folder: Path) -> Mapping[str, Any] | None:
    try:
        beat: Mapping[str, Any] = json.loads((folder / signals.HEARTBEAT).read_text())
    except FileNotFoundError:
        return None
    return beat


def progress(beat: Mapping[str, Any]) -> str:
    """``120 of 400 steps, 2.3 a second, 2 min 2 s left``."""
    rate, steps, left = beat["rate"], beat["steps"], ""
    if rate and steps:
        # What has been done since the last beat is not known, but that time has passed is.
        seconds = (steps - beat["step"]) / rate - _age(beat)
        left = f"{console.duration(seconds)} left" if seconds > 0 else ""
    pace = "" if not rate else f"{rate:,.1f} a second" if rate >= 1 else f"{console.duration(1 / rate)} each"
    return ", ".join(part for part in (_count(beat), pace, left) if part)


def _count(beat: Mapping[str, Any]) -> str:
    return f"{beat['step']:,}" + (f" of {beat['steps']:,}" if beat["steps"] else "") + f" {beat['unit']}"


def _place(beat: Mapping[str, Any] | None) -> str:
    return f"at {_count(beat)}" if beat else ""


def _age(beat: Mapping[str, Any]) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(beat["at"])).total_seconds()


def _is_at_work(folder: Path, beat: Mapping[str, Any] | None, job: Job | None) -> bool:
    """Whether a process makes it without a job that the queue knows: here, or on a machine that shares the store."""
    if _is_held(folder):
        return True
    elsewhere = beat is not None and beat["host"] != os.uname().nodename
    return job is None and elsewhere and beat is not None and _age(beat) < SILENCE


def _is_held(folder: Path) -> bool:
    """Whether a process of this machine, or of one whose file locks are seen here, makes what is in ``folder``."""
    try:
        with open(folder.with_name(f".{folder.name}.lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def watch(look: Callable[[], list[Fare]], every: float) -> Iterator[list[Fare]]:
    """What ``look`` sees, again and again, until nothing is under way or to come."""
    while True:
        seen = look()
        yield seen
        if not any(one.state in ("running", "queued", "waiting") for one in seen):
            return
        time.sleep(every)
