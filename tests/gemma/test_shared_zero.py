"""Roles on one trunk under DeepSpeed, two processes, for each ZeRO stage: every adapter moves, and the trunk does not.

The file is also the program that each process runs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from test_roles import batch, trees

from alignment.gemma.shared_roles import Shared

STEPS, RATE = 3, 0.2
SHAPE = [(9, [4, 6]), (3, [2, 8]), (14, [7, 3]), (1, [5, 5])]


def made() -> Shared:
    """The same in every process."""
    torch.manual_seed(0)
    return Shared(tiny.model(tiny.GEMMA2), rank=3, alpha=6.0, critic="policy", moves=True)


def loss_of(roles: torch.nn.Module, rank: int, world: int) -> torch.Tensor:
    """The mean over this process's trees: every ``world``-th, of the same number of tokens in each process."""
    some = trees(SHAPE)[rank::world]
    logprobs_S, values_S = roles(*batch(some), 0.7)
    return -logprobs_S.mean() + (values_S - 1).square().mean()


def alone() -> dict[str, torch.Tensor]:
    """The same steps in one process, with torch alone."""
    roles = made()
    adam = optimiser(roles)
    for _ in range(STEPS):
        adam.zero_grad()
        (sum(loss_of(roles, rank, 2) for rank in range(2)) / 2).backward()
        adam.step()
        roles.move_anchor(RATE)
    return contents(roles)


def optimiser(roles: Shared) -> torch.optim.AdamW:
    groups = [{"params": group} for group in roles.groups().values()]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)


def contents(roles: Shared) -> dict[str, torch.Tensor]:
    weights = {name: one.detach().clone() for name, one in roles.named_parameters()}
    update = {f"anchor.{path}": one.clone() for path, one in roles.anchor_state().items()}
    return weights | update | {"anchor.logprobs_S": roles.anchor_logprobs(*batch(trees(SHAPE)), 0.7)}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="the extra `deepspeed` is not installed")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_adapter_moves_and_the_trunk_does_not(stage: int, tmp_path: Path) -> None:
    """And all of it as in one process, to a five-hundredth of a step: Adam enlarges the rounding of small gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    root = str(Path(__file__).parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(stage), str(tmp_path)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    output = [process.communicate(timeout=240)[0] for process in processes]
    # By what they wrote and not by their codes: DeepSpeed's end is now and then an abort.
    assert {path.name for path in tmp_path.iterdir()} == {"finished-0", "finished-1"}, "\n".join(output)
    before, wanted = contents(made()), alone()
    for rank in range(2):
        found = torch.load(tmp_path / f"finished-{rank}")
        assert found.keys() == before.keys()
        for name, one in found.items():
            trained = "lora_" in name or "modules_to_save" in name or name.startswith("anchor.")
            assert torch.equal(one, before[name]) != trained, name
            assert (one - wanted[name]).abs().max() < 2e-5, name


def work(stage: int, out: Path) -> None:
    """One process of a run under DeepSpeed."""
    import deepspeed

    # A kernel for processes of one machine, which would be compiled first.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    roles = made()
    engine, *_ = deepspeed.initialize(
        model=roles,
        optimizer=optimiser(roles),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,  # which is 1 where nothing is said
        },
    )
    assert engine.zero_optimization_stage() == stage
    for _ in range(STEPS):
        engine.backward(loss_of(engine, rank, world))
        engine.step()
        with deepspeed.zero.GatheredParameters(list(roles.parameters()), enabled=stage == 3):
            roles.move_anchor(RATE)
    # Stage 3 has a weight whole while a module of the engine's computes. Whatever else reads weights (the anchor, the
    # decode, the reward model, who saves) has to gather them first.
    with deepspeed.zero.GatheredParameters(list(roles.parameters()), enabled=stage == 3):
        torch.save(contents(roles), out / f"partial-{rank}")
    (out / f"partial-{rank}").rename(out / f"finished-{rank}")
    torch.distributed.barrier()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
