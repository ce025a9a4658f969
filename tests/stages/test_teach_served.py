"""A teacher behind a server thinks as its model does, is paid once, and cannot do everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import given
import numpy as np
import pytest
import torch
from given import CHATS, ENDPOINT, GUIDES, TEXTS, K, ask, dataset, read, rendered, student, turns
from local_server import LocalServer, dying
from reading_server import reading

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.chat import tokenizers
from alignment.chat.render import render
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Prompt
from alignment.data import store, topk
from alignment.data.topk_fit import need_fit
from alignment.errors import UserError
from alignment.gemma import core
from alignment.parts import FOLDER
from alignment.sampling.taught import guided
from alignment.stages import teach

SERVED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no tokenizer": ("given", {"tokenizer": None}, r"tokenizer=null: teacher=endpoint:big(.|\n)*tokenizer=…"),
    "no schema": ("given", {"chat_schema": None}, r"chat_schema=null: (.|\n)*chat_schema=…"),
    "draws": ("given", {"tail_draws": 16}, r"tail_draws=16: endpoint:big is behind a server(.|\n)*tail_draws=0"),
    "a schema of text": ("text", {"block": 16, "chat_schema": "gemma2"}, r"chat_schema=gemma2: (.|\n)*null"),
    "a temperature": ("given", {"top_k_temperature": 2.0}, r"top_k_temperature=2\.0: endpoint:big is behind a server"),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return given.made(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def tokenizer(teacher: Artifact) -> Tokenizer:
    return tokenizers.load(teacher.path)


@pytest.fixture(scope="module")
def model(teacher: Artifact) -> torch.nn.Module:
    return core.load(teacher.path).eval()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, tokenizer: Tokenizer) -> Iterator[LocalServer]:
    with LocalServer(complete=reading(model.float(), tokenizer)) as started:
        started.name_it(monkeypatch)
        yield started


@pytest.mark.parametrize("preset", ["given", "text"])
def test_a_server_thinks_as_its_model_does(server: LocalServer, teacher: Artifact, tmp_path: Path, preset: str) -> None:
    block = 16 if preset == "text" else None
    data = dataset(tmp_path, "text", *TEXTS) if block else dataset(tmp_path, "conversations", *CHATS)
    outcome = ask(data, tmp_path / "out", teacher, preset, block=block)
    read(teacher, data, tmp_path / "own", preset, block=block, tail_draws=0)
    served, own = topk.Store.open(tmp_path / "out"), topk.Store.open(tmp_path / "own")
    assert list(served) == list(own)
    assert served.teacher == replace(own.teacher, name="endpoint:big")
    for name in own:
        one, other = served.row(name), own.row(name)
        assert one.drawn_TM is other.drawn_TM is None
        assert one.tokens_T.tolist() == other.tokens_T.tolist()
        np.testing.assert_allclose(one.logprobs_TK, other.logprobs_TK, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(np.exp(one.tail_T), np.exp(other.tail_T), rtol=2e-3, atol=1e-5)
    assert outcome.metrics["tokens_spent"] == sum(len(body["prompt"]) + 1 for body in server.requests)
    assert outcome.notes["teacher"] == "endpoint:big"
    assert "device" not in outcome.notes


def test_a_server_that_drops_half_way_names_the_row_and_is_paid_once(
    server: LocalServer, teacher: Artifact, tmp_path: Path
) -> None:
    data = dataset(tmp_path, "conversations", *CHATS)
    server.faults.extend([None, dying])
    server.always = dying
    with pytest.raises(UserError, match=r"two: endpoint:big gave no usable answer(.|\n)*answers so far are kept"):
        ask(data, tmp_path / "out", teacher)
    server.faults.clear()
    server.always = None
    before = len(server.requests)
    outcome = ask(data, tmp_path / "out", teacher)
    assert len(server.requests) == before + 2
    ask(data, tmp_path / "whole", teacher)
    for path in (tmp_path / "whole" / "topk").iterdir():
        assert (tmp_path / "out" / "topk" / path.name).read_bytes() == path.read_bytes()
    lengths = [len(body["prompt"]) + 1 for body in server.requests[-3:]]
    assert outcome.metrics["tokens_spent"] == sum(lengths)
    assert (tmp_path / "out" / FOLDER / "journal.jsonl").is_file()


def test_a_server_answers_and_thinks_of_its_answers(
    server: LocalServer, teacher: Artifact, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """What was said before in a prompt is trained as well, as the row says; guidance is rendered for the server too."""
    server.answer = lambda body: "the moon."
    prompts = [Prompt(turns("Q?", "A!", "And?"), "p0"), Prompt(turns("Bad?"), "p1", ("unsafe",))]
    data = drawing.dataset(tmp_path / "prompts", "prompts", {"train": prompts})
    said = drawing.values("teach", splits=["train"], top_k=K, guided=GUIDES, endpoint=ENDPOINT, teacher="endpoint:big")
    said |= {"tokenizer": "dir:t", "chat_schema": "gemma2"}
    inputs = {"prompts": data, "teacher": artifacts.named("endpoint", "big"), "tokenizer": teacher}
    (tmp_path / "out").mkdir()
    outcome = teach.run(teach.Settings.parse(said), inputs, tmp_path / "out")
    rows = store.read(tmp_path / "out", "train")
    kept = topk.Store.open(tmp_path / "out")
    need_fit(kept, student(tokenizer), temperature=1.0, block=None, rows=rendered(rows, tokenizer))  # type: ignore[arg-type]
    told = guided(rows[1].messages, "Name the concern.")  # type: ignore[union-attr]
    assert server.requests[-1]["prompt"] == render(told, tokenizer, "gemma2").ids
    drawn = 2 * (7 + 5)
    assert outcome.metrics["tokens_spent"] == drawn + sum(len(body["prompt"]) + 1 for body in server.requests[2:])


@pytest.mark.parametrize("harm", SERVED)
def test_and_of_a_server(server: LocalServer, teacher: Artifact, tmp_path: Path, harm: str) -> None:
    preset, changes, told = SERVED[harm]
    text = preset == "text"
    data = dataset(tmp_path, "text", *TEXTS) if text else dataset(tmp_path, "conversations", *CHATS)
    with pytest.raises(UserError, match=told):
        ask(data, tmp_path / "out", teacher, preset, **changes)
    assert not server.requests
