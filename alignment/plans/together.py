"""A run of several processes: which stages all of them do, and what has to be the same on all of them.

Rank 0 goes through the door and makes artifacts. The stages that train run on every process; all others run on rank 0,
as if it were alone, while the rest wait (``training/team.py``).
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alignment import artifacts, console, files, ranks
from alignment.artifacts import Artifact, Outcome
from alignment.energy.meter import Meter, may_use_gpu
from alignment.errors import UserError
from alignment.plans.planned import Planned, load_stage, with_parents
from alignment.settings import Settings
from alignment.training import fit

SOLO = "solo"
"""The folder, where a pipeline's name would stand, of stages that are run on their own."""
LOOK = 300.0
"""Seconds that a process has to say what it sees."""

_same: set[Path] = set()
"""Stores that were found to be the same for all processes."""


@dataclass(frozen=True)
class Work:
    """A stage to be run by every process."""

    stage: str
    settings: Settings
    inputs: Mapping[str, Artifact]
    folder: Path


@dataclass(frozen=True)
class Look:
    """A file that every process should see, in a folder where it should be able to write."""

    path: Path


@dataclass(frozen=True)
class Seen:
    """What one process says of itself: its machine and its versions, and why it cannot share the folder."""

    host: str
    versions: Mapping[str, str]
    machine: fit.Machine
    blind: str


def enter(door: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Go through the door as rank 0, or follow; the exit code, the same for all processes. One of them complains."""
    from alignment.reporting import pages

    try:
        ranks.settle()
        if ranks.world() == 1:
            return door(arguments)
        # A connection that ends is told in our words.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from alignment.training.team import open_team

        team = open_team(pages.complain)
    except UserError as error:
        if not ranks.is_follower():
            pages.complain(error)
        return error.code
    code = 1
    try:
        code = door(arguments) if ranks.is_main() else team.follow(_take_part)
    finally:
        if ranks.is_main():
            team.end(code)
    return _leave(code)


def run(planned: Planned, inputs: dict[str, Artifact]) -> Outcome:
    """Run a step's stage: on every process where it trains, else on this one alone."""
    work = Work(planned.step.stage, planned.settings, inputs, planned.folder)
    if ranks.world() == 1:
        return _run(work)
    if work.stage not in fit.TRAINING:
        with ranks.alone():
            return _run(work)
    from alignment.training.team import team

    with team().together(work):
        return _run(work)


def check(planned: Planned, store: Path) -> None:
    """Refuse, before anything is made, what an engine cannot do here, and processes that do not see the same.

    Raises :class:`UserError`.
    """
    making = [one for one in with_parents([planned]) if one.state != "reuse"]
    trains = any(one.step.stage in fit.TRAINING for one in making)
    machines = _look(store) if ranks.world() > 1 and trains else None
    for one in making:
        solo = one is planned and one.pipeline == SOLO
        fit.check(one.step.stage, one.settings, ranks.world(), machines, solo=solo)


def _run(work: Work) -> Outcome:
    with Meter(work.folder, artifacts.machine()["cpu"], gpu=may_use_gpu(work.settings)):
        outcome: Outcome = load_stage(work.stage).run(work.settings, dict(work.inputs), work.folder)
    return outcome


def _take_part(message: Work | Look) -> Seen | None:
    """What a process other than rank 0 does with a message."""
    if isinstance(message, Look):
        return _seen(message.path)
    _run(message)
    return None


# ── the same for all ─────────────────────────────────────────────────────────────────────────────


def _look(store: Path) -> list[fit.Machine]:
    """The machines of all processes. Raises :class:`UserError` where versions differ or the store is not shared."""
    from alignment.training.team import team

    files.make_folder(store)
    path = store.resolve() / f"shared-{uuid.uuid4().hex}{files.TEMPORARY}"
    path.touch()
    try:
        own = _seen(path)
        others = team().ask(Look(path), LOOK)
    finally:
        path.unlink()
    for rank, other in enumerate(others, start=1):
        _need_same(own, other, rank)
    return [own.machine, *(other.machine for other in others)]


def _seen(path: Path) -> Seen:
    """What this process sees."""
    return Seen(os.uname().nodename, artifacts.versions() | {"code": _code()}, fit.this_machine(), _blind(path))


def _blind(path: Path) -> str:
    """Why this process does not share the folder of ``path``; empty where it does."""
    if not path.is_file():
        return "it does not see what process 0 has written there"
    own = path.with_name(f"{path.stem}-{ranks.rank()}{files.TEMPORARY}")
    try:
        own.touch()
    except OSError as error:
        return f"it cannot write there: {error.strerror}"
    own.unlink()
    return ""


def _code() -> str:
    """The digest of this package's own files."""
    package = Path(__file__).parents[1]
    return files.digest_json(files.digest_folder(package, keep=lambda name: name.endswith(".py")))[:12]


def _need_same(own: Seen, other: Seen, rank: int) -> None:
    if other.blind:
        raise UserError(
            f"process {rank} on {other.host} does not share the store: {other.blind}",
            cause="All processes of a run read and write checkpoints in one folder.",
            remedy="Say store=<folder> for one that all nodes have mounted and may write.",
        )
    for name in sorted(own.versions.keys() | other.versions.keys()):
        ours, theirs = own.versions.get(name, "none"), other.versions.get(name, "none")
        if ours != theirs:
            called = "another version of this program's own files" if name == "code" else f"{name} {theirs}"
            raise UserError(
                f"process {rank} on {other.host} has {called}, and process 0 on {own.host} has {ours}",
                cause="Processes that compute differently would be averaged.",
                remedy="Give all nodes the same environment: one image, or one venv on a shared folder.",
            )


def _leave(code: int) -> int:
    """The end of a process among several, which DeepSpeed's threads and PyTorch's groups now and then make an abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(Exception):
        console.console().show_cursor()
    os._exit(code)
