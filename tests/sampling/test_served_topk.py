"""A teacher behind a server: what is asked, what comes back, and every way in which a server fails or does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_server import KEY, LocalServer, content, dying, status
from reading_server import completed, reading

from alignment.chat import tokenizers
from alignment.chat.render import render
from alignment.chat.tokenizers import Tokenizer
from alignment.chat.train import train
from alignment.chat.types import messages
from alignment.data.topk import Masked
from alignment.errors import DataError, UserError
from alignment.gemma import core
from alignment.gemma.presets import SHAPES, TokenIds
from alignment.sampling.decoding import Decoding
from alignment.sampling.endpoint import Endpoint, EndpointSettings
from alignment.sampling.served_topk import ROUNDING, ServedTopK, tails
from alignment.sampling.topk import top_k

NAMES = ["one", "two turns", "none like it"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    words = ["the cat sat on the mat and looked at the moon över the river. Question? Answer!\n"] * 20
    return tokenizers.load(train(words, 400, tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> torch.nn.Module:
    built = core.build(SHAPES["mini_small"], tokenizers.padded_vocab(tokenizer.vocab_size), TokenIds(), 0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2.0)
    return built.eval()


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> list[Masked]:
    said = [
        (("user", "Question?"), ("assistant", "The cat.")),
        (("user", "The moon?"), ("assistant", "On the river\nmat"), ("user", "And?"), ("assistant", "över 犬")),
        (("user", "zzz"), ("assistant", "!!")),
    ]
    return [tuple(render(messages(*turns), tokenizer, "gemma2", "all")) for turns in said]  # type: ignore[misc]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, tokenizer: Tokenizer) -> Iterator[LocalServer]:
    with LocalServer(complete=reading(model, tokenizer)) as started:
        started.name_it(monkeypatch)
        yield started


def asking(tokenizer: Tokenizer, journal: Path | None = None, k: int = 5, **said: Any) -> ServedTopK:
    values = {"concurrency": 4, "max_spend": None, "timeout": 5.0, "retries": 2, "back_off": 0.01}
    settings = EndpointSettings(**values | said)
    return ServedTopK.from_environment("local", journal, settings, k=k, tokenizer=tokenizer)


def test_they_are_those_of_the_model_in_memory(
    server: LocalServer, model: torch.nn.Module, tokenizer: Tokenizer, rows: list[Masked]
) -> None:
    told: list[int] = []
    found = asking(tokenizer).top_k(NAMES, rows, told.append)
    for (ids, mask), one, other in zip(rows, found, top_k(model, rows, 5, device="cpu"), strict=True):
        assert one.tokens_T.tolist() == [index for index, trained in zip(ids, mask, strict=True) if trained]
        assert one.ids_TK.shape == one.logprobs_TK.shape == (len(one.tokens_T), 5)
        # Equal logits may stand in either order, so ids are compared by what the other gives them.
        np.testing.assert_allclose(one.logprobs_TK, other.logprobs_TK, atol=1e-5)
        assert [set(some) for some in one.ids_TK.tolist()] == [set(some) for some in other.ids_TK.tolist()]
        # The server's is one minus a sum of fp32, and so right to some 1e-7 of the whole.
        np.testing.assert_allclose(np.exp(one.tail_T), np.exp(other.tail_T), atol=1e-6)
        assert one.tail_T.max() > -4
        assert (np.diff(one.logprobs_TK, axis=-1) <= 0).all()
    assert told == [1, 2, 3]


def test_what_is_sent(server: LocalServer, tokenizer: Tokenizer, rows: list[Masked]) -> None:
    asking(tokenizer, k=3).top_k(NAMES[:1], rows[:1])
    (body,) = server.requests
    assert body == {
        "model": "local",
        "prompt": list(rows[0][0]),
        "max_tokens": 1,
        "temperature": 1.0,
        "prompt_logprobs": 3,
        "add_special_tokens": False,
    }
    assert server.keys == {f"Bearer {KEY}"}


def test_nothing_is_asked_for_twice(
    server: LocalServer, tokenizer: Tokenizer, rows: list[Masked], tmp_path: Path
) -> None:
    journal = tmp_path / "parts" / "journal.jsonl"
    first = asking(tokenizer, journal).top_k(NAMES[:2], rows[:2])
    again = asking(tokenizer, journal)
    cost = sum(len(ids) + 1 for ids, _ in rows[:2])
    assert again.spent == cost
    # The same ids under another name are the same thing; with another mask they are not.
    ids, mask = rows[0]
    other = (ids, [trained and place + 1 < len(ids) for place, trained in enumerate(mask)])
    found = again.top_k(["renamed", NAMES[1], "masked"], [rows[0], rows[1], other])
    assert len(server.requests) == 3
    for one, kept in zip(first, found, strict=False):
        for part, same in zip(one, kept, strict=True):
            np.testing.assert_array_equal(part, same)
    np.testing.assert_array_equal(found[2].logprobs_TK, first[0].logprobs_TK[:-1])
    asking(tokenizer, journal, k=6).top_k(NAMES[:1], rows[:1])
    assert len(server.requests) == 4


@pytest.mark.parametrize("kept", ["AAAA", "?", ""])
def test_a_line_that_was_damaged_is_told(
    server: LocalServer, tokenizer: Tokenizer, rows: list[Masked], tmp_path: Path, kept: str
) -> None:
    journal = tmp_path / "journal.jsonl"
    asking(tokenizer, journal).top_k(NAMES[:1], rows[:1])
    line = json.loads(journal.read_text())
    journal.write_text(json.dumps(line | {"top_k": kept}) + "\n")
    with pytest.raises(DataError, match=rf"journal\.jsonl: the line of one is damaged(.|\n)*{line['digest']}"):
        asking(tokenizer, journal).top_k(NAMES[:1], rows[:1])


def test_answers_and_readings_share_a_journal_and_its_bound(
    server: LocalServer, tokenizer: Tokenizer, rows: list[Masked], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    settings = asking(tokenizer).settings
    drawn = Decoding(samples=1, temperature=0.7, top_p=0.9, max_new_tokens=20, seed=3)
    speaker = Endpoint.from_environment("local", journal, settings)
    (said,) = speaker.reply([messages(("user", "Hi"))], ["a"], drawn)
    asking(tokenizer, journal).top_k(NAMES[:1], rows[:1])
    spent = speaker.spent + len(rows[0][0]) + 1
    again = Endpoint.from_environment("local", journal, settings)
    assert again.spent == asking(tokenizer, journal).spent == spent
    assert again.reply([messages(("user", "Hi"))], ["a"], drawn) == [said]
    assert len(server.requests) == 2
    with pytest.raises(UserError, match=rf"{spent} tokens are spent, and endpoint\.max_spend={spent}"):
        asking(tokenizer, journal, max_spend=spent).top_k(NAMES[1:2], rows[1:2])


def test_a_server_that_drops_half_way_is_asked_for_the_rest(
    server: LocalServer, tokenizer: Tokenizer, rows: list[Masked], tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    server.faults.extend([None, dying, dying, dying])
    server.always = dying
    with pytest.raises(UserError, match=r"two turns: endpoint:local gave no usable answer in 3 attempts") as raised:
        asking(tokenizer, journal, concurrency=1).top_k(NAMES, rows)
    assert "answers so far are kept" in str(raised.value)
    server.always = None
    server.faults.clear()
    before = len(server.requests)
    whole = asking(tokenizer, journal).top_k(NAMES, rows)
    assert len(server.requests) == before + 2
    for one, other in zip(whole, asking(tokenizer).top_k(NAMES, rows), strict=True):
        np.testing.assert_array_equal(one.logprobs_TK, other.logprobs_TK)


def told_of(ids: list[int], tokenizer: Tokenizer, k: int = 5, change: Callable[[list[Any]], Any] | None = None) -> Any:
    """Entries of equal weight for every token, some of them changed; the token itself is the likeliest."""
    told: list[Any] = [None]
    for token in ids[1:]:
        control = token in tokenizer.control_ids
        spelled = tokenizer.spelling(token) if control else tokenizer.decode([token])
        others = [index for index in range(7, 7 + k) if index != token][: k - 1]
        entries = {str(token): {"logprob": -0.5, "rank": 1, "decoded_token": spelled}}
        told.append(entries | {str(i): {"logprob": -4.0, "rank": 2, "decoded_token": "?"} for i in others})
    return completed((change(told) or told) if change else told, len(ids))


def last(**changes: Any) -> Callable[[list[Any]], None]:
    """Change the entry of the last token itself."""

    def change(told: list[Any]) -> None:
        next(iter(told[-1].values())).update(changes)

    return change


UNUSABLE = {
    "NaN": (last(logprob=math.nan), "is no finite number, at trained token"),
    "infinity": (last(logprob=-math.inf), "is no finite number, at trained token"),
    "text": (last(logprob="x"), "of another form than vLLM's at trained token .* \\(TypeError\\)"),
    "true": (last(logprob=True), "of another form"),
    "no number": (lambda told: next(iter(told[-1].values())).pop("logprob") and None, "of another form .*KeyError"),
    "null in the middle": (lambda told: [*told[:-1], None], "of another form"),
    "not the token": (lambda told: told[-1].pop(next(iter(told[-1]))) and None, "of another form .*KeyError"),
    "fewer than asked for": (lambda told: told[-1].popitem() and None, "4 log-probabilities at trained token"),
    "fewer tokens": (lambda told: told[:-1], r"log-probabilities of \d+ tokens, and \d+ were sent"),
    "one more token": (lambda told: [None, *told], r"log-probabilities of \d+ tokens, and \d+ were sent"),
    "a word": (lambda told: "none", "log-probabilities of none tokens"),
}


@pytest.mark.parametrize("harm", UNUSABLE)
def test_what_is_of_no_use_is_asked_for_again_and_then_told_by_row(
    server: LocalServer, tokenizer: Tokenizer, rows: list[Masked], tmp_path: Path, harm: str
) -> None:
    change, told = UNUSABLE[harm]
    ids = list(rows[0][0])
    nonsense = content(json.dumps(told_of(ids, tokenizer, change=change)).encode())
    server.faults.append(nonsense)
    asking(tokenizer).top_k(NAMES[:1], rows[:1])
    assert len(server.requests) == 2
    server.always = nonsense
    with pytest.raises(UserError, match=rf"one: endpoint:local gave no usable answer in 3 attempts(.|\n)*{told}"):
        asking(tokenizer, tmp_path / "journal.jsonl").top_k(NAMES[:1], rows[:1])
    # Nonsense is paid for as well, and is no answer.
    again = asking(tokenizer, tmp_path / "journal.jsonl")
    assert again.spent == 3 * (len(ids) + 1)
    server.always = None
    assert len(again.top_k(NAMES[:1], rows[:1])) == 1


def test_without_a_fault_such_an_answer_is_taken(server: LocalServer, tokenizer: Tokenizer, rows: list[Masked]) -> None:
    """So that the cases above fail for what was changed. e^−0.5 + 4 · e^−4 = 0.67979; log(1 − 0.67979) = −1.13879."""
    server.always = content(told_of(list(rows[0][0]), tokenizer))
    (row,) = asking(tokenizer).top_k(NAMES[:1], rows[:1])
    np.testing.assert_allclose(row.tail_T, -1.13879, atol=1e-4)
    np.testing.assert_array_equal(row.ids_TK[:, 0], row.tokens_T)


REFUSED = {
    "no prompt_logprobs": (lambda told: None, r"one: endpoint:local tells nothing of a prompt's tokens(.|\n)*vLLM's"),
    "logits": (last(logprob=12.5), r"one: .* are no log-probabilities(.|\n)*raw_logprobs"),
    "above 1": (last(logprob=-0.01), r"are no log-probabilities(.|\n)*sum to more than 1"),
    "another spelling": (
        last(decoded_token="Hund"),
        r"one: the model behind endpoint:local has another tokenizer(.|\n)*Id \d+ is 'Hund' there and '<eos>' here",
    ),
    "an id beyond": (
        lambda told: told[-1].update({"448": {"logprob": -9999.0, "rank": 9, "decoded_token": "q"}}),
        r"has another tokenizer(.|\n)*It names id 448; ours has 400 pieces",
    ),
}


@pytest.mark.parametrize("harm", REFUSED)
def test_what_asking_again_cannot_mend_is_told_at_once(
    server: LocalServer, tokenizer: Tokenizer, rows: list[Masked], harm: str
) -> None:
    change, told = REFUSED[harm]
    answer = told_of(list(rows[0][0]), tokenizer, change=change)
    if harm == "no prompt_logprobs":
        del answer["choices"][0]["prompt_logprobs"]
    server.always = content(json.dumps(answer).encode())
    with pytest.raises(UserError, match=told):
        asking(tokenizer).top_k(NAMES[:1], rows[:1])
    assert len(server.requests) == 1


@pytest.mark.parametrize("way", ["stripped", "marked", "id", "none", "half", "empty"])
def test_ways_of_spelling_a_piece_are_not_taken_for_another_tokenizer(
    server: LocalServer, tokenizer: Tokenizer, rows: list[Masked], way: str
) -> None:
    ways: dict[str, Callable[[int, str], str | None]] = {
        "stripped": lambda index, text: text.strip(),
        "marked": lambda index, text: text.replace(" ", "▁"),
        "id": lambda index, text: f"token_id:{index}",
        "none": lambda index, text: None,
        "half": lambda index, text: "�",
        "empty": lambda index, text: "",
    }

    def change(told: list[Any]) -> None:
        for entries in told[1:]:
            for index, entry in entries.items():
                entry["decoded_token"] = ways[way](int(index), entry["decoded_token"])

    server.always = content(told_of(list(rows[1][0]), tokenizer, change=change))
    asking(tokenizer).top_k(NAMES[1:2], rows[1:2])


def test_the_servers_limit_is_told(server: LocalServer, tokenizer: Tokenizer, rows: list[Masked]) -> None:
    server.always = status(400, "Requested prompt logprobs of 64, which is greater than max allowed: 20")
    with pytest.raises(UserError, match=r"one: endpoint:local refuses(.|\n)*--max-logprobs 64` \(vLLM allows 20"):
        asking(tokenizer, k=64).top_k(NAMES[:1], rows[:1])
    server.always = status(400, "This model's maximum context length is 16 tokens")
    with pytest.raises(UserError, match=r"maximum context(.|\n)*Mend that and start") as raised:
        asking(tokenizer, k=64).top_k(NAMES[:1], rows[:1])
    assert "max-logprobs" not in str(raised.value)


def test_the_tail_is_what_fp32_can_tell() -> None:
    """log(1 − Σ): of ½ + ¼ it is log ¼; of 1 − 10⁻⁴ it keeps its digits; of 1 and above it is what rounding leaves."""
    halves = np.log([[0.5, 0.25]])
    near = np.log([[0.9999, 1e-30]])
    above = np.array([[0.0, -20.0], [3e-7, -9999.0], [-1e-9, -9999.0]])
    found = tails(np.concatenate([halves, near, above]))
    np.testing.assert_allclose(found[:2], np.log([0.25, 1e-4]), rtol=1e-6)
    np.testing.assert_allclose(found[2:], math.log(ROUNDING), rtol=1e-6)
    assert found.dtype == np.float32
