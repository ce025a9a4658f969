"""An error or a death in one process ends all of them, and is said once. The file is also what each process runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
    "process 1 is killed": (2, -signal.SIGKILL, "another process of this run is gone", "Traceback"),
    "process 0 is killed": (-signal.SIGKILL, 2, "process 0 of this run is gone", "Traceback"),
    "other versions": (2, 2, "has torch 1.0, and process 0 on", "Traceback"),
    "another folder": (2, 2, "does not share the store: it does not see", "Traceback"),
    "nobody": (0, 0, "all is done", "Traceback"),
}
QUICK = {"process 1 refuses"}


def outcome(case: str, folder: Path) -> tuple[list[int], str]:
    """Both processes' exit codes, and what they said together."""
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    launched |= {"MASTER_PORT": several.free_port()}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, case, str(folder)],
            env=several.environment(**launched, RANK=str(rank), LOCAL_RANK=str(rank)),
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
    for _ in range(3):
        torch.distributed.all_reduce(together)


def main(case: str, folder: Path) -> int:
    """One process."""
    from alignment import artifacts, console, ranks
    from alignment.errors import UserError
    from alignment.plans import together
    from alignment.reporting import pages

    if case == "other versions" and ranks.rank() == 1:
        versions = artifacts.versions() | {"torch": "1.0"}
        artifacts.versions = lambda: versions  # type: ignore[assignment]
    if case == "another folder" and ranks.rank() == 1:
        together._blind = lambda path, look=together._blind: look(path.with_name("elsewhere"))  # type: ignore[misc]
    together._run = lambda work: stage(case)  # type: ignore[assignment,return-value]
    planned: Any = SimpleNamespace(step=SimpleNamespace(stage="sft"), settings=None, folder=folder)

    def door(_: list[str]) -> int:
        try:
            together._look(folder)
            together.run(planned, {})
        except UserError as error:
            pages.complain(error)
            return 2
        console.say("all is done")
        return 0

    return together.enter(door, [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
