"""Tiny reward models with a vocabulary, as stage=reward leaves them, and dialogues of many lengths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gemma import tiny

from alignment.artifacts import Artifact, foreign
from alignment.chat import template, tokenizers
from alignment.chat.train import train
from alignment.chat.types import Message, Messages, messages
from alignment.gemma import core, heads
from alignment.gemma.heads import Scale
from alignment.gemma.presets import TokenIds
from alignment.training.engine import Engine, EngineSettings

CONTEXT = 256
SETTINGS = EngineSettings(
    device="cpu",
    precision="fp32",
    micro_batch=None,
    layout="auto",
    gradient_checkpointing=False,
    zero=0,
    processes="any",
    offload=False,
    gather=True,
    loss_chunk=64,
    watchdog_minutes=None,
)
ENGINE = Engine("cpu", False, False, 1, SETTINGS)
LINES = [f"the answer to question {number} is {number % 7}, said the friend of the town" for number in range(200)]


def build(folder: Path, family: str = "gemma1", scale: Scale | None = None, seed: int = 0) -> Path:
    """A reward model whose norms and weights are far from their initial values; without a scale, a stranger's."""
    tokenizer = tokenizers.load(train(LINES, 400, folder))
    shape = replace(tiny.SHAPES[family], context=CONTEXT)
    vocabulary = tokenizers.padded_vocab(tokenizer.vocab_size)
    generator = torch.Generator().manual_seed(seed)
    model = core.build(shape, vocabulary, TokenIds(), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    template.write(folder, tokenizer, scale.schema if scale else {"gemma1": "gemma1", "gemma2": "gemma2"}[family])
    reward = heads.with_head(model, seed)
    if scale is None:
        reward.save_pretrained(folder)
    else:
        heads.save_reward(reward, folder, scale)
    return folder


def ours(folder: Path, name: str = "helpful") -> Artifact:
    """The folder as an artifact of stage=reward."""
    return Artifact(folder, "reward", "reward", name, "a" * 64)


def theirs(folder: Path) -> Artifact:
    """The folder as one that nobody knows."""
    return foreign(folder, f"dir:{folder}")


def dialogues() -> list[Messages]:
    """Of one turn and of several, short and long, with answers to the same prompt, an empty one among them."""
    found = []
    for number in range(6):
        before = messages(("user", f"question {number} " * (1 + number % 3)))
        if number % 2:
            before = (*before, Message("assistant", "the town"), Message("user", "and then?"))
        if number == 4:
            before = (Message("system", "Be brief."), *before)
        answers = ["", "the friend", f"the answer is {number} " * (1 + 2 * (number % 4))][: 1 + number % 3]
        found += [(*before, Message("assistant", answer)) for answer in answers]
    return found


def change(folder: Path, **values: Any) -> None:
    """Write other values into config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
