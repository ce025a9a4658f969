"""What the tests of ``stage=rl`` need: prompts, a reward model, and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import drawing
import rewarding

from alignment import run
from alignment.artifacts import Artifact
from alignment.chat.types import Prompt, messages, row_key
from alignment.data import seen
from alignment.gemma.presets import Shape
from alignment.store import Store

SHORT = (
    "tracker=off",
    "tracker.every=1",
    "engine.precision=fp32",
    "drawing={samples: 2, max_new_tokens: 8}",
    "updating={steps: 2, batch: 8, minibatch: 4, checkpoint_steps: 1, learning_rate: 1e-3}",
    "watching={every: 1, prompts: 4}",
    "reward.unfinished=null",
)
GEMMA1 = Shape("gemma1", 32, 2, 48, 2, 1, head_dim=16, query_scale=16, context=96)


def questions(count: int, start: int = 0) -> list[Prompt]:
    """Prompts of a few lengths."""
    return [
        Prompt(messages(("user", f"Who lives in house {n}{', and who beside it' * (n % 3)}?")), f"q-{n}")
        for n in range(start, start + count)
    ]


LEARNED, HELD = questions(10), questions(6, 50)


def prompts(folder: Path, *, miniature: bool = True) -> Path:
    """A dataset of prompts."""
    return drawing.dataset(folder, "prompts", {"train": LEARNED, "valid": HELD}, miniature=miniature).path


def reward(store: Path, model: Path) -> Artifact:
    """A reward model of the policy's family."""
    data = rewarding.pairs(store / "pairs", {"train": rewarding.street(16)})
    return rewarding.trained(store, model, data)


def arguments(store: Path, model: Path, data: Path, judge: Path, *more: str) -> list[str]:
    """A command line of ``stage=rl``."""
    named = () if any(one.startswith("reward=") for one in more) else (f"reward=run:{judge}",)
    return ["stage=rl", f"store={store}", f"policy=dir:{model}", f"prompts=dir:{data}", *named, *SHORT, *more]


def trained(store: Path, model: Path, data: Path, judge: Path, *more: str, name: str = "rl") -> Artifact:
    """Run the stage through the door, in this process."""
    assert run.door(arguments(store, model, data, judge, *more, f"name={name}")) == 0
    return Store(store).latest(name)


def numbers(some: Sequence[Prompt]) -> set[int]:
    """By which a model remembers what it has seen."""
    return set(map(int, seen.numbers(map(row_key, some))))


def remembered(folder: Path) -> set[int]:
    """What the model in a folder has seen."""
    return set(map(int, seen.read(folder)))
