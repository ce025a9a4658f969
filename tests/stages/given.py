"""What the tests of rows that a teacher reads as they are need: rows, a teacher, settings, and what is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import torch
import yaml

from alignment import artifacts
from alignment.artifacts import Artifact, Outcome, Tokens
from alignment.chat import tokenizers
from alignment.chat.render import render
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.train import train
from alignment.chat.types import Conversation, Text, messages
from alignment.data import topk
from alignment.data.rows import Kind, Row
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.stages import teach
from alignment.training import policies
from alignment.training.policies import Policy

GUIDES = [{"name": "refusal", "tags": ["unsafe"], "instruction": "Name the concern."}]
ENDPOINT = {"concurrency": 1, "max_spend": None, "timeout": 5.0, "retries": 0, "back_off": 0.01}
K, M = 5, 3


def turns(*said: str) -> Any:
    return messages(*zip(("user", "assistant") * len(said), said, strict=False))


CHATS = [
    Conversation(turns("Question?", "The cat."), "one", ("unsafe", "x")),
    Conversation(turns("The moon?", "On the river", "And?", "the mat!"), "two"),
    Conversation(turns("The moon?", "On the river", "And?", "the mat!"), "end", train="last"),
    Conversation(turns("No?", "Not learned."), "none", train="none"),
]
TEXTS = [Text("the cat sat on the mat and looked at the moon over the river. " * 2, "a"), Text("", "b"), Text("Q", "c")]


def values(preset: str, **changes: Any) -> dict[str, Any]:
    """The values of stage=teach/<preset>, but for some."""
    shipped = drawing.values("teach")
    for name in ("given", preset):
        shipped |= yaml.safe_load((drawing.CONF / "stage" / "teach" / f"{name}.yaml").read_text())
    del shipped["defaults"]
    shipped["engine"]["device"] = "cpu"
    return shipped | changes


def settings(preset: str = "given", **changes: Any) -> teach.Settings:
    return teach.Settings.parse(values(preset, **{"splits": ["train"], "top_k": K, "tail_draws": M, **changes}))


def dataset(tmp_path: Path, kind: Kind, *rows: Row, **more: list[Row]) -> Artifact:
    return drawing.dataset(tmp_path / "data", kind, {"train": list(rows), **more})  # type: ignore[dict-item]


def made(out: Path) -> Artifact:
    """A model of nobody's, which expects something else at every token."""
    words = ["the cat sat on the mat and looked at the moon over the river. Question? Answer!"] * 20
    tokenizer = tokenizers.load(train(words, 400, out))
    shape = replace(SHAPES["mini_small"], context=96)
    model = core.build(shape, tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    policies.save_policy(Policy(model, tokenizer, "gemma2"), out)
    return artifacts.foreign(out, f"dir:{out}")


def read(teacher: Artifact, data: Artifact, out: Path, preset: str = "given", **changes: Any) -> Outcome:
    out.mkdir(exist_ok=True)
    return teach.run(settings(preset, **changes), {"data": data, "teacher": teacher}, out)


@torch.no_grad()
def logprobs(model: torch.nn.Module, ids: list[int], mask: list[bool], temperature: float = 1.0) -> torch.Tensor:
    """``[T, V]`` of the tokens under the mask, by transformers' own forward, in float64."""
    logits = model.double()(torch.tensor([ids]), use_cache=False).logits[0]
    before = [place - 1 for place, trained in enumerate(mask) if trained]
    return (logits[before].double() / temperature).log_softmax(-1)


def check(found: topk.TopK, wanted: torch.Tensor) -> None:
    """Right to what fp16 keeps: 1 part in 2,048. Drawn are others alone."""
    np.testing.assert_allclose(found.logprobs_TK, wanted.topk(K).values.numpy(), rtol=1e-3, atol=1e-4)
    own = np.take_along_axis(wanted.numpy(), found.ids_TK, -1)
    np.testing.assert_allclose(found.logprobs_TK, own, rtol=1e-3, atol=1e-4)
    rest = 1 - wanted.topk(K).values.exp().sum(-1)
    np.testing.assert_allclose(np.exp(found.tail_T), rest.numpy(), rtol=2e-3, atol=1e-5)
    assert found.drawn_TM is not None
    assert found.entropy_T is not None
    assert found.drawn_TM.shape == (len(wanted), M)
    assert not (found.drawn_TM[..., None] == found.ids_TK[:, None]).any()
    others = wanted.scatter(-1, torch.from_numpy(found.ids_TK), -torch.inf).softmax(-1)
    np.testing.assert_allclose(found.entropy_T, torch.special.entr(others).sum(-1).numpy(), rtol=1e-3, atol=1e-4)
    # Systematic: an id comes as often as its share says, rounded down or up.
    counts = torch.zeros_like(others).scatter_add_(
        -1, torch.from_numpy(found.drawn_TM), torch.ones(M).expand(len(others), M).double()
    )
    assert ((counts - M * others).abs() < 1 + 1e-6).all()


def student(tokenizer: Tokenizer) -> Tokens:
    return Tokens(tokenizer.digest, tokenizer.vocab_size, 512, "gemma2")


def rendered(rows: list[Conversation], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    for row in rows:
        ids, mask = render(row.messages, tokenizer, "gemma2", row.train)
        yield row.id, list(compress(ids, mask))


def ask(data: Artifact, out: Path, teacher: Artifact, preset: str = "given", **changes: Any) -> Outcome:
    out.mkdir(exist_ok=True)
    schema = None if preset == "text" else "gemma2"
    named = {"teacher": "endpoint:big", "tokenizer": "dir:t", "chat_schema": schema}
    said = {**named, "tail_draws": 0, "endpoint": ENDPOINT, **changes}
    inputs = {"data": data, "teacher": artifacts.named("endpoint", "big"), "tokenizer": teacher}
    return teach.run(settings(preset, **said), inputs, out)
