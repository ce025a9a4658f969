"""Killed at any instant and started again with the same command, a stage ends with the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests_support import QUIET, call, command

from alignment.artifacts import RECORD, load

TRAINING = ("optimisation.steps=16", "optimisation.checkpoint_steps=3", "optimisation.batch=16")
TEACHER = ("careful", "questions", "teacher_base", "teacher", "teach", "taught")
FIRST = ("text", "tokenizer", "base", "conversations", *TEACHER, "sft")
PAIRS = ("stage=pairs", "models=[latest:teacher,latest:sft]", "prompts=latest:questions", "max_new_tokens=16")
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "data": ((), ("stage=data", "recipe=miniature_prompts", "workers=2")),
    "teach": (
        FIRST,
        ("stage=teach", "teacher=latest:sft", "prompts=latest:questions", "unfinished=keep", "top_k=4"),
    ),
    "ghost": (
        (*FIRST, "dialogues"),
        ("stage=ghost", "policy=latest:sft", "dialogues=latest:dialogues", "keep=all"),
    ),
    "preprompt": (
        FIRST,
        ("stage=preprompt", "policy=latest:sft", "prompts=latest:questions", "min_gain=null"),
    ),
    "reject": (
        (*FIRST, "prompts", "helpfulness"),
        (
            "stage=reject",
            "policy=latest:sft",
            "prompts=latest:prompts",
            "reward=latest:helpfulness",
            "count=64",
            "tune_prompts=16",
            "unfinished=keep",
        ),
    ),
    "pairs": (FIRST, PAIRS),
    "label": (
        FIRST,
        ("stage=label", "pairs=latest:pairs", "ties=negligibly"),
    ),
    "tokenizer": (("text",), ("stage=tokenizer", "data=latest:text", "pieces=440")),
    "pretrain": (
        ("text", "tokenizer"),
        ("stage=pretrain", "data=latest:text", "tokenizer=latest:tokenizer", *TRAINING, *QUIET),
    ),
    "sft": (
        ("text", "tokenizer", "base", "conversations"),
        ("stage=sft", "model=latest:base", "data=latest:conversations", *TRAINING, *QUIET),
    ),
    "reward": (
        ("sft", "careful", "safety_mixture"),
        (
            "stage=reward",
            "model=latest:sft",
            "data=latest:safety_mixture",
            "centre=latest:careful",
            "safety_weight=1.0",
            "optimisation.epochs=null",
            *TRAINING,
            *QUIET,
        ),
    ),
    "dpo": (
        ("sft", "helpful_mixture"),
        ("stage=dpo", "model=latest:sft", "data=latest:helpful_mixture", "optimisation.epochs=null", *TRAINING, *QUIET),
    ),
    "merge": (
        ("helpfulness", "safety", "careful"),
        ("stage=merge", "models=[latest:helpfulness,latest:safety]", "centre=latest:careful"),
    ),
    "slerp": (
        ("lasting", "warp_1_run_1", "warp_1_run_2"),
        ("stage=merge/slerp", "models=[latest:warp_1_run_1,latest:warp_1_run_2]", "init=latest:lasting"),
    ),
    "export": (
        ("ppo",),
        ("stage=export", "model=latest:ppo", "licence=Apache-2.0", "allow_unknown=true"),
    ),
    "measure": (
        ("helpfulness", "safety", "helpful_pairs", "safety_pairs"),
        (
            "stage=measure",
            "models=[latest:helpfulness,latest:safety]",
            "comparisons=[latest:helpful_pairs,latest:safety_pairs]",
        ),
    ),
    "evaluate": (
        (*FIRST, "prompts"),
        (
            "stage=evaluate",
            "models=[latest:sft]",
            "prompts=latest:prompts",
            "conversations=latest:conversations",
            "reference=latest:base",
            "count=96",
        ),
    ),
}


def outcome(store: Path) -> dict[str, str]:
    """The digests of what the stage under test wrote."""
    (record,) = (store / "solo").glob(f"*/{RECORD}")
    return json.loads(record.read_text())["files"]


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
    if stage == "label":
        made = call(store, *PAIRS)
        assert made.returncode == 0, made.stdout + made.stderr
        (store / "solo").rename(store / "given")
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
