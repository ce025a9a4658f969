"""A process that is killed before the run has got under way leaves nobody waiting. Also what each process runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import several

SECONDS = 60.0
MOMENTS = (
    "before it is tied to process 0",
    "before it has heard anything",
    "before the process group",
    "within the process group",
    "before a computation",
    "before deepspeed",
    "within deepspeed",
    "before a meeting",
    "before it answers",
)
QUICK = {"before a meeting"}


def ended(moment: str, folder: Path) -> tuple[int, float, str]:
    """Process 0's exit code, the seconds that it lived on after process 1, and what both said."""
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    launched |= {"MASTER_PORT": several.free_port(), "ALIGNMENT_TEAM_KEY": "key"}
    first, second = (
        subprocess.Popen(
            [sys.executable, __file__, moment, str(folder)],
            env=several.environment(**launched, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    )
    try:
        said = second.communicate(timeout=240)[0]
        assert second.returncode == -signal.SIGKILL, said
        began = time.monotonic()
        said += first.communicate(timeout=SECONDS + 30)[0]
        return first.returncode, time.monotonic() - began, said
    finally:
        for process in (first, second):
            process.kill()


@pytest.mark.parametrize(
    "moment", [moment if moment in QUICK else pytest.param(moment, marks=pytest.mark.slow) for moment in MOMENTS]
)
def test_process_0_does_not_wait_for_one_that_is_gone(moment: str, tmp_path: Path) -> None:
    code, seconds, said = ended(moment, tmp_path)
    assert code not in (0, -signal.SIGKILL), said
    assert seconds < SECONDS, said
    assert said.count("another process of this run is gone") == 1, said
    assert "Traceback" not in said


# ── what each process runs ───────────────────────────────────────────────────────────────────────


def end_here(moment: str, wanted: str) -> None:
    from alignment import ranks

    if moment == wanted and ranks.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def later(moment: str, wanted: str, seconds: float) -> None:
    """Process 1 ends within what comes next, where process 0 arrives later still."""
    import threading

    from alignment import ranks

    if moment != wanted:
        return
    if ranks.rank() == 0:
        time.sleep(2 * seconds)
    else:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def stage(moment: str) -> None:
    import torch

    from alignment.training import team

    end_here(moment, "before the process group")
    later(moment, "within the process group", 0.5)
    torch.distributed.init_process_group("gloo")
    end_here(moment, "before a computation")
    torch.distributed.all_reduce(torch.ones(1))
    end_here(moment, "before deepspeed")
    later(moment, "within deepspeed", 0.5)
    if "deepspeed" in moment:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        model = torch.nn.Linear(4, 4)
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
        settings["zero_allow_untested_optimizer"] = True
        deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=settings)
    end_here(moment, "before a meeting")
    team.meet()
    end_here(moment, "before it answers")


def main(moment: str, folder: Path) -> int:
    from alignment.errors import UserError
    from alignment.plans import together
    from alignment.reporting import pages
    from alignment.training import lifelines

    hold = lifelines.hold

    def held(*some: Any) -> Any:
        end_here(moment, "before it is tied to process 0")
        line = hold(*some)
        end_here(moment, "before it has heard anything")
        return line

    lifelines.hold = held
    together._run = lambda work: stage(moment)  # type: ignore[assignment,return-value]
    planned: Any = SimpleNamespace(step=SimpleNamespace(stage="sft"), settings=None, folder=folder)

    def door(_: list[str]) -> int:
        try:
            together._look(folder)
            together.run(planned, {})
        except UserError as error:
            pages.complain(error)
            return 2
        return 0

    return together.enter(door, [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
