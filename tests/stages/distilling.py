"""What the tests of ``stage=distill`` need: a student, a larger teacher that knows something, data, command lines."""

from __future__ import annotations

from pathlib import Path

import drawing
import rewarding
from rewarding import PEOPLE

from alignment import run
from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, Prompt, Text, messages
from alignment.gemma.presets import Shape
from alignment.store import Store

LARGER = Shape(
    "gemma2", 48, 2, 64, 2, 1, head_dim=16, query_scale=16, context=96, window=16, attention_cap=50.0, final_cap=30.0
)
SHORT = (
    "tracker=off",
    "tracker.every=1",
    "engine.precision=fp32",
    "optimisation={steps: 6, epochs: null, batch: 8, learning_rate: 3e-3, checkpoint_steps: 2, warmup_at_least: 1}",
)


def student(folder: Path) -> Path:
    """A chat model that knows nothing."""
    return rewarding.policy(folder)


def teacher(folder: Path) -> Path:
    """A larger one of the same tokenizer, trained for a moment so that it is not flat."""
    raw = rewarding.policy(folder / "raw", shape=LARGER)
    line = ["stage=sft", f"store={folder}", f"model=dir:{raw}", f"data=dir:{talks(folder / 'own')}", *SHORT]
    assert run.door([*line, "optimisation.steps=12", "optimisation.learning_rate=1e-2", "name=teacher"]) == 0
    return Store(folder).latest("teacher").path


def talks(folder: Path) -> Path:
    """Conversations of one exchange and of two."""
    rows = [
        Conversation(
            messages(
                *([("user", "Hello!"), ("assistant", "Good day.")] if n % 3 == 0 else []),
                ("user", f"Who made {n}{' of them' * (n % 4)}?"),
                ("assistant", f"The {PEOPLE[n % 6]}."),
            ),
            f"c{n}",
        )
        for n in range(40)
    ]
    return drawing.dataset(folder, "conversations", {"train": rows[:32], "valid": rows[32:]}).path


def texts(folder: Path) -> Path:
    """Documents of one piece and of several."""
    rows = [
        Text(f"The {PEOPLE[n % 6]} lives in house {n}, {'and there ' * (n % 9)}he stays.", f"t{n}") for n in range(40)
    ]
    return drawing.dataset(folder, "text", {"train": rows[:32], "valid": rows[32:]}).path


def prompts(folder: Path) -> Path:
    """Questions to which no answer is written."""
    rows = [Prompt(messages(("user", f"Who made {n}?")), f"p{n}") for n in range(24)]
    return drawing.dataset(folder, "prompts", {"train": rows}).path


def line(store: Path, mode: str, data: Path, *more: str) -> list[str]:
    """A command line of ``stage=distill`` in a mode, but for who learns and who teaches."""
    preset = "" if mode == "live" else f"/{mode}"
    return [f"stage=distill{preset}", f"store={store}", f"data=dir:{data}", *SHORT, *more]


def made(store: Path, mode: str, data: Path, *more: str, name: str = "distill") -> Artifact:
    """What comes of it."""
    assert run.door([*line(store, mode, data, *more), f"name={name}"]) == 0
    return Store(store).latest(name)
