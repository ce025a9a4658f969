"""Killed at any instant and started again with the same command, a stage ends with the same bits."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from stage_runs import STAGES, outcome, prepare
from tests_support import call, command

from alignment.artifacts import RECORD, load


def kill_until_done(store: Path, arguments: Sequence[str], rng: random.Random, seconds: float) -> int:
    """Start, SIGKILL at a random moment, start again …; the last start is left alone. Returns the kills."""
    kills = 0
    for _ in range(4):
        running = subprocess.Popen(command(store, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            running.wait(rng.uniform(0.3, seconds))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
        for record in store.glob(f"solo/*/{RECORD}"):
            assert load(record.parent).verify() == [], "a record stands beside what it does not describe"
    last = call(store, *arguments)
    assert last.returncode == 0, last.stdout + last.stderr
    return kills


def run_one(stage: str, seed: int, copy_of: Callable[[Sequence[str]], Path], tmp_path: Path) -> None:
    parts, arguments = STAGES[stage]
    store = copy_of(parts)
    prepare(stage, store)
    began = time.monotonic()
    undisturbed = call(store, *arguments)
    took = time.monotonic() - began
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    wanted = outcome(store)
    (store / "solo").rename(tmp_path / "undisturbed")
    kills = kill_until_done(store, arguments, random.Random(seed), took)
    assert outcome(store) == wanted, f"{stage}, seed {seed}, after {kills} kills"
    assert not list(store.rglob("*.partial"))


@pytest.mark.parametrize("stage", ["sft"])
def test_a_stage_killed_at_random_ends_with_the_same_bits(
    stage: str, copy_of: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    run_one(stage, 1, copy_of, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_killed_at_random_ends_with_the_same_bits(
    stage: str, seed: int, copy_of: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    run_one(stage, 10 + seed, copy_of, tmp_path)
