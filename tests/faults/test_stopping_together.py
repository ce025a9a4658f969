"""Two processes of one run stop at the same step, whichever was asked, and neither waits for one that hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import several
import tiny_runs

from alignment.artifacts import RECORD
from alignment.training import checkpoints

STEPS = {"sft": 60, "rl": 12}
TIMED = ("seconds/", "tokens_per_second/", "episodes_per_second")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tiny_runs.Given:
    return tiny_runs.given(tmp_path_factory.mktemp("given"))


def start(line: Sequence[str]) -> list[subprocess.Popen[str]]:
    """One command line in two processes, as ``srun`` starts them."""
    launched = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    launched |= {"MASTER_PORT": several.free_port()}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "alignment.run", *line],
            env=several.environment(**launched, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=several.ROOT,
        )
        for rank in range(2)
    ]


def ended(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit codes, and what was said."""
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], "".join(said)


def rows(store: Path, stage: str) -> list[dict[str, Any]]:
    try:
        found = tiny_runs.curve(store, stage)
    except ValueError:
        return []
    return [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in found]


def await_rows(store: Path, stage: str, count: int, processes: Sequence[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 240
    while len(rows(store, stage)) < count and all(process.poll() is None for process in processes):
        assert time.monotonic() < until
        time.sleep(0.01)


def files_of(store: Path) -> dict[str, str]:
    (record,) = store.glob(f"solo/*/{RECORD}")
    return {name: digest for name, digest in json.loads(record.read_text())["files"].items() if name != "plots.html"}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "engine"), [("sft", "ddp"), ("sft", "zero2"), ("rl", "ddp"), ("rl", "zero3")])
def test_asked_in_one_both_stop_at_one_step_and_go_on_to_the_same_rows(
    stage: str, engine: str, given: tiny_runs.Given, tmp_path: Path
) -> None:
    if engine != "ddp" and find_spec("deepspeed") is None:
        pytest.skip("the extra `deepspeed` is not installed")
    how = (f"engine={engine}", "engine.micro_batch=4")

    def line(name: str) -> list[str]:
        return tiny_runs.line(stage, given, tmp_path / name, *how, steps=STEPS[stage], every=1000)

    codes, said = ended(start(line("undisturbed")))
    assert codes == [0, 0], said
    stopped = tmp_path / "stopped"
    processes = start(line("stopped"))
    await_rows(stopped, stage, 4, processes)
    processes[1].send_signal(signal.SIGUSR1)
    codes, said = ended(processes)
    assert codes == [85, 85], said
    assert said.count("SIGUSR1: stopped after step") == 1, said
    (last,) = stopped.glob("solo/*/checkpoints/checkpoint-*")
    assert checkpoints.fault(last) is None
    assert 0 < checkpoints.step_of(last) < STEPS[stage]
    codes, said = ended(start(line("stopped")))
    assert codes == [0, 0], said
    assert rows(stopped, stage) == rows(tmp_path / "undisturbed", stage)
    assert files_of(stopped) == files_of(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_and_the_stacks_say_where_the_other_waits(
    given: tiny_runs.Given, tmp_path: Path
) -> None:
    more = ("engine=ddp", "engine.micro_batch=4", "engine.watchdog_minutes=0.1")
    processes = start(tiny_runs.line("sft", given, tmp_path, *more, steps=400))
    await_rows(tmp_path, "sft", 4, processes)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        said, _ = processes[0].communicate(timeout=120)
    finally:
        os.kill(processes[1].pid, signal.SIGCONT)
        codes, _ = ended(processes[1:])
    assert processes[0].returncode == 85, said
    assert "no step has ended for 0.1 minutes" in said
    assert codes[0] != 0
    (stacks,) = tmp_path.glob("solo/*/parts/stacks-0.txt")
    assert "alignment/training/loop.py" in stacks.read_text()
    (incidents,) = tmp_path.glob("solo/*/incidents.jsonl")
    assert json.loads(incidents.read_text())["why"] == "no step has ended for 0.1 minutes"
