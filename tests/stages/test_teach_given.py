"""What a teacher thinks of rows as they are: which tokens, under which guidance, from where, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pytest
import torch
import yaml
from drawing import contents
from local_server import LocalServer, dying
from reading_server import reading

from alignment import artifacts
from alignment.artifacts import Artifact, Outcome, Tokens
from alignment.chat import tokenizers
from alignment.chat.render import render
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.train import train
from alignment.chat.types import Conversation, Prompt, Text, messages
from alignment.data import store, topk
from alignment.data.pieces import pieces
from alignment.data.rows import Kind, Row
from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.parts import FOLDER
from alignment.sampling.taught import guided
from alignment.stages import teach
from alignment.training import policies
from alignment.training.policies import Policy

GUIDES = [{"name": "refusal", "tags": ["unsafe"], "instruction": "Name the concern."}]
ENDPOINT = {"concurrency": 1, "max_spend": None, "timeout": 5.0, "retries": 0, "back_off": 0.01}
K = 5


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
    return teach.Settings.parse(values(preset, **{"splits": ["train"], "top_k": K, **changes}))


def dataset(tmp_path: Path, kind: Kind, *rows: Row, **more: list[Row]) -> Artifact:
    return drawing.dataset(tmp_path / "data", kind, {"train": list(rows), **more})  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of nobody's, which expects something else at every token."""
    out = tmp_path_factory.mktemp("teacher")
    words = ["the cat sat on the mat and looked at the moon over the river. Question? Answer!"] * 20
    tokenizer = tokenizers.load(train(words, 400, out))
    shape = replace(SHAPES["mini_small"], context=96)
    model = core.build(shape, tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    policies.save_policy(Policy(model, tokenizer, "gemma2"), out)
    return artifacts.foreign(out, f"dir:{out}")


@pytest.fixture(scope="module")
def tokenizer(teacher: Artifact) -> Tokenizer:
    return tokenizers.load(teacher.path)


@pytest.fixture(scope="module")
def model(teacher: Artifact) -> torch.nn.Module:
    return core.load(teacher.path).eval()


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
    """Right to what fp16 keeps: 1 part in 2,048."""
    np.testing.assert_allclose(found.logprobs_TK, wanted.topk(K).values.numpy(), rtol=1e-3, atol=1e-4)
    own = np.take_along_axis(wanted.numpy(), found.ids_TK, -1)
    np.testing.assert_allclose(found.logprobs_TK, own, rtol=1e-3, atol=1e-4)
    rest = 1 - wanted.topk(K).values.exp().sum(-1)
    np.testing.assert_allclose(np.exp(found.tail_T), rest.numpy(), rtol=2e-3, atol=1e-5)


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
        str(teacher.step), tokenizer.digest, "gemma2", model.config.vocab_size, K, 1.0, None
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


def student(tokenizer: Tokenizer) -> Tokens:
    return Tokens(tokenizer.digest, tokenizer.vocab_size, 512, "gemma2")


def rendered(rows: list[Conversation], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    for row in rows:
        ids, mask = render(row.messages, tokenizer, "gemma2", row.train)
        yield row.id, list(compress(ids, mask))


def test_a_student_that_reads_the_same_fits(teacher: Artifact, tokenizer: Tokenizer, tmp_path: Path) -> None:
    read(teacher, dataset(tmp_path, "conversations", *CHATS), tmp_path / "out")
    kept, tokens = topk.Store.open(tmp_path / "out"), student(tokenizer)
    topk.need_fit(kept, tokens, temperature=1.0, block=None, rows=rendered(CHATS[:3], tokenizer))
    all_of_it = [replace(row, train="all") for row in CHATS[:3]]
    with pytest.raises(UserError, match="row 'end' has other trained tokens"):
        topk.need_fit(kept, tokens, temperature=1.0, block=None, rows=rendered(all_of_it, tokenizer))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="in another order"):
        topk.need_fit(kept, tokens, temperature=1.0, block=None, rows=rendered(CHATS[2::-1], tokenizer))


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
    topk.need_fit(kept, student(tokenizer), temperature=1.0, block=None, rows=rendered(CHATS[:3], tokenizer))
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
    topk.need_fit(kept, student(tokenizer), temperature=1.0, block=16, rows=own)
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


# ── behind a server ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, tokenizer: Tokenizer) -> Iterator[LocalServer]:
    with LocalServer(complete=reading(model.float(), tokenizer)) as started:
        started.name_it(monkeypatch)
        yield started


def ask(data: Artifact, out: Path, teacher: Artifact, preset: str = "given", **changes: Any) -> Outcome:
    out.mkdir(exist_ok=True)
    schema = None if preset == "text" else "gemma2"
    said = {"teacher": "endpoint:big", "tokenizer": "dir:t", "chat_schema": schema, "endpoint": ENDPOINT, **changes}
    inputs = {"data": data, "teacher": artifacts.named("endpoint", "big"), "tokenizer": teacher}
    return teach.run(settings(preset, **said), inputs, out)


@pytest.mark.parametrize("preset", ["given", "text"])
def test_a_server_thinks_as_its_model_does(server: LocalServer, teacher: Artifact, tmp_path: Path, preset: str) -> None:
    block = 16 if preset == "text" else None
    data = dataset(tmp_path, "text", *TEXTS) if block else dataset(tmp_path, "conversations", *CHATS)
    outcome = ask(data, tmp_path / "out", teacher, preset, block=block)
    read(teacher, data, tmp_path / "own", preset, block=block)
    served, own = topk.Store.open(tmp_path / "out"), topk.Store.open(tmp_path / "own")
    assert list(served) == list(own)
    assert served.teacher == replace(own.teacher, name="endpoint:big")
    for name in own:
        one, other = served.row(name), own.row(name)
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
    topk.need_fit(kept, student(tokenizer), temperature=1.0, block=None, rows=rendered(rows, tokenizer))  # type: ignore[arg-type]
    told = guided(rows[1].messages, "Name the concern.")  # type: ignore[union-attr]
    assert server.requests[-1]["prompt"] == render(told, tokenizer, "gemma2").ids
    drawn = 2 * (7 + 5)
    assert outcome.metrics["tokens_spent"] == drawn + sum(len(body["prompt"]) + 1 for body in server.requests[2:])


# ── what is refused ──────────────────────────────────────────────────────────────────────────────

DRAWING = {"samples": 1, "temperature": 0.5, "top_p": 1.0, "max_new_tokens": 64, "seed": 0}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no data": ("given", {"data": None}, "data=null: answers=given needs it"),
    "prompts besides": ("given", {"prompts": "step:p"}, r"prompts is given, and answers=given has no use for it"),
    "decoding": ("given", {"decoding": DRAWING}, r"decoding is given, (.|\n)*decoding=null"),
    "unfinished": ("given", {"unfinished": "drop"}, r"unfinished is given, (.|\n)*unfinished=null"),
    "nothing to store": ("given", {"top_k": 0}, "top_k=0: of rows that stay as they are"),
    "a block of conversations": ("given", {"block": 32}, r"block=32: the rows are conversations"),
    "no block of text": ("text", {"block": None}, r"block=null: the rows are text(.|\n)*teach/text"),
    "a block beyond the context": ("text", {"block": 97}, "block=97 is more than the teacher's context, 96"),
    "guided text": ("text", {"block": 16, "guided": GUIDES}, r"guided: text has no user"),
    "a tokenizer for a model here": ("given", {"tokenizer": "dir:t"}, r"tokenizer=dir:t: (.|\n)*tokenizer=null"),
    "a schema for a model here": ("given", {"chat_schema": "gemma1"}, r"chat_schema=gemma1: (.|\n)*chat_schema=null"),
    "too many": ("given", {"top_k": 448}, "top_k=448: the teacher has no more than 448 pieces"),
    "twice": ("given", {"splits": ["train", "train"]}, "names a split twice"),
    "no such split": ("given", {"splits": ["test"]}, "has no split 'test'"),
}
DRAWN: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": "step:d"}, r"data is given, and answers=draw has no use for it"),
    "block": ({"block": 32}, r"block is given, and answers=draw"),
    "no prompts": ({"prompts": None}, "prompts=null: answers=draw needs it"),
    "no decoding": ({"decoding": None}, "decoding=null: answers=draw needs it"),
    "a temperature of nothing": ({"top_k": 0, "top_k_temperature": 2.0}, r"top_k_temperature=2\.0: with top_k=0"),
}
SERVED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no tokenizer": ("given", {"tokenizer": None}, r"tokenizer=null: teacher=endpoint:big(.|\n)*tokenizer=…"),
    "no schema": ("given", {"chat_schema": None}, r"chat_schema=null: (.|\n)*chat_schema=…"),
    "a schema of text": ("text", {"block": 16, "chat_schema": "gemma2"}, r"chat_schema=gemma2: (.|\n)*null"),
    "a temperature": ("given", {"top_k_temperature": 2.0}, r"top_k_temperature=2\.0: endpoint:big is behind a server"),
}


