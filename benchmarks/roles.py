"""Memory of four roles on one trunk (`roles: shared`) beside four trunks of which two are trained in full.

    python benchmarks/roles.py [--rank 16]

First the state at the shape of Gemma 2 2B, counted on the meta device: weights, gradients and AdamW's two moments in
fp32; policy and critic are trained, anchor and reward are not. Then some of the arms at a shape that fits a small
machine, measured: the highest resident memory of a process that makes updates (both forward passes, one backward pass,
AdamW, the anchor's and the reward's forward pass; activations are computed again in the backward pass), less what it
held after the same at a tiny shape.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alignment.gemma import branches, core, heads, roles, shared_roles
from alignment.gemma.presets import SHAPES, Shape, TokenIds
from alignment.gemma.shared_roles import Shared

VOCABULARY = 256_000
SMALL = Shape("gemma2", 768, 8, 3072, 8, 4, 96, 96, context=2048, window=1024, attention_cap=50.0, final_cap=30.0)
SMALL_VOCABULARY, TINY = 8_192, "mini_small"
TARGET = 0.15


class Arm(NamedTuple):
    """One way to hold the roles."""

    name: str
    shared: bool
    moves: bool = False
    half: bool = False
    bf16: bool = False


ARMS = (
    Arm("separate, all weights, fixed anchor", shared=False),
    Arm("separate, all weights, EMA anchor", shared=False, moves=True),
    Arm("shared, fixed anchor", shared=True),
    Arm("shared, EMA anchor", shared=True, moves=True),
    Arm("shared, fixed anchor, half", shared=True, half=True),
    Arm("shared, EMA anchor, half", shared=True, moves=True, half=True),
)


def made(arm: Arm, shape: Shape, vocabulary: int, rank: int, device: str, reward: Path | None) -> roles.Separate:
    """The roles of an arm, random weights; without ``reward`` there is no reward model among them yet."""
    trunk = core.build(shape, vocabulary, TokenIds(), 0, device=device)
    if arm.shared:
        settings = {"critic": "policy", "moves": arm.moves, "half": arm.half, "reward": reward}
        return Shared(trunk, rank=rank, alpha=2.0 * rank, **settings)
    return roles.Separate(trunk, roles.critic_from_policy(trunk), moves=arm.moves)


def tensors(arm: Arm, both: roles.Separate) -> Iterator[Tensor]:
    """Whatever the roles hold. The reward model is counted as what it is: the size of the critic, and not trained."""
    yield from both.parameters()
    yield from both._anchor[0].parameters()
    yield from both.anchor_state().values()
    yield from (one.detach() for one in both.groups()["critic"])


def state_bytes(arm: Arm, shape: Shape, vocabulary: int, rank: int) -> int:
    """Weights, and for what is trained a gradient and two moments, in bytes; what is shared counts once."""
    both = made(arm, shape, vocabulary, rank, "meta", None)
    distinct = {id(one): one for one in tensors(arm, both)}
    moments_and_gradient = 3 * 4
    return sum(
        one.numel() * (one.element_size() + (moments_and_gradient if one.requires_grad else 0))
        for one in distinct.values()
    )


# ── measured ─────────────────────────────────────────────────────────────────────────────────────


def resident() -> int:
    """Memory of this process that is resident now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def highest() -> int:
    """The most that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def updates(arm: Arm, shape: Shape, rank: int, reward: Path, steps: int = 2) -> None:
    """What an arm does in training."""
    torch.manual_seed(0)
    both = made(arm, shape, SMALL_VOCABULARY, rank, "cpu", reward)
    scorer = both.reward_model() if isinstance(both, Shared) else _reward_apart(shape)
    both.train()
    for model in (both.policy, both.critic):
        core.trunk(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adam = torch.optim.AdamW([{"params": group} for group in both.groups().values()], lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, SMALL_VOCABULARY, (2, 96), generator=generator).tolist()
    trees = [branches.Tree(line[:48], [line[48:]]) for line in ids]
    lines = branches.lay_out(trees, pad_id=0)
    where = branches.spans(lines, trees)
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arm.bf16):
            with torch.no_grad():
                branches.scores(scorer, lines)
            anchor_S = both.anchor_logprobs(lines, where, 1.0)
            found = both(lines, where, 1.0)
        ((found.logprobs_S - anchor_S).mean() + found.values_S.square().mean()).backward()
        adam.step()
        adam.zero_grad()
        if arm.moves:
            both.move_anchor(0.01)


def _reward_apart(shape: Shape) -> nn.Module:
    """A reward model of its own."""
    model = heads.with_head(core.build(shape, SMALL_VOCABULARY, TokenIds(), 1), seed=0)
    return model.requires_grad_(False)


def saved_adapter(folder: Path, shape: Shape, rank: int) -> None:
    """What stage=reward would leave beside a reward model."""
    trunk = core.build(shape, SMALL_VOCABULARY, TokenIds(), 0)
    model = shared_roles._fresh(shared_roles._under_zeros(trunk), rank, 2.0 * rank, trained=["score"])
    model.save_pretrained(str(folder))


def measured_bytes(arm: Arm, rank: int, rewards: Path) -> int:
    """The most memory that an arm needs at the small shape, beyond what the libraries take when first used."""
    updates(arm, SHAPES[TINY], rank, rewards / TINY)
    empty = resident()
    updates(arm, SMALL, rank, rewards / "small")
    return highest() - empty


def in_a_process(arm: Arm, rank: int, rewards: Path) -> int:
    """Measure an arm where nothing else has been."""
    command = [sys.executable, __file__, "--arm", json.dumps(arm), "--rank", str(rank), "--rewards", str(rewards)]
    # What is freed goes back at once, so that what is resident is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--rewards", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.arm:
        print(measured_bytes(Arm(*json.loads(asked.arm)), asked.rank, asked.rewards))
        return

    print(f"state at Gemma 2 2B, {VOCABULARY:,} pieces, rank {asked.rank} (target {TARGET} of separate)")
    whole = None
    for arm in ARMS:
        found = state_bytes(arm, SHAPES["gemma2_2b"], VOCABULARY, asked.rank)
        whole = whole or found
        print(f"  {arm.name:<40} {found / 1e9:7.2f} GB  {found / whole:.3f}", flush=True)

    print(f"updates at width {SMALL.width}, {SMALL.layers} layers, {SMALL_VOCABULARY:,} pieces, measured")
    with tempfile.TemporaryDirectory() as folder:
        rewards = Path(folder)
        saved_adapter(rewards / TINY, SHAPES[TINY], asked.rank)
        saved_adapter(rewards / "small", SMALL, asked.rank)
        whole = None
        for arm in (ARMS[0], ARMS[2], ARMS[3], ARMS[4], ARMS[-1]):
            arm = arm._replace(bf16=arm.half)
            state = state_bytes(arm, SMALL, SMALL_VOCABULARY, asked.rank)
            measured = in_a_process(arm, asked.rank, rewards)
            whole = whole or measured
            name = arm.name + (", autocast" if arm.bf16 else "")
            print(
                f"  {name:<48} state {state / 1e6:6.0f} MB  peak {measured / 1e6:6.0f} MB  {measured / whole:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
