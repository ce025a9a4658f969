"""A model behind a server: what is asked, what is kept, what is paid, and every way in which a server fails."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_server import ANSWER_TOKENS, KEY, PROMPT_TOKENS, LocalServer, completion, content, dying, slow, status

from alignment.chat.types import messages
from alignment.errors import DataError, UserError
from alignment.sampling import endpoint
from alignment.sampling.decoding import Decoding, Reply
from alignment.sampling.endpoint import Endpoint, EndpointSettings
from alignment.sampling.journal import Journal

COST = PROMPT_TOKENS + ANSWER_TOKENS
PROMPTS = [messages(("user", f"Question {number}?")) for number in range(6)]
NAMES = [f"p{number}" for number in range(6)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    with LocalServer() as started:
        started.name_it(monkeypatch)
        yield started


def decoding(**said: Any) -> Decoding:
    return Decoding(**{"samples": 1, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 20, "seed": 3} | said)


def teacher(journal: Path | None = None, **said: Any) -> Endpoint:
    values = {"concurrency": 4, "max_spend": None, "timeout": 5.0, "retries": 3, "back_off": 0.01}
    return Endpoint.from_environment("local", journal, EndpointSettings(**values | said))


def test_what_is_sent_and_what_comes_back(server: LocalServer) -> None:
    turns = messages(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    ((reply,),) = teacher().reply([turns], ["a"], decoding())
    (body,) = server.requests
    assert body["model"] == "local"
    assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][2]["content"] == "Hello"
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 20)
    assert 0 <= body["seed"] < 2**31
    assert reply == Reply(f"Bye {body['seed']}", ANSWER_TOKENS, True)
    assert server.keys == {f"Bearer {KEY}"}


def test_a_seed_is_that_of_the_key_and_the_sample(server: LocalServer) -> None:
    def seeds(names: list[str], **said: Any) -> list[list[str]]:
        found = teacher().reply(PROMPTS[:2], names, decoding(**said))
        return [[reply.text.split()[-1] for reply in samples] for samples in found]

    three = seeds(["a", "b"], samples=3)
    assert len({*three[0], *three[1]}) == 6
    assert seeds(["a", "b"], samples=1) == [[three[0][0]], [three[1][0]]]
    assert seeds(["b", "a"], samples=1) == [[three[1][0]], [three[0][0]]]
    assert seeds(["a", "b"], samples=1, seed=4) != [[three[0][0]], [three[1][0]]]
    assert len(server.requests) == 12


def test_answers_stand_in_the_order_of_the_prompts(server: LocalServer) -> None:
    server.faults.extend([slow(0.7), status(500)])
    told: list[int] = []
    replies = teacher(timeout=0.5).reply(PROMPTS, NAMES, decoding(samples=2), told.append)
    assert [[r.text.rsplit(" ", 1)[0] for r in samples] for samples in replies] == [[p[0].content] * 2 for p in PROMPTS]
    assert told == list(range(1, 13))


def test_as_many_requests_at_once_as_are_allowed(server: LocalServer) -> None:
    server.seconds = 0.1
    teacher(concurrency=3).reply(PROMPTS, NAMES, decoding(samples=2))
    assert server.most_at_once == 3


def test_nothing_is_asked_for_twice(server: LocalServer, tmp_path: Path) -> None:
    journal = tmp_path / "parts" / "journal.jsonl"
    first = teacher(journal).reply(PROMPTS[:3], NAMES[:3], decoding(samples=2))
    assert len(server.requests) == 6
    again = teacher(journal)
    assert again.spent == 6 * COST
    told: list[int] = []
    assert again.reply(PROMPTS[:4], NAMES[:4], decoding(samples=2), told.append)[:3] == first
    assert len(server.requests) == 8
    assert told == [6, 7, 8]
    # Another sample, other numbers, another key, another text: all are other answers.
    again.reply(PROMPTS[:1], NAMES[:1], decoding(samples=3))
    assert len(server.requests) == 9
    again.reply(PROMPTS[:1], NAMES[:1], decoding(temperature=0.8))
    again.reply(PROMPTS[:1], NAMES[:1], decoding(max_new_tokens=21))
    again.reply(PROMPTS[:1], ["other"], decoding())
    again.reply(PROMPTS[4:5], NAMES[:1], decoding())
    Endpoint.from_environment("another", journal, again.settings).reply(PROMPTS[:1], NAMES[:1], decoding())
    assert len(server.requests) == 14


def test_the_same_question_twice_is_one_request(server: LocalServer) -> None:
    told: list[int] = []
    one, two = teacher().reply([PROMPTS[0]] * 2, ["a", "a"], decoding(), told.append)
    assert one == two
    assert len(server.requests) == 1
    assert told == [2]


def test_a_line_that_was_cut_off_is_forgotten(server: LocalServer, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    before = teacher(journal, concurrency=1).reply(PROMPTS[:3], NAMES[:3], decoding())
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-9])
    after = teacher(journal)
    assert after.spent == 2 * COST
    assert after.reply(PROMPTS[:3], NAMES[:3], decoding()) == before
    assert len(server.requests) == 4
    assert journal.read_bytes() == whole


def test_a_journal_that_is_none_is_told(server: LocalServer, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    teacher(journal).reply(PROMPTS[:2], NAMES[:2], decoding())
    journal.write_bytes(b"oops\n" + journal.read_bytes())
    with pytest.raises(DataError, match=r"journal\.jsonl:1: is not a line"):
        teacher(journal)


def test_the_bound_on_tokens_holds_over_restarts(server: LocalServer, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    bound = 2 * COST + 1
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{3 * COST} tokens are spent.*max_spend={bound}") as raised:
            teacher(journal, concurrency=1, max_spend=bound).reply(PROMPTS, NAMES, decoding())
        assert "answers so far are kept" in str(raised.value)
        assert len(server.requests) == 3
    teacher(journal, concurrency=1, max_spend=6 * COST).reply(PROMPTS, NAMES, decoding())
    assert len(server.requests) == 6
    # Everything is there, so the bound that is reached stops nothing.
    teacher(journal, concurrency=1, max_spend=1).reply(PROMPTS, NAMES, decoding())


def test_nonsense_is_paid_for_too(server: LocalServer, tmp_path: Path) -> None:
    server.always = content({**completion("x"), "choices": []})
    with pytest.raises(UserError, match="max_spend"):
        teacher(tmp_path / "j", max_spend=2 * COST).reply(PROMPTS[:1], NAMES[:1], decoding())
    assert len(server.requests) == 2
    assert teacher(tmp_path / "j").spent == 2 * COST


FAULTS = {
    "408": status(408),
    "409": status(409),
    "429": status(429),
    "500": status(500),
    "503 of a proxy": lambda handler: handler.say(503, b"<html>busy</html>"),
    "timeout": slow(0.6),
    "dying": dying,
    "no json": content(b"<html>hello</html>"),
    "bad bytes": content(b'{"choices": "\xff"}'),
    "a list": content([1]),
    "no choices": content({**completion("x"), "choices": []}),
    "choices of another kind": content({**completion("x"), "choices": "x"}),
    "no message": content({**completion("x"), "choices": [{"finish_reason": "stop"}]}),
    "no text": content(completion(None)),
    "parts for text": content(completion([{"type": "text", "text": "x"}])),
    "half a character": content(completion("\ud800")),
    "no usage": content({**completion("x"), "usage": None}),
    "usage of another kind": content({**completion("x"), "usage": {"prompt_tokens": True, "completion_tokens": 3}}),
}


def patience(fault: str) -> float:
    """Seconds to wait: few only where the fault is that nothing comes."""
    return 0.3 if fault == "timeout" else 5.0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_survived(server: LocalServer, fault: str) -> None:
    server.faults.extend([FAULTS[fault]] * 2)
    ((reply,),) = teacher(timeout=patience(fault)).reply(PROMPTS[:1], NAMES[:1], decoding())
    assert reply.text.startswith("Question 0?")
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", ["429", "timeout", "dying", "no json", "no text", "no usage"])
def test_a_fault_that_stays_is_told_and_what_was_answered_is_kept(
    server: LocalServer, tmp_path: Path, fault: str
) -> None:
    server.always = FAULTS[fault]
    journal = tmp_path / "journal.jsonl"
    server.faults.append(content(completion("fine")))
    with pytest.raises(UserError, match=r"p1: endpoint:local gave no usable answer in 2 attempts") as raised:
        teacher(journal, concurrency=1, retries=1, timeout=patience(fault)).reply(PROMPTS, NAMES, decoding())
    assert "answers so far are kept" in str(raised.value)
    asked = len(server.requests)
    # One for p0 and two for p1; at most one more thread step may have begun before the error was seen.
    assert 3 <= asked <= 5
    server.always = None
    replies = teacher(journal).reply(PROMPTS, NAMES, decoding())
    assert replies[0][0].text == "fine"
    assert len(server.requests) == asked + 5


def test_a_request_that_is_refused_is_not_repeated(server: LocalServer) -> None:
    server.always = status(400, "max_tokens is too large: " + "9" * 1000)
    with pytest.raises(UserError, match=r"p0: endpoint:local refuses.*\n.*400: max_tokens is too large") as raised:
        teacher().reply(PROMPTS[:1], NAMES[:1], decoding())
    assert len(server.requests) == 1
    assert len(str(raised.value)) < 600


def test_the_server_says_how_long_to_wait(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(endpoint.Event, "wait", lambda self, timeout=None: waits.append(timeout) or self.is_set())
    server.faults.extend([status(429, retry_after="17"), status(503, retry_after="Fri, 01 Jan 1999 00:00:00 GMT")])
    server.faults.extend([status(500)] * 3)
    teacher(retries=9, back_off=4.0).reply(PROMPTS[:1], NAMES[:1], decoding())
    waits = [wait for wait in waits if wait is not None]
    assert waits[:2] == [17.0, 0.0]
    # The third attempt and those after it: back_off · 2^(attempt - 1), LONGEST_BACK_OFF at most, less up to a half.
    for wait, longest in zip(waits[2:], (16.0, 32.0, 60.0), strict=True):
        assert longest / 2 <= wait <= longest


def test_a_wait_of_a_day_is_not_waited_for(server: LocalServer) -> None:
    server.always = status(429, "quota", retry_after="86400")
    with pytest.raises(UserError, match=r"in 1 attempt\n.*429: quota \(it asks to wait 86,400 s\)"):
        teacher().reply(PROMPTS[:1], NAMES[:1], decoding())


def test_answers_that_did_not_end_say_so(server: LocalServer) -> None:
    server.faults.extend([content(completion("cut", "length")), content(completion(None, "content_filter"))])
    replies = teacher(concurrency=1).reply(PROMPTS[:2], NAMES[:2], decoding())
    assert [(reply.text, reply.finished) for (reply,) in replies] == [("cut", False), ("", False)]


def test_the_key_is_written_nowhere(
    server: LocalServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = []
    for fault in (status(401, f"Incorrect key {KEY}"), status(500, "x" * (endpoint.SHOWN - 30) + KEY), dying):
        server.faults.clear()
        server.faults.append(content(completion("fine")))
        server.always = fault
        with pytest.raises(UserError) as raised:
            teacher(tmp_path / "journal.jsonl", retries=1).reply(PROMPTS, NAMES, decoding(seed=len(told)))
        told.append(str(raised.value))
    assert "Incorrect key …" in told[0]
    captured = capfd.readouterr()
    everything = [*told, caplog.text, captured.out, captured.err, repr(vars(raised.value))]
    everything += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    # The beginning of the key must not be there either, where a message was cut off.
    assert not any(KEY[:8] in text for text in everything)
    assert len(everything) == 8


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OPENAI_BASE_URL", "", "OPENAI_BASE_URL is not set"),
        ("OPENAI_BASE_URL", "localhost:8000/v1", "OPENAI_BASE_URL is no address"),
        ("OPENAI_API_KEY", "", "OPENAI_API_KEY is not set"),
        ("OPENAI_API_KEY", "sk-secret\nsk-another", "OPENAI_API_KEY holds what no key can hold"),
    ],
)
def test_the_environment_is_checked(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told) as raised:
        teacher()
    assert "sk-secret" not in str(raised.value)


def test_without_the_package_the_extra_is_named(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"alignment\[data\]"):
        teacher()


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServer() as gone:
        gone.name_it(monkeypatch)
    with pytest.raises(UserError, match="gave no usable answer in 2 attempts"):
        teacher(retries=1).reply(PROMPTS[:1], NAMES[:1], decoding())


def test_the_journal_is_lines_of_json(server: LocalServer, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    server.faults.append(content(completion("zwölf\nZeilen\u2028")))
    teacher(journal).reply(PROMPTS[:1], NAMES[:1], decoding())
    (line,) = journal.read_bytes().splitlines()
    kept = json.loads(line)
    assert kept["text"] == "zwölf\nZeilen\u2028"
    assert (kept["tokens"], kept["finished"], kept["spent"]) == (ANSWER_TOKENS, True, COST)
    ((again,),) = teacher(journal).reply(PROMPTS[:1], NAMES[:1], decoding())
    assert again.text == kept["text"]


def test_half_a_line_of_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other answers are still on their way, and would be written behind it."""
    journal = Journal(tmp_path / "journal.jsonl", {"text": str})
    journal.add("a" * 32, {"text": "one"}, 3)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            journal.add("b" * 32, {"text": "two"}, 3)
    journal.add("c" * 32, {"text": "three"}, 3)
    again = Journal(journal.path, {"text": str})
    assert {key[0]: one["text"] for key, one in again.answers([name * 32 for name in "abc"]).items()} == {
        "a": "one",
        "c": "three",
    }
