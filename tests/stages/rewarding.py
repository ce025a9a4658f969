"""What the tests of ``stage=reward`` need: a tiny chat model, comparisons that it can learn, and the command line."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import torch

from alignment import run
from alignment.artifacts import Artifact
from alignment.chat import tokenizers
from alignment.chat import train as vocabulary
from alignment.chat.types import Comparison, Conversation, Grade, Messages, Role, messages
from alignment.data.rows import Row, Split
from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.store import Store
from alignment.training import policies, preferences
from alignment.training.loop import Trained
from alignment.training.pair_rows import PairRows

SHAPE = Shape(
    "gemma2", 32, 2, 48, 2, 1, head_dim=16, query_scale=16, context=96, window=16, attention_cap=50.0, final_cap=30.0
)
PEOPLE = ("baker", "smith", "miller", "weaver", "potter", "tanner")
GRADES: tuple[Grade, ...] = ("significantly", "better", "slightly", "negligibly")
SHORT = (
    "tracker=off",
    "centre=null",
    "engine.precision=fp32",
    "optimisation={steps: 4, epochs: null, batch: 8, learning_rate: 1e-2}",
)


def comparison(number: int, **changes: Any) -> Comparison:
    """A pair whose better answer names somebody; grades take turns, and every second pair is labelled for safety."""
    rng = random.Random(number)
    who, other = rng.sample(PEOPLE, 2)
    labels = {"chosen_safe": True, "rejected_safe": False} if number % 2 else {}
    plain = Comparison(
        messages(("user", f"Who lives in house {number}?")),
        f"The {who} lives there, beside the {other}.",
        "No idea, and I do not care.",
        GRADES[number % 4],
        "street",
        f"p-{number}",
    )
    return replace(plain, **{**labels, **changes})


def long_prompt(exchanges: int) -> Messages:
    """Of about 35 tokens an exchange, and then a short question."""
    said: list[tuple[Role, str]] = []
    for year in range(exchanges):
        said += [("user", f"Who was here in year {year}?"), ("assistant", "The smith was.")]
    return messages(*said, ("user", "And now?"))


def street(count: int, start: int = 0, **changes: Any) -> list[Comparison]:
    """Several pairs."""
    return [comparison(number, **changes) for number in range(start, start + count)]


ANSWERS = [
    Conversation(messages(("user", f"Who made this {n}?"), ("assistant", f"The {PEOPLE[n % 6]} did.")), f"c-{n}")
    for n in range(12)
]


def policy(folder: Path, pieces: int = 440, shape: Shape = SHAPE, schema: str = "gemma2") -> Path:
    """A fresh chat model in a folder of its own; more pieces are another vocabulary."""
    lines = [text for one in street(40) for text in (one.prompt[0].content, one.chosen, one.rejected)]
    file = vocabulary.train(lines, pieces, folder / "pieces")
    tokenizer = tokenizers.load(file)
    model = core.build(shape, tokenizer.vocab_size, TokenIds(), seed=0)
    policies.save_policy(policies.Policy(model, tokenizer, schema), folder / "policy")
    return folder / "policy"


def pairs(folder: Path, rows: Mapping[Split, Sequence[Row]]) -> Path:
    """A dataset of comparisons."""
    return drawing.dataset(folder, "comparisons", rows).path


def arguments(store: Path, model: Path, data: Path, *more: str) -> list[str]:
    """A command line of ``stage=reward``."""
    return ["stage=reward", f"store={store}", f"model=dir:{model}", f"data=dir:{data}", *SHORT, *more]


def trained(store: Path, model: Path, data: Path, *more: str, name: str = "reward") -> Artifact:
    """Run the stage through the door, in this process."""
    assert run.door(arguments(store, model, data, *more, f"name={name}")) == 0
    return Store(store).latest(name)


class Given:
    """Stands in the place of the training: keeps what it is given, and leaves the model as it is."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.head: torch.Tensor | None = None
        self.seed = -1

    def __call__(self, model: Any, rows: PairRows, *, seed: int, **_: Any) -> Trained:
        self.rows, self.seed = rows.dataset.to_list(), seed
        self.head = model.score.weight.detach().clone()
        return Trained(1, len(rows), 1.0, 0.7, None)

    @classmethod
    def instead(cls, monkeypatch: Any) -> Given:
        """Put one there."""
        given = cls()
        monkeypatch.setattr(preferences, "train", given)
        return given
