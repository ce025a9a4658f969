"""Steps become jobs: each waits for those that make its inputs, and sisters become one array.

Submitting again is harmless. What is finished is left out, what is queued stays as it is, and what has failed, with all
that waited for it, is submitted anew.
"""

from __future__ import annotations

import getpass
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alignment import artifacts, console, files
from alignment.cluster import ledger, slurm
from alignment.cluster.launcher import Resources
from alignment.cluster.ledger import Entry

LOGS = "logs"
"""The folder of a pipeline's output, beside its artifacts."""
ARRAY = "%a"
"""What a batch script replaces by the number of its task in the array, in ``only=``."""
NUMBER = "\0"
"""Stands for a job's number, since no path has it."""


@dataclass(frozen=True)
class Task:
    """A step that a job is to make."""

    step: str
    stage: str
    fingerprint: str
    folder: Path
    needs: tuple[str, ...]
    """Fingerprints of what it reads and is itself still to be made."""
    arguments: tuple[str, ...]
    """The command line of the job, ``only=`` left out."""
    resources: Resources
    in_plan: bool = True
    """Whether the command line names a plan, of which ``only=`` chooses this step."""


@dataclass(frozen=True)
class Batch:
    """What one ``sbatch`` submits: one step, or sisters by their numbers."""

    tasks: tuple[Task, ...]
    numbers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``sft``, or ``warp_1_run_%a``."""
        return self.tasks[0].step if not self.numbers else _numbered(self.tasks[0].step)[0] + ARRAY

    @property
    def arguments(self) -> list[str]:
        """The job's command line."""
        first = self.tasks[0]
        return [*first.arguments, *([f"only=[{self.name}]"] if first.in_plan else [])]


@dataclass
class Plan:
    """What there is to do: what is queued already, by fingerprint, what is to be submitted, and what is void."""

    queued: dict[str, str] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    void: list[str] = field(default_factory=list)


def plan(tasks: Sequence[Task], known: Mapping[str, Entry], queue: Mapping[str, slurm.Job]) -> Plan:
    """Which tasks stay queued and which are submitted. ``tasks`` come after those they need.

    A job that waits for others than those which make its inputs now is void: these have failed since.
    """
    found, fresh = Plan(), []
    for task in tasks:
        entry = known.get(task.fingerprint)
        job = queue.get(entry.job or "") if entry is not None else None
        if entry is not None and job is not None and job.alive:
            wanted = {found.queued.get(need) for need in task.needs}
            # What has begun no longer waits for anything.
            if not job.waits or wanted <= {*entry.after}:
                found.queued[task.fingerprint] = job.id
                continue
            found.void.append(job.id)
        fresh.append(task)
    found.batches = list(_batches(fresh))
    return found


def _batches(tasks: Sequence[Task]) -> Iterator[Batch]:
    """Tasks in order; those alike but for the number at the end of their names together, where the first of them is."""
    sisters: dict[tuple[object, ...], list[Task]] = {}
    for task in tasks:
        sisters.setdefault(_kinship(task), []).append(task)
    for group in sisters.values():
        if len(group) > 1:
            yield Batch(tuple(group), tuple(_numbered(task.step)[1] for task in group))
        else:
            yield Batch((group[0],))


def _kinship(task: Task) -> tuple[object, ...]:
    prefix, number = _numbered(task.step)
    if number < 0 or not task.in_plan:
        return (task.fingerprint,)
    return (prefix, task.stage, task.folder.parent, task.needs, task.arguments, tuple(task.resources.options()))


def _numbered(name: str) -> tuple[str, int]:
    """``warp_1_run_2`` → ``warp_1_run_`` and 2; a name without a number of its own has −1."""
    match = re.fullmatch(r"(.*_)(0|[1-9]\d*)", name)
    return (match[1], int(match[2])) if match else (name, -1)


def command(batch: Batch, after: Sequence[str], jobs: Path) -> list[str]:
    """The ``sbatch`` of a batch that waits for the jobs ``after``; the scripts lie in ``jobs``."""
    first = batch.tasks[0]
    options = [
        f"--job-name={first.folder.parent.name}.{batch.name.replace(ARRAY, 'N')}",
        f"--output={_log(batch, NUMBER)}".replace("%", "%%").replace(NUMBER, "%A_%a" if batch.numbers else "%j"),
        f"--chdir={Path.cwd()}",
        "--export=ALL",
        *first.resources.options(),
    ]
    if batch.numbers:
        options.append(f"--array={','.join(map(str, batch.numbers))}")
    if after:
        options += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    script = "warp.sbatch" if batch.numbers else "stage.sbatch"
    return slurm.submission(jobs / script, options, batch.arguments)


