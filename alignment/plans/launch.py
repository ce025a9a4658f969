"""Steps handed to Slurm: what is still to be made becomes jobs that wait for each other (``launcher=slurm``).

A job makes one step with the command line that was typed, and ``only=[<step>] launcher=local`` behind it. Parts of the
miniature that a step reads are jobs of ``pipeline=mini``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignment import console
from alignment.cluster import launcher, submission
from alignment.cluster.launcher import LauncherSettings, Resources
from alignment.cluster.submission import Task
from alignment.command_line import Request
from alignment.errors import UserError
from alignment.plans.planned import Planned, with_parents
from alignment.plans.together import SOLO
from alignment.stages import STAGES
from alignment.training import fit
from alignment.training.engine import EngineSettings

PACKAGE = Path(__file__).parents[1]
MINIATURE = ("stage=pipeline", "pipeline=mini")
NOT_PASSED_ON = ("launcher", "only", "dry_run", "force")
"""Keys of the command line that are about the submission itself, or said anew for each job."""
FOR_EVERY_STEP = ("store", "engine", "tracker", "debug", "grid", "watts")
"""Keys that also hold for the parts of the miniature that a step reads."""


def check(settings: LauncherSettings, planned: Sequence[Planned]) -> None:
    """Refuse settings that contradict themselves, before anything is made."""
    launcher.check(settings, sorted({*STAGES, *(one.step.name for one in with_parents([*planned]))}))


def refuse_command(settings: LauncherSettings, name: str) -> None:
    """Commands are for the terminal in which they are typed."""
    if settings.kind != "local":
        raise UserError(
            f"launcher={settings.kind}: stage={name} makes nothing, and runs where it is typed",
            remedy="Leave the launcher out. What has to run on a node is started there: jobs/stage.sbatch.",
        )


def wanted(settings: LauncherSettings, planned: Sequence[Planned], *, force: bool) -> bool:
    """Whether there is anything to submit; where all is finished, the same command shows it."""
    return settings.kind == "slurm" and (force or any(one.state != "reuse" for one in planned))


def submit(
    planned: Sequence[Planned],
    settings: LauncherSettings,
    request: Request,
    store: Path,
    *,
    force: bool,
    dry_run: bool,
) -> None:
    """Submit what is not finished of ``planned`` and of what it reads; with ``dry_run`` only say so.

    Raises :class:`UserError` where a step does not fit its job, or Slurm refuses.
    """
    tasks = list(_tasks(planned, settings, request, force=force))
    jobs = next(path for path in (PACKAGE / "_jobs", PACKAGE.parent / "jobs") if path.is_dir())
    if dry_run:
        submission.show(tasks, store, jobs)
        return
    numbers = submission.submit(tasks, store, jobs, force=force)
    rows = []
    for task in tasks:
        after = ", ".join(dict.fromkeys(numbers[need] for need in task.needs))
        rows.append((task.step, numbers[task.fingerprint], task.resources.shape, after))
    console.table("submitted", ("step", "job", "on", "after"), rows)
    console.say("\nstage=status shows how they fare; the same command again submits what has failed", style="")


def _tasks(planned: Sequence[Planned], settings: LauncherSettings, request: Request, *, force: bool) -> Iterator[Task]:
    """A task for every step that is still to be made, parents first."""
    forced = {one.fingerprint for one in planned if force}
    making = [one for one in with_parents([*planned]) if one.state != "reuse" or one.fingerprint in forced]
    made = {one.fingerprint for one in making}
    own = _own(planned)
    for one in making:
        asked = launcher.resources(settings, one.step.name, one.step.stage, trains=one.step.stage in fit.TRAINING)
        _check_engine(one, asked)
        mine = one.fingerprint in own
        yield Task(
            step=one.step.name,
            stage=one.step.stage,
            fingerprint=one.fingerprint,
            folder=one.folder,
            needs=tuple(dict.fromkeys(need.fingerprint for need in _parents(one) if need.fingerprint in made)),
            arguments=_arguments(request, mine=mine, forced=one.fingerprint in forced),
            resources=asked,
            in_plan=not mine or one.pipeline != SOLO,
        )


def _parents(one: Planned) -> list[Planned]:
    return [named for _, named in one.inputs.values() if isinstance(named, Planned)]


def _own(planned: Sequence[Planned]) -> set[str]:
    """The steps that were asked for, and those that they name as ``step:`` rather than ``mini:``."""
    found: set[str] = set()
    waiting = list(planned)
    while waiting:
        one = waiting.pop()
        found.add(one.fingerprint)
        waiting += [
            named
            for spelling, named in one.inputs.values()
            if isinstance(named, Planned) and spelling.startswith("step:") and named.fingerprint not in found
        ]
    return found


def _arguments(request: Request, *, mine: bool, forced: bool) -> tuple[str, ...]:
    """The command line of a job, each value as it was typed, but for ``force``."""
    if mine:
        head, said = (
            [f"stage={request.stage}"],
            [pair for pair in request.overrides if _root(pair) not in NOT_PASSED_ON],
        )
    else:
        head, said = [*MINIATURE], [pair for pair in request.overrides if _root(pair) in FOR_EVERY_STEP]
    last = ("force=true", "launcher=local") if forced else ("launcher=local",)
    return (*head, *(f"{key}={value}" for key, value in said), *last)


def _root(pair: tuple[str, str]) -> str:
    return pair[0].partition(".")[0]


def _check_engine(one: Planned, asked: Resources) -> None:
    """An engine for one process gets one, and an engine for several gets them. The rest is checked where it runs."""
    engine = getattr(one.settings, "engine", None)
    if not isinstance(engine, EngineSettings) or one.step.stage not in fit.TRAINING:
        return
    if engine.processes == "one" and asked.world > 1:
        raise UserError(
            f"{one.step.name}: its engine is for one process, and {asked.shape} would start {asked.world}",
            remedy="Say engine=ddp, or engine=zero1, zero2, zero3 where a model is too large for one GPU; or less of "
            "launcher.nodes and launcher.gpus.",
        )
    if engine.processes == "several" and asked.world == 1:
        raise UserError(
            f"{one.step.name}: its engine is for several processes, and {asked.shape} would start one",
            remedy="Say engine=single, or more of launcher.nodes or launcher.gpus.",
        )
    told: Any = one.settings
    if hasattr(told, "optimisation"):
        fit.share_of(told.optimisation.batch, asked.world, engine)
    else:
        fit.check_groups(told.updating, told.drawing.samples, asked.world)
