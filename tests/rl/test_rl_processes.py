"""Two processes learn what one learns. The file is also the program that each of them runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import rl_support as support
import torch

from alignment.training.engine import Engine
from alignment.training.team import open_team
from alignment.training.tracking import read_metrics

# One minibatch a step: how answers fall into several depends on who holds which.
COMMON = {"updating.steps": 3, "updating.minibatch": 8, "updating.learning_rate": 1e-3, "updating.epochs": 2}
KINDS: dict[str, dict[str, Any]] = {
    "gae": {"estimating.kind": "gae", "estimating.whiten_advantages": True, "estimating.whiten_rewards": True},
    "rloo": {"anchoring.place": "loss"},
    "reinforce": {"estimating.kind": "reinforce", "estimating.baseline": "running"},
}


def begun(out: Path, kind: str, how: Engine, **changes: Any) -> support.Made:
    settings = {"anchoring.kind": "ema", "anchoring.target": 0.05, "anchoring.horizon": 40.0}
    return support.made(out, {**COMMON, **settings, **KINDS[kind], **changes}, whiten="running", how=how)


def together(kind: str, zero: int, micro: int | None, out: Path, steps: int = 3) -> str:
    """Both processes to their end; what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    folders = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, kind, str(zero), json.dumps(micro), str(steps), str(out)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": folders},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return "\n".join(said)


ZEROS = [("gae", 1, None), ("gae", 2, 2), ("gae", 3, None), ("rloo", 2, None), ("rloo", 3, 2), ("reinforce", 3, None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "zero", "micro"),
    [(kind, 0, micro) for kind in KINDS for micro in (None, 2)] + ZEROS,
)
def test_two_processes_learn_what_one_learns(kind: str, zero: int, micro: int | None, tmp_path: Path) -> None:
    if zero and find_spec("deepspeed") is None:
        pytest.skip("the extra `deepspeed` is not installed")
    # DeepSpeed clips over all roles together: without a bound both do the same.
    run = begun(tmp_path / "one", kind, support.engine(), **{"updating.clip_norm": 1e9})
    run.go()
    wanted = support.weights(run.learner.roles)
    said = together(kind, zero, micro, tmp_path)
    for rank in range(2):
        file = tmp_path / f"finished-{rank}"
        assert file.exists(), said
        found = torch.load(file)
        assert support.apart(found["weights"], wanted) < 1e-5
        assert support.apart(found["anchor"], support.weights(support.anchor(run.learner))) < 1e-5
    alone, both = (
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "score/mean" in row]
        for name in ("one", "both")
    )
    assert [row["step"] for row in both] == [1, 2, 3], "one of them tells"
    for mine, theirs in zip(alone, both, strict=True):
        for name in ("score/mean", "reward/with_kl", "kl/anchor", "kl/beta", "length/mean", "loss/policy"):
            assert theirs[name] == pytest.approx(mine[name], abs=1e-4), name


@pytest.mark.slow
def test_two_processes_go_on_where_they_were(tmp_path: Path) -> None:
    """Two steps and a checkpoint, then two more, against four at once."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = together("gae", 0, None, tmp_path / "whole", 4)
    assert (tmp_path / "whole" / "finished-0").exists(), whole
    parts = together("gae", 0, None, tmp_path / "parts", 2)
    for path in (tmp_path / "parts").glob("finished-*"):
        path.unlink()
    parts += together("gae", 0, None, tmp_path / "parts", 4)
    assert (tmp_path / "parts" / "finished-0").exists(), parts
    wanted, found = (torch.load(tmp_path / name / "finished-0") for name in ("whole", "parts"))
    assert support.same(found["weights"], wanted["weights"])
    assert support.same(found["anchor"], wanted["anchor"])


def work(kind: str, zero: int, micro: int | None, steps: int, out: Path) -> None:
    """One process."""
    open_team(print)
    rank = int(os.environ["RANK"])
    one = support.engine(micro_batch=micro, zero=zero)
    how = Engine("cpu", False, False, 2, one.settings)
    run = begun(out / "both", kind, how, **{"updating.clip_norm": 1e9, "updating.steps": steps})
    run.go()
    found = {"weights": support.weights(run.learner.roles), "anchor": support.weights(support.anchor(run.learner))}
    torch.save(found, out / f"finished-{rank}")
    # DeepSpeed's end is now and then an abort.
    os._exit(0)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
