"""Who runs the steps: this process, or Slurm with so much of a cluster for each. ``conf/launcher/*.yaml``.

Nothing here enters a fingerprint: where a step runs does not change what it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignment.errors import UserError, nearest
from alignment.settings import Settings, execution, place


class LauncherSettings(Settings):
    """A training step takes ``nodes`` × ``gpus`` ranks, any other step one rank; ``of`` says otherwise by name."""

    kind: Literal["local", "slurm"] = execution("run here, or submit to Slurm")
    nodes: int = execution("machines of a training step", ge=1)
    gpus: int = execution("GPUs of each machine, a rank on every one; 0: one rank on its processors", ge=0)
    cpus: int = execution("processor cores of a rank", ge=1)
    memory: str | None = place("memory of a machine as Slurm writes it, 64G; null takes the partition's")
    time: str | None = place("a job's limit as Slurm writes it, 1-00:00:00; null takes the partition's")
    partition: str | None = place("the partition; null takes the cluster's default")
    account: str | None = place("the account that pays; null takes the user's")
    qos: str | None = place("the quality of service; null takes the account's")
    extra: str | None = place("more options of sbatch, as they are typed: --constraint=a100 --exclude=n7,n8")
    warning: int = execution("seconds before its limit at which a job saves and queues again", ge=1, le=65535)
    requeues: int = execution("times that a job queues again, preempted or at its limit, at most", ge=0)
    faults: int = execution("of these, times after a rank that was killed or a device that failed, at most", ge=0)
    environment: str | None = place("what holds python: a venv's folder, image.sif or image.sqsh; null: the one here")
    mounts: str | None = place("folders that an image shall see beside the working one: /scratch,/data")
    interface: str | None = place("the network interface between ranks, ib0; null takes the host name's address")
    of: dict[str, dict[str, Any]] = execution("other values for single stages or steps: {merge: {memory: 256G}}")


PER_STEP = ("nodes", "gpus", "cpus", "memory", "time", "partition", "account", "qos", "extra")
"""What may be said of a single stage or step."""


@dataclass(frozen=True)
class Resources:
    """What one job asks for: ``nodes`` machines with ``ranks`` processes each, a GPU for each where there are any."""

    nodes: int
    ranks: int
    gpus: int
    settings: LauncherSettings

    @property
    def world(self) -> int:
        """How many processes it has."""
        return self.nodes * self.ranks

    @property
    def shape(self) -> str:
        """``2 × 8 GPUs``, or ``1 × 4 cores``."""
        return f"{self.nodes} × " + (f"{self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else self._cores())

    def _cores(self) -> str:
        return f"{self.settings.cpus} core{'s' * (self.settings.cpus > 1)}"

    def options(self) -> list[str]:
        """The options of ``sbatch`` that ask for it. Those typed by hand come last and win."""
        said = self.settings
        options = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.ranks}", f"--cpus-per-task={said.cpus}"]
        options += [f"--gpus-per-node={self.gpus}"] if self.gpus else []
        named = {"mem": said.memory, "time": said.time, "partition": said.partition, "account": said.account}
        options += [f"--{name}={value}" for name, value in (named | {"qos": said.qos}).items() if value is not None]
        return [*options, f"--signal=B:USR1@{said.warning}", *_typed(said.extra)]


def resources(settings: LauncherSettings, step: str, stage: str, *, trains: bool) -> Resources:
    """What a step's job asks for. ``trains``: whether the stage runs on many ranks; any other has one."""
    laid = settings.model_dump() | settings.of.get(stage, {}) | settings.of.get(step, {})
    said = LauncherSettings.parse(laid, f"launcher.of.{step if step in settings.of else stage}")
    if trains:
        return Resources(said.nodes, max(said.gpus, 1), said.gpus, said)
    return Resources(1, 1, min(said.gpus, 1), said)


def check(settings: LauncherSettings, known: Iterable[str]) -> None:
    """Refuse what contradicts itself. ``known``: the stages and steps that ``of`` may name."""
    if settings.kind == "local":
        _need_launcher(settings)
    names = list(known)
    for name, said in settings.of.items():
        if name not in names:
            raise UserError(f"launcher.of.{name}: there is no such stage or step", remedy=nearest(name, names))
        _need_known(name, said)
    _typed(settings.extra)


def _need_launcher(settings: LauncherSettings) -> None:
    asked = {key: getattr(settings, key) for key in PER_STEP if key != "cpus"}
    plain = {"nodes": 1, "gpus": 0}
    for key, value in asked.items():
        if value != plain.get(key):
            raise UserError(
                f"launcher.{key}={value}: nothing here could give it",
                cause="launcher=local runs in this process, on this machine.",
                remedy="Say launcher=slurm beside it; or start processes with torchrun, as conf/engine shows.",
            )


def _need_known(name: str, said: Mapping[str, Any]) -> None:
    for key in said:
        if key not in PER_STEP:
            raise UserError(f"launcher.of.{name}.{key}: is the same for every step", remedy=nearest(key, PER_STEP))


def _typed(extra: str | None) -> list[str]:
    try:
        options = shlex.split(extra or "")
    except ValueError as error:
        raise UserError(f"launcher.extra={extra}: {error}", remedy="Close what is quoted.") from None
    for option in options:
        if not option.startswith("-"):
            raise UserError(
                f"launcher.extra={extra}: {option!r} is no option",
                cause="sbatch would take it for the script.",
                remedy="Join options and values by =, as in --constraint=a100.",
            )
    return options
