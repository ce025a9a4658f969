"""An error or a death in one process ends all of them, and is said once. The file is also what each process runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import several

CASES = {
    # What happens: the exit codes of process 0 and 1, what is said once, and what is not said.
    "process 1 refuses": (2, 2, "row 7 is damaged", "Traceback"),
    "process 0 refuses": (2, 2, "row 7 is damaged", "Traceback"),
    "both refuse": (2, 2, "row 7 is damaged", "Traceback"),
    "process 1 fails": (1, 1, "ZeroDivisionError", "Connection closed"),
    "process 1 is killed": (86, -signal.SIGKILL, "another process of this run is gone", "Traceback"),
    "process 0 is killed": (-signal.SIGKILL, 86, "process 0 of this run is gone", "Traceback"),
    "process 1 loses its device": (86, 86, "process 1 on", "another process of this run"),
    "process 0 loses its device": (86, 86, "process 0 on", "another process of this run"),
    "process 1 asks for what is not there": (1, 1, "AcceleratorError: CUDA error", "its device has failed"),
    "other versions": (2, 2, "has torch 1.0, and process 0 on", "Traceback"),
    "another folder": (2, 2, "does not share the store: it does not see", "Traceback"),
    "a folder that is not its own": (2, 2, "does not share the store: it cannot write there", "Traceback"),
    "one does not come": (2, 2, "the 3 processes have not come together", "Traceback"),
    "too few tasks": (2, 2, "WORLD_SIZE=8, and Slurm has started 2 processes", "Traceback"),
    "no way to process 0": (2, 2, "process 1 does not reach process 0 at 127.0.0.1:1", "Traceback"),
    "nobody": (0, 0, "all is done", "Traceback"),
}
QUICK = {"process 1 refuses", "too few tasks"}
NOBODYS = Path("/proc/self/status")
"""A file in a folder where nobody makes any, root neither."""
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "8"}


def outcome(case: str, folder: Path) -> tuple[list[int], str]:
    """Both processes' exit codes, and what they said together."""
    launched = {"WORLD_SIZE": "3" if case == "one does not come" else "2", "MASTER_ADDR": "127.0.0.1"}
    launched |= {"MASTER_PORT": several.free_port()}
    numbers = ("RANK", "LOCAL_RANK")
    if case == "too few tasks":
        launched, numbers = launched | SLURM, ("SLURM_PROCID", "SLURM_LOCALID")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, case, str(folder)],
            env=several.environment(**launched, **dict.fromkeys(numbers, str(rank))),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "".join(said)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_it_is_said_once_and_ends_all(case: str, tmp_path: Path) -> None:
    codes, said = outcome(case, tmp_path)
    first, second, told, untold = CASES[case]
    assert codes == [first, second], said
    assert said.count(told) == 1, said
    assert untold not in said


def test_a_folder_is_shared_where_a_process_sees_it_and_writes_there(tmp_path: Path) -> None:
    from alignment.plans import together

    (tmp_path / "shared.tmp").touch()
    assert together._blind(tmp_path / "shared.tmp") == ""
    assert "does not see" in together._blind(tmp_path / "elsewhere.tmp")
    assert "cannot write there" in together._blind(NOBODYS)


# ── what each process runs ───────────────────────────────────────────────────────────────────────


def stage(case: str) -> None:
    """What stands in the place of training: both compute together until the case happens."""
    import torch

    from alignment import ranks
    from alignment.errors import UserError

    torch.distributed.init_process_group("gloo")
    together = torch.ones(1)
    torch.distributed.all_reduce(together)
    rank = ranks.rank()
    if case == "both refuse" or case == f"process {rank} refuses":
        raise UserError("row 7 is damaged", remedy="Mend it.")
    if case == f"process {rank} fails":
        print(1 / 0)
    if case == f"process {rank} is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == f"process {rank} loses its device":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    if case == f"process {rank} asks for what is not there":
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    for _ in range(3):
        torch.distributed.all_reduce(together)


def main(case: str, folder: Path) -> int:
    """One process."""
    from alignment import artifacts, console, ranks, run
    from alignment.plans import together
    from alignment.training import lifelines, team

    if case == "other versions" and ranks.rank() == 1:
        versions = artifacts.versions() | {"torch": "1.0"}
        artifacts.versions = lambda: versions  # type: ignore[assignment]
    if case == "another folder" and ranks.rank() == 1:
        together._blind = lambda path, look=together._blind: look(path.with_name("elsewhere"))  # type: ignore[misc]
    if case == "a folder that is not its own" and ranks.rank() == 1:
        together._blind = lambda path, look=together._blind: look(NOBODYS)  # type: ignore[misc]
    if case == "one does not come":
        team.GATHERING = timedelta(seconds=3)
    if case == "no way to process 0":
        team.GREETING = 1.0
        lifelines.hold = lambda address, port, *rest, hold=lifelines.hold: hold(address, 1, *rest)
    together._run = lambda work: stage(case)  # type: ignore[assignment,return-value]
    planned: Any = SimpleNamespace(step=SimpleNamespace(stage="sft"), settings=None, folder=folder)

    def behind_the_door() -> int:
        together._look(folder)
        together.run(planned, {})
        console.say("all is done")
        return 0

    run._checked = lambda request: ()  # type: ignore[assignment,return-value]
    run._run = behind_the_door  # type: ignore[assignment]
    return together.enter(run.door, ["stage=sft"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
