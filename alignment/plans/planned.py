"""A step whose result has a name already, and what a dry run says of it: reused or made, how long, how large."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from alignment import artifacts, console
from alignment.artifacts import Artifact
from alignment.errors import UserError, nearest
from alignment.plans.step import Step
from alignment.settings import Settings


@dataclass(frozen=True)
class Planned:
    """A step whose result has a name already, whether or not it exists."""

    step: Step
    pipeline: str
    settings: Settings
    fingerprint: str
    folder: Path
    inputs: Mapping[str, tuple[str, Planned | Artifact]]
    """By dotted key: the reference as it was spelled, and what it names."""

    @property
    def state(self) -> str:
        """``reuse``, ``resume`` or ``run``."""
        if (self.folder / artifacts.RECORD).is_file():
            return "reuse"
        return "resume" if self.folder.is_dir() else "run"


def load_stage(name: str) -> ModuleType:
    """The module of a stage or command."""
    from alignment.commands import COMMANDS
    from alignment.stages import STAGES

    if name in STAGES:
        return importlib.import_module(f"alignment.stages.{name}")
    if name in COMMANDS:
        return importlib.import_module(f"alignment.commands.{name}")
    raise UserError(f"stage={name}: there is no such stage", remedy=nearest(name, [*STAGES, *COMMANDS, "pipeline"]))


def describe_plan(planned: list[Planned]) -> None:
    """What ``dry_run=true`` prints: what would be reused, resumed or run, how long, how much disk."""
    everything = with_parents(planned)
    rows = [(p.step.name, p.step.stage, p.state, _budget(p), _size(p), str(p.folder)) for p in everything]
    columns = ("step", "stage", "would", "seconds", "disk", "folder")
    console.table("dry run: nothing is made", columns, rows, right=("seconds", "disk"))
    seconds = sum(p.step.budget for p in everything if p.state != "reuse")
    if seconds:
        console.say(f"about {console.duration(seconds)} on two CPU cores, by the budgets of the plan")


def with_parents(planned: list[Planned]) -> list[Planned]:
    """The steps and all that they read, each once, parents first."""
    ordered: dict[str, Planned] = {}

    def visit(one: Planned) -> None:
        for _, named in one.inputs.values():
            if isinstance(named, Planned):
                visit(named)
        ordered.setdefault(one.fingerprint, one)

    for one in planned:
        visit(one)
    return list(ordered.values())


def disk(planned: Planned) -> int:
    """The bytes that a step may write, as its stage reckons; 64 MiB for one that does not reckon.

    A stage reckons by its settings (``disk_needed``), or also by what they refer to (``disk_needed_from``), of which
    it gets the folders, by key, that are there already.
    """
    module = load_stage(planned.step.stage)
    if hasattr(module, "disk_needed_from"):
        return int(module.disk_needed_from(planned.settings, _folders(planned)))
    return module.disk_needed(planned.settings) if hasattr(module, "disk_needed") else 64 * 2**20


def _budget(planned: Planned) -> str:
    if planned.state == "reuse":
        return "–"
    return f"≤ {planned.step.budget:,.0f}" if planned.step.budget else "?"


def _size(planned: Planned) -> str:
    if planned.state == "reuse":
        return "–"
    return f"≤ {disk(planned) / 2**20:,.0f} MiB"


def _folders(planned: Planned) -> dict[str, Path]:
    found = {}
    for key, (_, named) in planned.inputs.items():
        if isinstance(named, Artifact) and named.kind not in artifacts.NO_FOLDER:
            found[key] = named.path
        elif isinstance(named, Planned) and named.state == "reuse":
            found[key] = named.folder
    return found
