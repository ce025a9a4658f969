"""Which process this is of a run that has several: its rank, of how many, and its place on its own machine.

A launcher says so in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), as torchrun does; under
``srun`` with one task a rank :func:`settle` takes the same from what Slurm says. Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.errors import UserError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher says. PyTorch, Accelerate and DeepSpeed read it as well."""
SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
ONE_GPU = re.compile(r"\d+|(GPU|MIG)-[^,]+")
"""How CUDA_VISIBLE_DEVICES names a single one. Of a task without any it is empty, or says ``NoDevFiles``."""
START = "Start it with torchrun or srun, as docs/cluster.md shows."


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is rank 0, which speaks, decides and writes, or the only process."""
    return rank() == 0


def is_follower() -> bool:
    """Whether this is one of several and not the first, which says what all of them are refused for."""
    said = os.environ.get("RANK", "0")
    return said.isdecimal() and 0 < int(said) < world()


def settle() -> None:
    """Settle who this process is, once, before anything asks. Raises :class:`UserError` for what contradicts itself."""
    tasks = _tasks()
    if tasks is not None and "RANK" not in os.environ and tasks > 1:
        said = os.environ.get("WORLD_SIZE")
        os.environ |= {ours: os.environ[theirs] for ours, theirs in SLURM.items()} | {"WORLD_SIZE": str(tasks)}
        if ONE_GPU.fullmatch(os.environ.get("CUDA_VISIBLE_DEVICES", "")):
            # Slurm has given each task a GPU of its own, which is the first that the task sees.
            os.environ["LOCAL_RANK"] = "0"
        if said is not None:
            _need_as_slurm_says(int(said), tasks)
    elif tasks is not None and "WORLD_SIZE" in os.environ:
        # torchrun in a task starts as many processes as LOCAL_WORLD_SIZE says.
        _need_as_slurm_says(world(), tasks * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    _need_whole()


def batch_shell() -> int | None:
    """How many tasks a Slurm job has whose batch shell this is; None anywhere else.

    ``python`` there is one process, whatever the job was given: ``srun`` starts one in every task.
    """
    inside = "SLURM_JOB_ID" in os.environ and _tasks() is None and "RANK" not in os.environ
    tasks = os.environ.get("SLURM_NTASKS")
    return int(tasks) if inside and tasks is not None else None


@contextmanager
def alone() -> Iterator[None]:
    """While the block lasts this process is the only one: what it runs neither knows of others nor waits for them."""
    held = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ |= held


def _tasks() -> int | None:
    """How many processes ``srun`` has started, of which this is one; None where it was not started by it."""
    if "SLURM_PROCID" not in os.environ:
        return None
    # A batch shell has a SLURM_PROCID too, and no step.
    step = os.environ.get("SLURM_STEP_NUM_TASKS")
    if step is None and "SLURM_STEP_ID" not in os.environ and "SLURM_JOB_ID" in os.environ:
        return None
    return int(step or os.environ.get("SLURM_NTASKS", "1"))


def _need_as_slurm_says(found: int, wanted: int) -> None:
    if found != wanted:
        raise UserError(
            f"WORLD_SIZE={found}, and Slurm has started {wanted} processes",
            cause="Those that are not there would be waited for, and those too many would train by themselves.",
            remedy="Leave WORLD_SIZE to srun or torchrun, or ask for as many tasks.",
        )


def _need_whole() -> None:
    """All of what a launcher says, or nothing of it."""
    if "RANK" not in os.environ and world() == 1:
        return
    needed = [name for name in LAUNCHED if name != "LOCAL_WORLD_SIZE"]
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"{missing[0]} is not set, and this is process {rank()} of {world()}",
            cause="Processes find each other at MASTER_ADDR and MASTER_PORT, by RANK, WORLD_SIZE and LOCAL_RANK.",
            remedy="Export the address of the first node and a free port of it in the job. " + START,
        )
    for name in needed:
        if name != "MASTER_ADDR" and not os.environ[name].isdecimal():
            raise UserError(f"{name}={os.environ[name]}: is no number", remedy=START)
    if rank() >= world():
        raise UserError(f"RANK={rank()}: there are {world()} processes, counted from 0", remedy=START)
