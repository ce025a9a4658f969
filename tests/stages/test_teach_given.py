"""What a teacher in memory thinks of rows as they are: which tokens, under which guidance, and once."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import drawing
import given
import numpy as np
import pytest
import torch
from drawing import contents
from given import CHATS, GUIDES, TEXTS, K, M, check, dataset, logprobs, read, rendered, student, turns

from alignment.artifacts import Artifact
from alignment.chat import tokenizers
from alignment.chat.render import render
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.types import Conversation, Text
from alignment.data import store, topk
from alignment.data.pieces import pieces
from alignment.data.topk_fit import need_fit
from alignment.errors import UserError
from alignment.gemma import core
from alignment.sampling.taught import guided


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return given.made(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def tokenizer(teacher: Artifact) -> Tokenizer:
    return tokenizers.load(teacher.path)


@pytest.fixture(scope="module")
def model(teacher: Artifact) -> torch.nn.Module:
    return core.load(teacher.path).eval()


def test_conversations_stay_as_they_are_and_every_trained_token_is_thought_of(
    teacher: Artifact, tokenizer: Tokenizer, model: torch.nn.Module, tmp_path: Path
) -> None:
    more = Conversation(turns("Question?", "Answer!"), "held")
    data = dataset(tmp_path, "conversations", *CHATS, valid=[more])
    outcome = read(teacher, data, tmp_path / "out", splits=["train", "valid"])
    assert store.read(tmp_path / "out", "train") == CHATS
    assert store.read(tmp_path / "out", "valid") == [more]
    kept = topk.Store.open(tmp_path / "out")
    assert kept.teacher == topk.Teacher(
        str(teacher.step), tokenizer.digest, "gemma2", model.config.vocab_size, K, M, 1.0, None
    )
    # What nothing is learned from has no entry.
    assert list(kept) == ["one", "two", "end", "held"]
    for row in (*CHATS[:3], more):
        ids, mask = render(row.messages, tokenizer, "gemma2", row.train)
        found = kept.row(row.id, list(compress(ids, mask)))
        check(found, logprobs(model, ids, mask))
    assert len(kept.row("two").tokens_T) > len(kept.row("end").tokens_T)
    tokens = sum(len(kept.row(name).tokens_T) for name in kept)
    assert (outcome.kind, outcome.headline, outcome.metrics["rows"]) == ("dataset", "rows", 5)
    assert outcome.metrics["top_k_tokens"] == tokens
    assert outcome.notes["kind"] == "conversations"
    assert outcome.notes["device"] == "cpu"
    assert "tokens_spent" not in outcome.metrics
    card = store.card(tmp_path / "out")
    assert (card["teacher"], card["top_k"], card["made_by"]) == (teacher.step, K, "teach")
    assert card["fates"]["kept"] == 5


def test_a_student_that_reads_the_same_fits(teacher: Artifact, tokenizer: Tokenizer, tmp_path: Path) -> None:
    read(teacher, dataset(tmp_path, "conversations", *CHATS), tmp_path / "out")
    kept, tokens = topk.Store.open(tmp_path / "out"), student(tokenizer)
    need_fit(kept, tokens, temperature=1.0, block=None, rows=rendered(CHATS[:3], tokenizer))
    all_of_it = [replace(row, train="all") for row in CHATS[:3]]
    with pytest.raises(UserError, match="row 'end' has other trained tokens"):
        need_fit(kept, tokens, temperature=1.0, block=None, rows=rendered(all_of_it, tokenizer))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="in another order"):
        need_fit(kept, tokens, temperature=1.0, block=None, rows=rendered(CHATS[2::-1], tokenizer))


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_at_another_temperature(
    teacher: Artifact, tokenizer: Tokenizer, model: torch.nn.Module, tmp_path: Path, temperature: float
) -> None:
    read(teacher, dataset(tmp_path, "conversations", *CHATS), tmp_path / "out", top_k_temperature=temperature)
    kept = topk.Store.open(tmp_path / "out")
    assert kept.teacher.temperature == temperature
    ids, mask = render(CHATS[1].messages, tokenizer, "gemma2")
    check(kept.row("two"), logprobs(model, ids, mask, temperature))


def test_guidance_is_thought_under_and_not_stored(
    teacher: Artifact, tokenizer: Tokenizer, model: torch.nn.Module, tmp_path: Path
) -> None:
    read(teacher, dataset(tmp_path, "conversations", *CHATS), tmp_path / "out", guided=GUIDES)
    assert store.read(tmp_path / "out", "train") == CHATS
    kept = topk.Store.open(tmp_path / "out")
    need_fit(kept, student(tokenizer), temperature=1.0, block=None, rows=rendered(CHATS[:3], tokenizer))
    ids, mask = render(guided(CHATS[0].messages, "Name the concern."), tokenizer, "gemma2")
    check(kept.row("one"), logprobs(model, ids, mask))
    ids, mask = render(CHATS[1].messages, tokenizer, "gemma2")
    check(kept.row("two"), logprobs(model, ids, mask))


def test_text_is_cut_as_it_is_for_pre_training(
    teacher: Artifact, tokenizer: Tokenizer, model: torch.nn.Module, tmp_path: Path
) -> None:
    data = dataset(tmp_path, "text", *TEXTS, valid=[Text("the moon", "d")])
    outcome = read(teacher, data, tmp_path / "out", "text", block=16, splits=["train", "valid"])
    assert outcome.notes["kind"] == "text"
    assert store.read(tmp_path / "out", "train") == TEXTS
    kept = topk.Store.open(tmp_path / "out")
    assert (kept.teacher.schema, kept.teacher.block) == ("", 16)
    cut = [piece for split in ("train", "valid") for piece in pieces(data.path, split, tokenizer, 16)]  # type: ignore[arg-type]
    assert list(kept) == [piece.name for piece in cut]
    assert len(cut) > 5
    for piece in cut:
        found = kept.row(piece.name, piece.ids[1:])
        check(found, logprobs(model, piece.ids, piece.mask))
    own = [(piece.name, piece.ids[1:]) for piece in cut]
    need_fit(kept, student(tokenizer), temperature=1.0, block=16, rows=own)
    assert outcome.metrics["top_k_tokens"] == sum(len(piece.ids) - 1 for piece in cut)


def test_the_first_of_them(teacher: Artifact, tmp_path: Path) -> None:
    read(teacher, dataset(tmp_path, "conversations", *CHATS), tmp_path / "out", count=2)
    assert store.read(tmp_path / "out", "train") == CHATS[:2]
    assert list(topk.Store.open(tmp_path / "out")) == ["one", "two"]
    fates = [(line.id, line.fate, line.reason) for line in store.entries(tmp_path / "out")]
    assert fates == [
        ("one", "kept", ""),
        ("two", "kept", ""),
        ("end", "not_drawn", "beyond the count"),
        ("none", "not_drawn", "beyond the count"),
    ]


def test_a_row_that_stands_twice_is_thought_of_once(teacher: Artifact, tmp_path: Path) -> None:
    outcome = read(teacher, dataset(tmp_path, "conversations", *CHATS[:2], CHATS[0]), tmp_path / "out")
    assert [row.id for row in store.read(tmp_path / "out", "train")] == ["one", "two", "one"]
    kept = topk.Store.open(tmp_path / "out")
    assert list(kept) == ["one", "two"]
    assert outcome.metrics["top_k_tokens"] == sum(len(row.tokens_T) for row in kept.rows(["one", "two"]))
    other = replace(CHATS[1], id="one")
    with pytest.raises(UserError, match="one: two rows of this name say different things"):
        read(teacher, drawing.dataset(tmp_path / "d", "conversations", {"train": [CHATS[0], other]}), tmp_path / "e")


def test_it_goes_on_after_a_stop(teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.sampling import topk as computing

    monkeypatch.setattr(topk, "ROWS_A_SHARD", 3)
    data = dataset(tmp_path, "text", *TEXTS)
    read(teacher, data, tmp_path / "whole", "text", block=16)
    whole, calls = computing.top_k, 0

    def breaking(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return whole(*given, **named)

    monkeypatch.setattr(computing, "top_k", breaking)
    with pytest.raises(KeyboardInterrupt):
        read(teacher, data, tmp_path / "out", "text", block=16)
    read(teacher, data, tmp_path / "out", "text", block=16)
    shards = sorted((tmp_path / "whole" / "topk").iterdir())
    assert calls == 2 + len(shards) - 2  # The index is among them, and the first shard is not made again.
    for path in shards:
        assert (tmp_path / "out" / "topk" / path.name).read_bytes() == path.read_bytes()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_row_beyond_the_teachers_context_is_told(teacher: Artifact, tmp_path: Path) -> None:
    long = Conversation(turns("Question? " * 60, "No."), "long")
    with pytest.raises(UserError, match=r"long: has \d+ tokens, and the teacher's context is 96"):
        read(teacher, dataset(tmp_path, "conversations", CHATS[0], long), tmp_path / "out")


def test_what_is_not_finite_names_the_row(teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.sampling import topk as computing

    whole = computing.top_k

    def overflowing(*given: Any, **named: Any) -> Any:
        found = whole(*given, **named)
        found[1].logprobs_TK[3, 0] = np.nan
        return found

    monkeypatch.setattr(computing, "top_k", overflowing)
    with pytest.raises(UserError, match=r"^two: a log-probability of the teacher is no finite number, at .* token 4"):
        read(teacher, dataset(tmp_path, "conversations", *CHATS), tmp_path / "out")
    assert not list((tmp_path / "out" / "topk").iterdir())
