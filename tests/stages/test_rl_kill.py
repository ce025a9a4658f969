"""``stage=rl`` killed at any instant and started again with the same command ends with the same bits."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import reinforcing
import rewarding
from tests_support import call, command

from alignment.artifacts import RECORD, load
from alignment.training.tracking import read_metrics

COMMON = (
    "updating={steps: 12, batch: 16, minibatch: 8, checkpoint_steps: 2}",
    "watching={every: 3, prompts: 6, keep: best}",
    "anchoring={kind: ema, rate: 0.1, target: 0.5, horizon: 200}",
    "reward.whiten=running",
)
KINDS = {
    "gae": ("estimating={kind: gae, whiten_advantages: true}", "updating.epochs=2"),
    "rloo": ("anchoring.place=loss", "updating.schedule=linear"),
    "reinforce": ("estimating={kind: reinforce, baseline: running}",),
    "lora": ("adapter={kind: lora, rank: 4, alpha: 8}", "estimating.kind=gae"),
}
TIMED = ("seconds/", "tokens_per_second/", "episodes_per_second")
UNTOLD = ("plots.html",)
"""They show times."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("parts")
    model = rewarding.policy(root / "model")
    return model, reinforcing.prompts(root / "prompts"), reinforcing.reward(root / "reward", model).path


def outcome(store: Path) -> dict[str, Any]:
    """What the run left, the metrics without their times."""
    (record,) = (store / "solo").glob(f"rl-*/{RECORD}")
    assert load(record.parent).verify() == []
    files = json.loads(record.read_text())["files"]
    rows = read_metrics(record.parent / "metrics.jsonl")
    metrics = [{name: value for name, value in row.items() if not name.startswith(TIMED)} for row in rows]
    assert [row["step"] for row in metrics if "score/mean" in row] == list(range(1, 13))
    assert [row["step"] for row in metrics if "held_out/kl" in row] == [0, 3, 6, 9, 12]
    return {name: digest for name, digest in files.items() if name not in UNTOLD} | {"metrics": metrics}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_it_ends_with_the_same_bits(
    kind: str, seed: int, given: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Moments are drawn between the first look and the end: before it there is nothing to lose."""
    store = tmp_path / "runs"
    arguments = reinforcing.arguments(store, *given, *COMMON, *KINDS[kind])
    arguments.remove(f"store={store}")
    undisturbed = call(store, *arguments)
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    wanted = outcome(store)
    (made,) = (store / "solo").glob("rl-*")
    spent = made.joinpath("model.safetensors").stat().st_mtime - made.joinpath("front.jsonl").stat().st_ctime
    shutil.move(store / "solo", tmp_path / "undisturbed")
    rng, kills = random.Random(100 * seed + len(kind)), 0
    for _ in range(3):
        running = subprocess.Popen(command(store, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while running.poll() is None and not list((store / "solo").glob("rl-*/front.jsonl")):
            time.sleep(0.02)
        try:
            running.wait(rng.uniform(0.0, max(spent, 3.0) + 2.0 * bool(kills)))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
    last = call(store, *arguments)
    assert last.returncode == 0, last.stdout + last.stderr
    assert outcome(store) == wanted, f"{kind}, seed {seed}, after {kills} kills"
    assert not list(store.rglob("*.partial"))