@pytest.mark.parametrize("harm", REFUSED)
def test_what_would_be_accepted_and_not_used_is_refused(teacher: Artifact, tmp_path: Path, harm: str) -> None:
    preset, changes, told = REFUSED[harm]
    text = preset == "text"
    data = dataset(tmp_path, "text", *TEXTS) if text else dataset(tmp_path, "conversations", *CHATS)
    with pytest.raises(UserError, match=told):
        teach.run(settings(preset, **changes), {"data": data, "teacher": teacher}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", DRAWN)
def test_and_where_answers_are_drawn(teacher: Artifact, tmp_path: Path, harm: str) -> None:
    changes, told = DRAWN[harm]
    data = drawing.dataset(tmp_path / "p", "prompts", {"train": [Prompt(turns("Q?"), "p")]})
    said = teach.Settings.parse(drawing.values("teach", **{"splits": ["train"], "top_k": K, **changes}))
    with pytest.raises(UserError, match=told):
        teach.run(said, {"prompts": data, "teacher": teacher}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", SERVED)
def test_and_of_a_server(server: LocalServer, teacher: Artifact, tmp_path: Path, harm: str) -> None:
    preset, changes, told = SERVED[harm]
    text = preset == "text"
    data = dataset(tmp_path, "text", *TEXTS) if text else dataset(tmp_path, "conversations", *CHATS)
    with pytest.raises(UserError, match=told):
        ask(data, tmp_path / "out", teacher, preset, **changes)
    assert not server.requests


def test_prompts_have_nothing_to_read(teacher: Artifact, tmp_path: Path) -> None:
    data = drawing.dataset(tmp_path / "p", "prompts", {"train": [Prompt(turns("Q?"), "p")]})
    with pytest.raises(UserError, match=r"holds prompts(.|\n)*kind: conversations or text"):
        read(teacher, data, tmp_path / "out")
