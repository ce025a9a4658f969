"""Teacher answers: what is asked, what is kept, how it goes on after a stop, and the log-probabilities beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pytest
import torch
from drawing import Speaker, contents
from local_server import ANSWER_TOKENS, KEY, PROMPT_TOKENS, LocalServer, status

from alignment import artifacts
from alignment.artifacts import Artifact, Outcome
from alignment.chat import tokenizers
from alignment.chat.render import render
from alignment.chat.train import train
from alignment.chat.types import Conversation, Messages, Prompt, messages
from alignment.data import store, topk
from alignment.data.rows import Split
from alignment.errors import UserError
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.parts import FOLDER
from alignment.sampling.decoding import Reply
from alignment.sampling.taught import Asked, Guide, guide_for, guided, verdicts
from alignment.stages import teach
from alignment.training import policies
from alignment.training.policies import Policy

GUIDES = [
    {"name": "attribution", "tags": ["text", "quote"], "instruction": "Use the text."},
    {"name": "refusal", "tags": ["unsafe"], "instruction": "Name the concern."},
]


def prompt(number: int | str, *tags: str, system: str = "") -> Prompt:
    asked = (("user", f"Question {number}?"),)
    return Prompt(messages(*((("system", system),) if system else ()), *asked), f"p{number}", tags)  # type: ignore[arg-type]


def prompts_in(tmp_path: Path, **splits: list[Prompt]) -> Artifact:
    rows: dict[Split, Any] = splits or {"train": [prompt(n) for n in range(5)], "valid": [prompt(7), prompt(8)]}  # type: ignore[assignment]
    return drawing.dataset(tmp_path / "prompts", "prompts", rows)


def settings(**changes: Any) -> teach.Settings:
    return teach.Settings.parse(drawing.values("teach", **{"guided": GUIDES, "engine__device": "cpu", **changes}))


def taught(monkeypatch: pytest.MonkeyPatch, speaker: Speaker, dataset: Artifact, out: Path, **changes: Any) -> Outcome:
    drawing.let_speak(monkeypatch, speaker)
    out.mkdir(exist_ok=True)
    return teach.run(settings(**changes), {"prompts": dataset, "teacher": drawing.POLICY}, out)


def said(turns: Messages, key: str) -> str:
    return f"Answer to {turns[-1].content} {key}"


def test_the_shipped_values_are_whole() -> None:
    shipped = teach.Settings.parse(drawing.values("teach"))
    assert [(guide.name, guide.tags) for guide in shipped.guided] == [("refusal", ["unsafe"])]
    preset = drawing.values("teach/gemma2")["guided"]
    assert [(guide["name"], guide["tags"]) for guide in preset] == [
        ("attribution", ["attribution"]),
        ("hedging", ["unanswerable"]),
        ("refusal", ["unsafe"]),
    ]
    refusal = preset[2]["instruction"]
    assert refusal.index("concern") < refusal.index("risk") < refusal.index("information")


def test_an_instruction_goes_before_the_first_user_message() -> None:
    turns = messages(("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"))
    assert guided(turns, "Do.") == messages(("system", "S"), ("user", "Do.\n\nA"), ("assistant", "B"), ("user", "C"))
    guides = [Guide(**guide) for guide in GUIDES]  # type: ignore[arg-type]
    assert guide_for(("x", "unsafe", "quote"), guides) is guides[0]
    assert guide_for(("unsafe",), guides) is guides[1]
    assert guide_for(("x",), guides) is guide_for((), guides) is None


def test_rows_are_the_prompts_and_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path, train=[prompt(0, "a", "b"), prompt(1, system="Be brief.")], valid=[prompt(2)])
    outcome = taught(monkeypatch, Speaker(said), dataset, tmp_path / "out")
    rows = store.read(tmp_path / "out", "train")
    assert rows == [
        Conversation((*prompt(0).messages, *messages(("assistant", "Answer to Question 0? p0:0"))), "p0", ("a", "b")),
        Conversation(
            (*prompt(1, system="Be brief.").messages, *messages(("assistant", "Answer to Question 1? p1:0"))), "p1"
        ),
    ]
    assert [row.id for row in store.read(tmp_path / "out", "valid")] == ["p2"]
    assert outcome.kind == "dataset"
    assert outcome.headline == "rows"
    assert outcome.metrics["rows"] == 3
    assert (outcome.metrics["finished"], outcome.metrics["tokens"], outcome.metrics["guided"]) == (1.0, 5.0, 0.0)
    assert outcome.notes["teacher"] == "speaker"
    assert store.card(tmp_path / "out")["teacher"] == "speaker"
    assert "tokens_spent" not in outcome.metrics


def test_guidance_is_asked_with_and_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path, train=[prompt(0, "unsafe", "x"), prompt(1, "y")])
    speaker = Speaker(said)
    outcome = taught(monkeypatch, speaker, dataset, tmp_path / "out", splits=["train"])
    assert dict(speaker.asked)["p0"] == messages(("user", "Name the concern.\n\nQuestion 0?"))
    assert dict(speaker.asked)["p1"] == prompt(1).messages
    guided_row, plain = store.read(tmp_path / "out", "train")
    assert guided_row.messages[:-1] == prompt(0).messages
    assert guided_row.tags == ("unsafe", "x", "guided:refusal")
    assert plain.tags == ("y",)
    assert outcome.metrics["guided"] == 1


def test_every_answer_has_a_fate() -> None:
    from alignment.data.derive import Place

    asked = Asked(Place("prompts", "valid", 1, "p"), Prompt(prompt(0).messages, "p"), prompt(0).messages, None)
    replies = [
        Reply("one", 1, True),
        Reply(" \n", 1, True),
        Reply("one", 1, True),
        Reply("cu", 9, False),
        Reply("", 0, False),
    ]
    found = verdicts(asked, replies, "drop")
    assert [(verdict.id, verdict.fate, verdict.told) for verdict in found] == [
        ("p#0", "kept", ""),
        ("p#1", "dropped", "empty answer"),
        ("p#2", "dropped", "the same answer as p#0"),
        ("p#3", "dropped", "unfinished answer"),
        ("p#4", "dropped", "empty answer"),
    ]
    assert [(verdict.split, verdict.copies) for verdict in found] == [("valid", 1)] + [(None, 0)] * 4
    kept = verdicts(asked, replies, "keep")
    assert [verdict.fate for verdict in kept] == ["kept", "dropped", "dropped", "kept", "dropped"]
    assert kept[3].row is not None
    # What is dropped as unfinished is not what a later answer repeats.
    late = verdicts(asked, [Reply("one", 1, False), Reply("one", 1, True)], "drop")
    assert [verdict.fate for verdict in late] == ["dropped", "kept"]


def test_the_ledger_has_every_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(turns: Messages, key: str) -> str:
        return {"p0": "the same", "p1": "", "p2": "cut …"}.get(key.partition(":")[0], key)

    outcome = taught(monkeypatch, Speaker(answer), prompts_in(tmp_path), tmp_path / "out", count=4, decoding__samples=2)
    lines = [line for line in store.entries(tmp_path / "out") if line.derived_from is None]
    assert [(line.file, line.line, line.id, line.fate, line.copies) for line in lines] == [
        ("train", 1, "p0", "kept", 1),
        ("train", 2, "p1", "dropped", 0),
        ("train", 3, "p2", "dropped", 0),
        ("train", 4, "p3", "kept", 2),
        ("train", 5, "p4", "not_drawn", 0),
        ("valid", 1, "p7", "kept", 2),
        ("valid", 2, "p8", "kept", 2),
    ]
    assert lines[4].reason == "beyond the count"
    assert outcome.metrics["rows"] == 7
    assert outcome.metrics["finished"] == 10 / 12
    assert [row.id for row in store.read(tmp_path / "out", "train")] == ["p0#0", "p3#0", "p3#1"]
    assert store.card(tmp_path / "out")["sources"]["prompts"]["reasons"] == {
        "empty answer": 2,
        "unfinished answer": 2,
        "the same answer": 1,
    }


def test_a_teacher_that_stops_halfway_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teach, "PART", 2)
    dataset = prompts_in(tmp_path)
    taught(monkeypatch, Speaker(said), dataset, tmp_path / "whole", decoding__samples=2)
    with pytest.raises(KeyboardInterrupt):
        taught(monkeypatch, Speaker(said, patience=2), dataset, tmp_path / "out", decoding__samples=2)
    assert contents(tmp_path / "out") == {}
    second = Speaker(said)
    taught(monkeypatch, second, dataset, tmp_path / "out", decoding__samples=2)
    assert [key for key, _ in second.asked] == ["p4", "p7", "p8"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


ENDPOINT = {"concurrency": 2, "max_spend": None, "timeout": 5.0, "retries": 0, "back_off": 0.01}


def from_server(dataset: Artifact, out: Path, **changes: Any) -> Outcome:
    out.mkdir(exist_ok=True)
    inputs = {"prompts": dataset, "teacher": artifacts.named("endpoint", "big")}
    return teach.run(settings(**{"teacher": "endpoint:big", "endpoint": ENDPOINT, **changes}), inputs, out)


def test_a_server_that_stops_halfway_is_paid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path)
    with LocalServer() as server:
        server.name_it(monkeypatch)
        from_server(dataset, tmp_path / "whole")
        assert len(server.requests) == 7
        asked = len(server.requests)
        server.faults.extend([None] * 3 + [status(400, "enough")] * 4)
        with pytest.raises(UserError, match=r"refuses the request(.|\n)*answers so far are kept"):
            from_server(dataset, tmp_path / "out", endpoint={**ENDPOINT, "concurrency": 1})
        server.faults.clear()
        answered = 3
        failed = len(server.requests) - asked - answered
        outcome = from_server(dataset, tmp_path / "out")
        assert len(server.requests) == asked + failed + 7
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert outcome.metrics["tokens_spent"] == 7 * (PROMPT_TOKENS + ANSWER_TOKENS)
    assert outcome.notes["teacher"] == "endpoint:big"
    assert "device" not in outcome.notes
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_bound_keeps_what_was_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path)
    with LocalServer() as server:
        server.name_it(monkeypatch)
        with pytest.raises(UserError, match=r"tokens are spent, and endpoint\.max_spend=30"):
            from_server(dataset, tmp_path / "out", endpoint={**ENDPOINT, "max_spend": 30})
        assert (tmp_path / "out" / FOLDER / "journal.jsonl").is_file()
        from_server(dataset, tmp_path / "out")
        assert len(server.requests) == 7


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"splits": ["test"]}, r"has no split 'test'\nIt has train \(5 rows\), valid \(2 rows\)"),
        ({"splits": ["train", "train"]}, "names a split twice"),
        ({"top_k": 8}, r"tokenizer=null: teacher=endpoint:big, top_k=8(.|\n)*tokenizer=…"),
    ],
)
def test_what_could_only_end_badly_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    with LocalServer() as server:
        server.name_it(monkeypatch)
        with pytest.raises(UserError, match=told):
            from_server(prompts_in(tmp_path), tmp_path / "out", **changes)
    assert not server.requests


def test_conversations_are_no_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Conversation(messages(("user", "Hi"), ("assistant", "Hello")), "c")]
    dataset = drawing.dataset(tmp_path / "c", "conversations", {"train": rows})
    with pytest.raises(UserError, match="holds conversations"):
        taught(monkeypatch, Speaker(said), dataset, tmp_path / "out", splits=["train"])


# ── a model of ours, and its log-probabilities ───────────────────────────────────────────────────


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of nobody's, which says anything."""
    out = tmp_path_factory.mktemp("teacher")
    words = ["the cat sat on the mat and looked at the moon over the river. Question? Answer!"] * 20
    tokenizer = tokenizers.load(train(words, 400, out))
    model = core.build(SHAPES["mini_small"], tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    policies.save_policy(Policy(model, tokenizer, "gemma2"), out)
    return artifacts.foreign(out, f"dir:{out}")


def with_top_k(teacher: Artifact, dataset: Artifact, out: Path) -> Outcome:
    out.mkdir(exist_ok=True)
    said = settings(top_k=5, unfinished="keep", decoding__max_new_tokens=12, decoding__samples=2)
    return teach.run(said, {"prompts": dataset, "teacher": teacher}, out)


@torch.no_grad()
def test_the_log_probabilities_are_the_teachers_under_its_guidance(teacher: Artifact, tmp_path: Path) -> None:
    dataset = prompts_in(tmp_path, train=[prompt(0, "unsafe"), prompt(1)], valid=[prompt(2)])
    outcome = with_top_k(teacher, dataset, tmp_path / "out")
    kept = topk.Store.open(tmp_path / "out")
    tokenizer, model = tokenizers.load(teacher.path), core.load(teacher.path).double()
    assert kept.teacher.tokenizer == tokenizer.digest
    assert (kept.teacher.schema, kept.teacher.k, kept.teacher.temperature) == ("gemma2", 5, 1.0)
    assert kept.teacher.vocabulary == model.config.vocab_size
    rows = [row for split in ("train", "valid") for row in store.read(tmp_path / "out", split)]
    assert list(kept) == [row.id for row in rows]
    tokens = 0
    for row in rows:
        found = kept.row(row.id)
        student = render(row.messages, tokenizer, "gemma2", "last")
        assert found.tokens_T.tolist() == [i for i, trained in zip(student.ids, student.mask, strict=True) if trained]
        turns = guided(row.messages[:-1], "Name the concern.") if "guided:refusal" in row.tags else row.messages[:-1]
        ids = render((*turns, row.messages[-1]), tokenizer, "gemma2", "last").ids
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, len(ids) - len(found.tokens_T) - 1 : -1]
        logprobs = logits.double().log_softmax(-1)
        np.testing.assert_allclose(found.logprobs_TK, logprobs.topk(5).values.numpy(), atol=5e-3)
        np.testing.assert_allclose(np.exp(found.logprobs_TK).sum(-1) + np.exp(found.tail_T), 1, atol=5e-3)
        tokens += len(found.tokens_T)
    assert sum("guided:refusal" in row.tags for row in rows) == 2
    assert outcome.metrics["top_k_tokens"] == tokens
    assert outcome.notes["device"] == "cpu"


