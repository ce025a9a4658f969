"""Who a process is: from torchrun, from Slurm, and what is refused."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from alignment import ranks
from alignment.errors import UserError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
}
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
}
BATCH_SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has said anything, and what is settled is forgotten afterwards."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ranks.LAUNCHED and not name.startswith("SLURM_") and name != "CUDA_VISIBLE_DEVICES"
    }
    monkeypatch.setattr(os, "environ", kept)


def settled(said: dict[str, str]) -> tuple[int, int, int]:
    os.environ.update(said)
    ranks.settle()
    return ranks.rank(), ranks.world(), ranks.local_rank()


def test_one_process_is_the_main_one() -> None:
    assert settled({}) == (0, 1, 0)
    assert ranks.is_main()


@pytest.mark.parametrize("said", [TORCHRUN, STEP])
def test_torchrun_and_slurm_say_the_same(said: dict[str, str]) -> None:
    assert settled(said) == (3, 4, 1)
    assert not ranks.is_main()


def test_a_task_that_sees_one_gpu_takes_it() -> None:
    """With --gpus-per-task every task's own GPU is the first that it sees."""
    for gpu in ("5", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-3f2a"):
        os.environ.pop("RANK", None)
        os.environ.pop("WORLD_SIZE", None)
        assert settled(STEP | {"CUDA_VISIBLE_DEVICES": gpu}) == (3, 4, 0), gpu


@pytest.mark.parametrize("visible", ["", "NoDevFiles", "-1", "0,1"])
def test_a_task_that_sees_no_gpu_of_its_own_keeps_its_place(visible: str) -> None:
    """Those that share a machine's processors tell themselves apart by it."""
    assert settled(STEP | {"CUDA_VISIBLE_DEVICES": visible}) == (3, 4, 1)


@pytest.mark.parametrize(
    ("said", "followed"),
    [
        ({}, False),
        (STEP, True),
        (STEP | {"SLURM_PROCID": "0"}, False),
        # Nobody else is there who could say it.
        (TORCHRUN | {"RANK": "4"}, False),
        (TORCHRUN | {"RANK": "first"}, False),
    ],
)
def test_of_several_the_first_complains(said: dict[str, str], followed: bool) -> None:
    with suppress(UserError):
        settled(said)
    assert ranks.is_follower() == followed


def test_torchrun_in_every_task_counts_its_own_processes() -> None:
    """Two tasks, each with a torchrun of two."""
    step = STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    assert settled(step | TORCHRUN) == (3, 4, 1)


def test_a_batch_shell_is_one_process() -> None:
    assert settled(BATCH_SHELL) == (0, 1, 0)
    assert ranks.batch_shell() == 4


def test_a_task_is_no_batch_shell() -> None:
    settled(STEP)
    assert ranks.batch_shell() is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (STEP | {"WORLD_SIZE": "8"}, "WORLD_SIZE=8, and Slurm has started 4 processes"),
        (TORCHRUN | STEP | {"WORLD_SIZE": "16"}, "WORLD_SIZE=16, and Slurm has started 8"),
        ({key: value for key, value in STEP.items() if key != "MASTER_ADDR"}, "MASTER_ADDR is not set"),
        ({key: value for key, value in TORCHRUN.items() if key != "MASTER_PORT"}, "MASTER_PORT is not set"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4: there are 4 processes"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT=http: is no number"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
    ],
)
def test_contradictions_are_refused(said: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        settled(said)
    assert caught.value.remedy


def test_alone_there_are_no_others() -> None:
    settled(TORCHRUN)
    with ranks.alone():
        assert (ranks.rank(), ranks.world()) == (0, 1)
        assert "MASTER_ADDR" not in os.environ
    assert (ranks.rank(), ranks.world(), os.environ["MASTER_ADDR"]) == (3, 4, "n0")


def test_what_is_done_alone_may_fail() -> None:
    settled(TORCHRUN)
    with pytest.raises(ValueError, match="no"), ranks.alone():
        raise ValueError("no")
    assert ranks.world() == 4
