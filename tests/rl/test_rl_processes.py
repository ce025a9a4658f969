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
from unittest.mock import patch

import pytest
import rl_support as support
import torch
from torch import nn

from alignment.training import zero
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
KINDS["shared"] = KINDS["gae"]


def begun(out: Path, kind: str, how: Engine, **changes: Any) -> support.Made:
    settings = {"anchoring.kind": "ema", "anchoring.target": 0.05, "anchoring.horizon": 40.0}
    shared = 2 if kind == "shared" else 0
    return support.made(out, {**COMMON, **settings, **KINDS[kind], **changes}, whiten="running", how=how, shared=shared)


def learned(run: support.Made) -> dict[str, dict[str, torch.Tensor]]:
    """What is learned and what it is held to, whole in every process, of roles that are in their engine."""
    return {"weights": whole(run.learner.roles), "anchor": whole(support.anchor(run.learner))}


def whole(module: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, weight in module.named_parameters():
        with zero.gathering([weight]):
            found[name] = weight.detach().clone()
    return found


def together(kind: str, engine: dict[str, Any], out: Path, steps: int = 3) -> str:
    """Both processes to their end; what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    folders = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, kind, json.dumps(engine), str(steps), str(out)],
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


WAYS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"micro_batch": micro}) for kind in ("gae", "rloo", "reinforce") for micro in (None, 2)),
    ("gae", {"zero": 1}),
    ("gae", {"zero": 2, "micro_batch": 2}),
    ("gae", {"zero": 3}),
    ("rloo", {"zero": 2}),
    ("rloo", {"zero": 3, "micro_batch": 2}),
    ("reinforce", {"zero": 3}),
    ("gae", {"zero": 3, "gather": False}),
    ("rloo", {"zero": 3, "gather": False, "micro_batch": 2}),
    ("gae", {"zero": 3, "gather": False, "offload": True}),
    ("shared", {"zero": 2}),
    ("shared", {"zero": 3}),
    ("shared", {"zero": 3, "gather": False}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "engine"),
    [pytest.param(kind, how, id="-".join([kind, *(f"{name}={how[name]}" for name in how)])) for kind, how in WAYS],
)
def test_two_processes_learn_what_one_learns(kind: str, engine: dict[str, Any], tmp_path: Path) -> None:
    if engine.get("zero") and find_spec("deepspeed") is None:
        pytest.skip("the extra `deepspeed` is not installed")
    # DeepSpeed clips over all roles together: without a bound both do the same.
    run = begun(tmp_path / "one", kind, support.engine(), **{"updating.clip_norm": 1e9})
    run.go()
    wanted = learned(run)
    said = together(kind, engine, tmp_path)
    for rank in range(2):
        file = tmp_path / f"finished-{rank}"
        assert file.exists(), said
        found = torch.load(file)
        for role in wanted:
            assert support.apart(found[role], wanted[role]) < 1e-5, role
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
    whole = together("gae", {}, tmp_path / "whole", 4)
    assert (tmp_path / "whole" / "finished-0").exists(), whole
    parts = together("gae", {}, tmp_path / "parts", 2)
    for path in (tmp_path / "parts").glob("finished-*"):
        path.unlink()
    parts += together("gae", {}, tmp_path / "parts", 4)
    assert (tmp_path / "parts" / "finished-0").exists(), parts
    wanted, found = (torch.load(tmp_path / name / "finished-0") for name in ("whole", "parts"))
    assert support.same(found["weights"], wanted["weights"])
    assert support.same(found["anchor"], wanted["anchor"])


def work(kind: str, engine: dict[str, Any], steps: int, out: Path) -> None:
    """One process."""
    open_team(print)
    rank = int(os.environ["RANK"])
    how = Engine("cpu", False, False, 2, support.engine(**engine).settings)
    run = begun(out / "both", kind, how, **{"updating.clip_norm": 1e9, "updating.steps": steps})
    leave = run.learner.leave

    def last() -> None:
        # Behind it what ZeRO 3 has divided is on rank 0 alone, and the anchor gone.
        torch.save(learned(run), out / f"partial-{rank}")
        leave()

    with patch.object(run.learner, "leave", last):
        run.go()
    (out / f"partial-{rank}").rename(out / f"finished-{rank}")
    # Without process 0 the other one would end as well.
    torch.distributed.barrier()
    # DeepSpeed's end is now and then an abort.
    os._exit(0)


if __name__ == "__main__":
    work(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