def environment(batch: Batch, jobs: Path, *, force: bool = False) -> dict[str, str]:
    """What the batch scripts are told beside their command line (``jobs/lib.sh`` says what each means)."""
    said = batch.tasks[0].resources.settings
    told = {
        "ALIGNMENT_JOBS": str(jobs),
        "ALIGNMENT_ENVIRONMENT": str(files.typed(said.environment or sys.prefix)),
        "ALIGNMENT_REQUEUES": str(said.requeues),
        "ALIGNMENT_FAULTS": str(said.faults),
        "ALIGNMENT_INTERFACE": said.interface or "",
        "ALIGNMENT_MOUNTS": ",".join(part for part in (said.mounts, _store(batch)) if part),
    }
    if not force:
        for task, number in zip(batch.tasks, batch.numbers or (None,), strict=True):
            name = "ALIGNMENT_FINISHED" + ("" if number is None else f"_{number}")
            told[name] = str(task.folder.resolve() / artifacts.RECORD)
    return told


def submit(tasks: Sequence[Task], store: Path, jobs: Path, *, force: bool) -> dict[str, str]:
    """Submit what is neither finished nor queued; the job of every task by its fingerprint."""
    slurm.need()
    with ledger.held(store):
        known = ledger.read_all(store)
        found = plan(tasks, known, slurm.queue(_users(known)))
        slurm.cancel(found.void)
        numbers = dict(found.queued)
        for batch in found.batches:
            after = waits_for(batch, numbers)
            for folder in {task.folder.parent for task in batch.tasks}:
                files.make_folder(folder / LOGS)
            number = slurm.submit(command(batch, after, jobs), environment(batch, jobs, force=force))
            entries = [_entry(batch, place, number, after) for place in range(len(batch.tasks))]
            numbers |= {entry.fingerprint: str(entry.job) for entry in entries}
            # Each at once: where the next one is refused, this one stays known.
            ledger.write(entries)
    return numbers


def waits_for(batch: Batch, numbers: Mapping[str, str]) -> list[str]:
    """The jobs that make what a batch reads."""
    return list(dict.fromkeys(numbers[need] for need in batch.tasks[0].needs))


def show(tasks: Sequence[Task], store: Path, jobs: Path) -> None:
    """What :func:`submit` would do, with the last of its commands."""
    known = ledger.read_all(store)
    found = plan(tasks, known, slurm.queue(_users(known)) if slurm.there() else {})
    names = {task.fingerprint: task.step for task in tasks}
    rows = [
        (
            task.step,
            f"queued as {found.queued[task.fingerprint]}" if task.fingerprint in found.queued else "submit",
            task.resources.shape,
            task.resources.settings.time or "",
            ", ".join(names[need] for need in task.needs),
            str(task.folder.relative_to(store)),
        )
        for task in tasks
    ]
    console.table(
        f"dry run: nothing is submitted; in {store}/", ("step", "would", "on", "time", "after", "folder"), rows
    )
    numbers = {fingerprint: f"<{name}>" for fingerprint, name in names.items()} | found.queued
    for batch in found.batches[-1:]:
        console.say("\nthe last of them: " + shlex.join(command(batch, waits_for(batch, numbers), jobs)), style="dim")


def _users(known: Mapping[str, Entry]) -> list[str]:
    """Whose jobs may make a step of this store."""
    return sorted({getpass.getuser(), *(entry.user for entry in known.values() if entry.user)})


def _entry(batch: Batch, place: int, number: str, after: Sequence[str]) -> Entry:
    task = batch.tasks[place]
    job = f"{number}_{batch.numbers[place]}" if batch.numbers else number
    return Entry(
        step=task.step,
        stage=task.stage,
        fingerprint=task.fingerprint,
        folder=str(task.folder.resolve()),
        job=job,
        after=tuple(after),
        log=str(_log(batch, job)),
        user=getpass.getuser(),
        asked=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _log(batch: Batch, number: str) -> Path:
    folder = batch.tasks[0].folder.parent.resolve() / LOGS
    return folder / f"{batch.name.removesuffix('_' + ARRAY) if batch.numbers else batch.name}-{number}.out"


def _store(batch: Batch) -> str:
    return str(batch.tasks[0].folder.parent.parent.resolve())
