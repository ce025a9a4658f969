"""Whether an engine fits: the stage, the processes, their GPUs, the batch. Asked before anything is made, on rank 0.

Importable without torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from alignment import ranks
from alignment.errors import UserError
from alignment.settings import Settings
from alignment.training.engine import EngineSettings, share_of

TRAINING = frozenset({"pretrain", "sft", "distill", "reward", "dpo", "rl"})
"""Stages that all processes of a run do together; the others run on rank 0."""


@dataclass(frozen=True)
class Machine:
    """What one process has under it."""

    host: str
    gpus: int
    """That this process sees."""


def this_machine() -> Machine:
    """The one that this process runs on."""
    import torch

    return Machine(os.uname().nodename, torch.cuda.device_count())


def check(stage: str, settings: Settings, world: int, machines: Sequence[Machine] | None, *, solo: bool) -> None:
    """Raise :class:`UserError` where a stage cannot run on its engine in ``world`` processes.

    ``machines`` are those of all processes by rank, or None where there is one process, which looks for itself.
    ``solo``: the stage is run on its own, and not as a step of a plan whose engine is for other steps.
    """
    engine = getattr(settings, "engine", None)
    if not isinstance(engine, EngineSettings):
        return
    if stage not in TRAINING:
        if solo and (engine.zero or engine.processes == "several"):
            raise UserError(
                f"{_named(engine)}: stage={stage} trains nothing and runs on one process",
                remedy="Say engine=single, or engine=gpu.",
            )
        return
    _check_processes(engine, world)
    _check_zero(engine, settings)
    if engine.device == "cuda":
        _check_gpus(machines or [this_machine()])
    _check_batch(settings, world)


def _check_processes(engine: EngineSettings, world: int) -> None:
    tasks = ranks.batch_shell() or 1
    if world == 1 and tasks > 1:
        raise UserError(
            f"the job has {tasks} tasks, and this is its batch shell, where one process runs",
            remedy="Put `srun` in front of the command.",
        )
    if engine.processes == "one" and world > 1:
        raise UserError(
            f"{_named(engine)}: is for one process, and there are {world}",
            remedy="Say engine=ddp, or engine=zero1, zero2, zero3 where a model is too large for one GPU.",
        )
    if engine.processes == "several" and world == 1:
        raise UserError(
            f"{_named(engine)}: is for several processes, and there is one",
            remedy="Start it as `torchrun --nproc_per_node=<GPUs> -m alignment.run …`, or say engine=single.",
        )


def _check_zero(engine: EngineSettings, settings: Settings) -> None:
    if not engine.zero:
        if engine.offload:
            raise UserError(
                "engine.offload=true: nothing but DeepSpeed offloads, and engine.zero=0 is without it",
                remedy="Say engine=zero3_offload.",
            )
        return
    if find_spec("deepspeed") is None:
        raise UserError(
            f"{_named(engine)}: DeepSpeed is not installed", remedy="pip install 'alignment[deepspeed]', or engine=ddp."
        )
    if "RANK" not in os.environ:
        raise UserError(
            f"{_named(engine)} outside a launcher",
            cause="DeepSpeed needs to know its rank and the others.",
            remedy="Start it as `torchrun --nproc_per_node=<GPUs> -m alignment.run …`, or say engine=single.",
        )
    adapter: Any = getattr(settings, "adapter", None)
    if engine.zero == 3 and adapter is not None and adapter.kind == "qlora":
        raise UserError(
            "adapter.kind=qlora: weights in four bits are not divided among processes, as engine.zero=3 would",
            remedy="Say engine=zero2, or adapter.kind=lora.",
        )


def _check_gpus(machines: Sequence[Machine]) -> None:
    beside: dict[str, int] = {}
    for rank, machine in enumerate(machines):
        place = beside[machine.host] = beside.get(machine.host, 0) + 1
        if machine.gpus == 0:
            where = "this machine has" if len(machines) == 1 else f"process {rank} on {machine.host} sees"
            raise UserError(
                f"engine.device=cuda: {where} no CUDA device",
                remedy="Say engine.device=cpu or auto, or ask for GPUs where the processes are started.",
            )
        # One GPU alone may be the process's own, out of several that the machine has.
        if 1 < machine.gpus < place:
            raise UserError(
                f"engine.device=cuda: {machine.host} has {machine.gpus} GPUs for {place} processes or more",
                remedy="Start one process a GPU.",
            )


def _check_batch(settings: Any, world: int) -> None:
    if hasattr(settings, "optimisation"):
        share_of(settings.optimisation.batch, world, settings.engine)
    else:
        check_groups(settings.updating, settings.drawing.samples, world)


def check_groups(updating: Any, samples: int, world: int) -> None:
    """Every process takes as many groups of every minibatch. Raises :class:`UserError` where that cannot be."""
    for name, count in (("batch", updating.batch), ("minibatch", updating.minibatch)):
        if count % (samples * world):
            raise UserError(
                f"updating.{name}={count}: does not divide among {world} processes in groups of {samples} answers",
                remedy=f"Choose a multiple of {samples * world}.",
            )


def _named(engine: EngineSettings) -> str:
    """An engine by what tells it from others."""
    return f"engine.zero={engine.zero}" if engine.zero else f"engine.processes={engine.processes}"
