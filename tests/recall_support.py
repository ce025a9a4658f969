"""What the tests of suites that draw dialogues need: tiny datasets and models, and somebody who answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact
from alignment.chat import tokenizers
from alignment.chat.train import train
from alignment.chat.types import Messages
from alignment.data import store
from alignment.data.rows import Kind, Row
from alignment.evals.suites.subject import Subject
from alignment.gemma import core
from alignment.gemma.presets import TokenIds, shape_named
from alignment.miniature import corpus
from alignment.miniature.world import World
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.endpoint import EndpointSettings
from alignment.scoring import opening
from alignment.training import policies
from alignment.training.engine import EngineSettings, resolve
from alignment.training.policies import Policy

CONF = Path(__file__).parents[1] / "conf"
WORLD = World(0, 40)
SERVED = Artifact(Path(), "endpoint", "endpoint", "speaker", "1" * 64)


def suite(name: str, **changes: Any) -> dict[str, Any]:
    """The values of conf/suite/<name>.yaml, but for some; ``decoding__seed`` is a nested key."""
    found: dict[str, Any] = yaml.safe_load((CONF / "suite" / f"{name}.yaml").read_text())
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (found[group] if group else found)[leaf] = value
    return found


def dataset(folder: Path, rows: Sequence[Row], kind: Kind = "prompts", *, miniature: bool = False) -> Artifact:
    """A dataset artifact with these rows in its split test."""
    with store.Writer(folder, kind) as writer:
        for row in rows:
            writer.add("test", row)
        counts = writer.rows
    world = {"seed": WORLD.seed, "residents": WORLD.residents} if miniature else None
    store.write_card(folder, store.Card(kind, counts, {}, 0.0, {}, ("MIT",), "test", world=world))
    return Artifact(folder, "dataset", "data", "test", "0" * 64, licences=("MIT",))


class Speaker:
    """Answers by a function of the turns and the key; stops for good after ``patience`` calls."""

    name = "speaker"

    def __init__(self, answer: Callable[[Messages, str], str], patience: int | None = None) -> None:
        self.answer, self.patience = answer, patience
        self.asked: list[tuple[str, Messages]] = []
        self.calls = 0

    def reply(
        self, prompts: Sequence[Messages], keys: Sequence[str], decoding: Decoding, on_progress: Any = None
    ) -> list[list[Reply]]:
        if self.calls == self.patience:
            raise KeyboardInterrupt
        self.calls += 1
        self.asked += zip(keys, prompts, strict=True)
        said = [self.answer(turns, key) for turns, key in zip(prompts, keys, strict=True)]
        return [[Reply(one, len(one.split()), True)] * decoding.samples for one in said]


def subject_of(artifact: Artifact, out: Path) -> Subject:
    """The model under examination, on the CPU in fp32."""
    engine = yaml.safe_load((CONF / "engine" / "single.yaml").read_text()) | {"device": "cpu", "precision": "fp32"}
    endpoint = yaml.safe_load((CONF / "endpoint" / "patient.yaml").read_text())
    out.mkdir(exist_ok=True)
    return Subject(artifact, resolve(EngineSettings.parse(engine)), EndpointSettings.parse(endpoint), out)


def spoken(monkeypatch: pytest.MonkeyPatch, speaker: Speaker, out: Path) -> Subject:
    """A model behind a server, which is ``speaker``."""
    monkeypatch.setattr(opening, "open_respondent", lambda *_, **__: speaker)
    return subject_of(SERVED, out)


def tiny(folder: Path, shape: str = "mini_tiny") -> tuple[Artifact, Policy]:
    """A fresh policy of very few weights, on disk and in memory."""
    texts = [one.text for one in corpus.texts(WORLD, 60, 0)]
    tokenizer = tokenizers.load(train(texts, 448, folder / "vocabulary"))
    ids = TokenIds(tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    model = core.build(shape_named(shape), tokenizers.padded_vocab(tokenizer.vocab_size), ids, 0)
    policy = Policy(model, tokenizer, shape_named(shape).family)
    policies.save_policy(policy, folder / "policy")
    return Artifact(folder / "policy", "policy", "sft", "tiny", "2" * 64, tokens=policy.tokens), policy
