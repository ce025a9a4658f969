"""Every training stage as a command line of a second or two, on a tiny model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import drawing
import reinforcing
import rewarding
from rewarding import PEOPLE

from alignment.chat.types import Conversation, Text, messages
from alignment.training.tracking import read_metrics

COMMON = (
    "tracker=off",
    "tracker.every=1",
    "engine.precision=fp32",
    "engine.gradient_checkpointing=false",
    "engine.loss_chunk=64",
)
SUPERVISED = "optimisation={steps: %d, epochs: null, batch: 8, learning_rate: 3e-3, checkpoint_steps: %d}"
REINFORCED = "updating={steps: %d, batch: 8, minibatch: 8, checkpoint_steps: %d, learning_rate: 1e-3, clip_norm: 1e9}"
STAGES = ("pretrain", "sft", "distill", "reward", "dpo", "rl")
OWN_ANSWERS = {"gkd": "distill/on_policy", "minillm": "distill/minillm"}
"""Distillation on what the student says; in these runs of fp32 on like machines processes draw alike."""
LARGER = replace(rewarding.SHAPE, width=48)


@dataclass(frozen=True)
class Given:
    """What the stages read."""

    policy: Path
    teacher: Path
    text: Path
    conversations: Path
    comparisons: Path
    prompts: Path
    reward: Path


def given(root: Path) -> Given:
    """All of it, made in a few seconds."""
    policy = rewarding.policy(root / "model")
    talks = [
        Conversation(
            messages(("user", f"Who made {n}{' of them' * (n % 4)}?"), ("assistant", f"The {PEOPLE[n % 6]}.")), f"c{n}"
        )
        for n in range(40)
    ]
    texts = [
        Text(f"The {PEOPLE[n % 6]} lives in house {n}, {'and there ' * (n % 5)}he stays.", f"t{n}") for n in range(40)
    ]
    return Given(
        policy=policy,
        teacher=rewarding.policy(root / "teacher", shape=LARGER),
        text=drawing.dataset(root / "text", "text", {"train": texts[:32], "valid": texts[32:]}).path,
        conversations=drawing.dataset(root / "talks", "conversations", {"train": talks[:32], "valid": talks[32:]}).path,
        comparisons=rewarding.pairs(root / "pairs", {"train": rewarding.street(32), "valid": rewarding.street(8, 100)}),
        prompts=reinforcing.prompts(root / "prompts"),
        reward=reinforcing.reward(root / "reward", policy).path,
    )


def line(stage: str, some: Given, store: Path, *more: str, steps: int = 20, every: int = 100) -> list[str]:
    """A command line; ``more`` lays engine and settings over it."""
    supervised = SUPERVISED % (steps, every)
    learner = (
        f"student.weights=dir:{some.policy}",
        "student.shape=null",
        f"teacher=dir:{some.teacher}",
        f"data=dir:{some.conversations}",
        "block=null",
        supervised,
    )
    drawn = ("drawing={share: 1.0, temperature: 1.0, max_new_tokens: 8}", *learner)
    parts = {
        "pretrain": (f"tokenizer=dir:{some.policy}", f"data=dir:{some.text}", "block=32", supervised),
        "sft": (f"model=dir:{some.policy}", f"data=dir:{some.conversations}", supervised),
        "distill": learner,
        "gkd": ("name=gkd", *drawn),
        "minillm": ("name=minillm", "minillm={rollouts: 16, epochs: 3}", *drawn),
        "reward": (
            f"model=dir:{some.policy}",
            f"data=dir:{some.comparisons}",
            f"centre=dir:{some.conversations}",
            "safety_weight=0.5",
            supervised,
        ),
        "dpo": (f"model=dir:{some.policy}", f"data=dir:{some.comparisons}", supervised),
        "rl": (
            f"policy=dir:{some.policy}",
            f"prompts=dir:{some.prompts}",
            f"reward=run:{some.reward}",
            "drawing={samples: 2, max_new_tokens: 6}",
            "watching={every: 2, prompts: 4}",
            "reward.unfinished=null",
            REINFORCED % (steps, every),
        ),
    }
    return [f"stage={OWN_ANSWERS.get(stage, stage)}", f"store={store}", *COMMON, *parts[stage], *more]


def curve(store: Path, stage: str) -> list[dict[str, float]]:
    """The rows of a run's metrics."""
    (path,) = store.glob(f"solo/{stage}-*/metrics.jsonl")
    return read_metrics(path)