def test_log_probabilities_go_on_after_a_stop(
    teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.sampling import topk as computing

    monkeypatch.setattr(topk, "ROWS_A_SHARD", 3)
    dataset = prompts_in(tmp_path)
    with_top_k(teacher, dataset, tmp_path / "whole")
    whole, calls = computing.top_k, 0

    def breaking(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return whole(*given, **named)

    monkeypatch.setattr(computing, "top_k", breaking)
    with pytest.raises(KeyboardInterrupt):
        with_top_k(teacher, dataset, tmp_path / "out")
    with pytest.raises(UserError, match="no top-k"):
        topk.Store.open(tmp_path / "out")
    with_top_k(teacher, dataset, tmp_path / "out")
    # 14 answers are 5 shards: 2 before the stop, 3 after it.
    assert calls == 3 + 3
    for path in (tmp_path / "whole" / "topk").iterdir():
        assert (tmp_path / "out" / "topk" / path.name).read_bytes() == path.read_bytes()


def test_a_prompt_that_stands_twice_is_stored_once(teacher: Artifact, tmp_path: Path) -> None:
    dataset = prompts_in(tmp_path, train=[prompt(0), prompt(0)], valid=[prompt(1)])
    outcome = with_top_k(teacher, dataset, tmp_path / "out")
    assert len(store.read(tmp_path / "out", "train")) == 4
    kept = topk.Store.open(tmp_path / "out")
    assert list(kept) == ["p0#0", "p0#1", "p1#0", "p1#1"]
    assert outcome.metrics["top_k_tokens"] == sum(len(kept.row(name).tokens_T) for name in kept)


def test_more_than_the_vocabulary_is_refused_before_anything_is_drawn(teacher: Artifact, tmp_path: Path) -> None:
    inputs = {"prompts": prompts_in(tmp_path), "teacher": teacher}
    with pytest.raises(UserError, match="top_k=448: the teacher has no more than 448 pieces"):
        teach.run(settings(top_k=448), inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_the_miniature(smoke: Path, tmp_path: Path) -> None:
    """From artifacts on disk to a dataset and its log-probabilities, with the shipped guidance."""
    from alignment.store import Store

    latest = Store(smoke).latest
    inputs = {"prompts": latest("prompts"), "teacher": latest("sft")}
    split = next(iter(store.card(inputs["prompts"].path)["rows"]))
    values = drawing.values(
        "teach",
        splits=[split],
        count=48,
        top_k=16,
        unfinished="keep",
        decoding__max_new_tokens=24,
        engine__device="cpu",
    )
    outcome = teach.run(teach.Settings.parse(values), inputs, tmp_path)
    rows = store.read(tmp_path, split)
    assert 0 < outcome.metrics["rows"] == len(rows) <= 48
    guides = {tag for row in rows for tag in row.tags if tag.startswith("guided:")}  # type: ignore[union-attr]
    assert guides <= {"guided:attribution", "guided:hedging", "guided:refusal"}
    assert guides
    assert len(topk.Store.open(tmp_path)) == len(rows)
    assert store.world_of(tmp_path) is not None
