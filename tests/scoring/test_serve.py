"""The service over real sockets: what it answers, whom it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_classifier
import tiny_reward
import yaml
from running import FINGERPRINT, Numbers, Running, held, row, until
from tests_support import command

from alignment import files
from alignment.artifacts import Artifact, Kind
from alignment.chat.types import messages
from alignment.commands import serve as command_serve
from alignment.data import seen
from alignment.errors import UserError
from alignment.scoring import service
from alignment.scoring.remote import TOKEN, Remote, token_from_environment
from alignment.scoring.reward_model import RewardScorer
from alignment.scoring.scorer import sigmoid
from alignment.store import Store

CONF = Path(__file__).parents[2] / "conf"
NOTHING = np.zeros(0, np.uint64)


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(16) as threads:
        yield threads


# ── what it answers ──────────────────────────────────────────────────────────────────────────────


def test_scores_come_back_in_all_three_readings() -> None:
    with Running(Numbers()) as running:
        status, told, _ = running.score("2", "-0.5", "2")
        assert status == 200
        assert told == {
            "raw": [2.0, -0.5, 2.0],
            "reported": [1.0, -1.5, 1.0],
            "probability": [sigmoid(2), sigmoid(-0.5), sigmoid(2)],
            "fingerprint": FINGERPRINT,
        }
        assert running.ask("/score", {"dialogues": []})[1]["raw"] == []
        about = {"name": "numbers", "fingerprint": FINGERPRINT, "kind": "reward", "absolute": False, "centre": 1.0}
        limits = {"schema": "gemma2", "most_dialogues": 8, "most_bytes": 2**16}
        assert running.ask("/about")[1] == about | limits
        assert running.ask("/health")[1] == {"status": "ok", "waiting": 0, "scored": 3}


def test_many_at_once_get_each_their_own_and_share_batches(pool: ThreadPoolExecutor) -> None:
    with Running(Numbers()) as running:
        first = held(running, pool, "0")
        rest = [pool.submit(running.score, *(str(10 * n + k) for k in range(1 + n % 3))) for n in range(1, 13)]
        until(lambda: running.queue.waiting == 24)
        running.scorer.gate.set()
        assert first.result()[1]["raw"] == [0.0]
        for n, asked in enumerate(rest, 1):
            assert asked.result()[1]["raw"] == [float(10 * n + k) for k in range(1 + n % 3)]
        assert max(running.scorer.calls) <= 8
        assert len(running.scorer.calls) <= 1 + 4, "24 dialogues in requests of 1 to 3 are four batches of at most 8"


def test_a_request_larger_than_a_batch_is_scored_whole(pool: ThreadPoolExecutor) -> None:
    with Running(Numbers(), batch=2) as running:
        assert running.score(*map(str, range(9)))[1]["raw"] == list(map(float, range(9)))
        assert running.scorer.calls == [9]


# ── whom it refuses ──────────────────────────────────────────────────────────────────────────────


def test_a_full_queue_says_so_and_loses_nobody(pool: ThreadPoolExecutor) -> None:
    with Running(Numbers(), room=4) as running:
        first = held(running, pool, "0")
        waiting = [pool.submit(running.score, "1", "2"), pool.submit(running.score, "3", "4")]
        until(lambda: running.queue.waiting == 4)
        status, told, headers = running.score("5")
        assert (status, told["error"]) == (503, "the queue is full: 4 dialogues wait")
        assert int(headers["Retry-After"]) >= 1
        running.scorer.gate.set()
        assert sorted(asked.result()[1]["raw"] for asked in [first, *waiting]) == [[0.0], [1.0, 2.0], [3.0, 4.0]]
        assert running.score("5")[0] == 200, "there is room again"
        assert running.score(*"01234")[0] == 413, "what never finds room is not asked to come again"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        ([], "the body is not a JSON object"),
        ({}, "the key dialogues is missing"),
        ({"dialogues": "a"}, "dialogues is not a list"),
        ({"dialogues": [], "beam": 3}, "there is no key 'beam' in a request; dialogues is the only one"),
        ({"dialogues": [row("1"), []]}, "dialogues[1] is not a list of turns"),
        ({"dialogues": [[{"role": "user"}]]}, "dialogues[0][0] is not an object of role and content"),
        ({"dialogues": [["user"]]}, "dialogues[0][0] is not an object of role and content"),
        ({"dialogues": [[{"role": 1, "content": ""}]]}, "dialogues[0][0].role is not text"),
        ({"dialogues": [[{"role": "user", "content": None}]]}, "dialogues[0][0].content is not text"),
        (b'{"dialogues": [[{"role": "user", "content": "\\ud800"}]]}', "dialogues[0][0].content is not text"),
        ({"dialogues": [row("1")[:1]]}, "dialogues[0] does not end with the assistant"),
        ({"dialogues": [row("1")[1:]]}, "dialogues[0], before its answer: a conversation has no turns"),
        ({"dialogues": [[*row("1"), *row("2")[1:]]]}, "dialogues[0], before its answer: turns end with assistant"),
        (
            {"dialogues": [[{"role": "tool", "content": ""}, *row("2")]]},
            "dialogues[0], before its answer: the role",
        ),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(body: Any, sentence: str) -> None:
    with Running(Numbers(), most_bytes=2**20) as running:
        status, told, _ = running.ask("/score", body)
        assert status == 400
        assert told["error"].startswith(sentence)
        assert "\n" not in told["error"]
        assert running.score("1")[0] == 200
    assert running.scorer.calls == [1], "nothing of it reaches the model"


def test_paths_methods_and_sizes_are_told_in_one_sentence_too() -> None:
    with Running(Numbers(), most_bytes=500) as running:
        assert running.ask("/scores", {})[:2] == (404, {"error": "Not Found"})
        assert running.ask("/score")[:2] == (405, {"error": "Method Not Allowed"})
        assert running.ask("/get_reward", {"query": []})[0] == 404, "no tokenizer reads its texts"
        status, told, _ = running.ask("/score", b" " * 501)
        assert status == 413
        assert "500" in told["error"]


def test_what_cannot_be_scored_fails_alone(pool: ThreadPoolExecutor) -> None:
    with Running(Numbers()) as running:
        first = held(running, pool, "0")
        rest = [pool.submit(running.score, *said) for said in (["1"], ["2", "long"], ["3"])]
        until(lambda: running.queue.waiting == 4)
        running.scorer.gate.set()
        assert first.result()[0] == 200
        found = [asked.result() for asked in rest]
        assert sorted(status for status, *_ in found) == [200, 200, 422]
        assert found[1][1]["error"] == "numbers: dialogue 1 is too long", "its place is that in the request"


def test_no_traceback_leaves_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with Running(Numbers()) as running:
        status, told, _ = running.score("no number")
        assert (status, told) == (500, {"error": "the model failed; the log of the server says how"})
        assert running.score("nan")[0] == 500, "JSON has no NaN"
        assert running.score("1")[0] == 200
    assert "could not convert string to float" in capsys.readouterr().out


def test_who_waits_too_long_is_asked_to_come_again_and_gives_up_his_place(pool: ThreadPoolExecutor) -> None:
    with Running(Numbers(), timeout=0.3) as running:
        first = held(running, pool, "0")
        status, told, headers = running.score("1", "2")
        assert (status, told["error"]) == (503, "there was no answer within 0.3 s")
        assert "Retry-After" in headers
        assert running.queue.waiting == 0
        running.scorer.gate.set()
        assert first.result()[1].get("raw") == [0.0], "what is being scored is worth the wait"
        assert running.score("3")[1]["raw"] == [3.0]
        assert running.scorer.calls == [1, 1], "what nobody waits for any more is not scored"


@pytest.mark.parametrize("path", ["/score", "/get_reward", "/seen"])
def test_a_body_that_does_not_come_is_not_waited_for(path: str, reward_scorer: RewardScorer) -> None:
    with Running(Numbers(), timeout=0.2, tokenizer=reward_scorer.tokenizer) as running:
        host, _, port = running.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            slow.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{" % path.encode())
            assert slow.recv(99).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("promise", [b"Content-Length: 1000", b"Content-Length: 9000", b"Transfer-Encoding: chunked"])
def test_bodies_are_held_as_far_as_there_is_room_and_no_further(promise: bytes) -> None:
    """What promises nothing, or too much, counts as the largest."""
    with Running(Numbers(), most_bytes=1000) as running, contextlib.ExitStack() as stack:
        host, _, port = running.address.partition(":")
        slow = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5)) for _ in range(service.HELD)
        ]
        for one in slow:
            one.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n" % promise)
        until(lambda: running.score("1")[0] == 503)
        status, told, headers = running.score("1")
        assert (status, told["error"]) == (503, "there is no room for another request: 16,000 bytes are held already")
        assert "Retry-After" in headers
        assert running.ask("/health")[0] == 200
        slow[0].close()
        until(lambda: running.score("1")[0] == 200)


def test_who_has_gone_gives_up_his_place(pool: ThreadPoolExecutor) -> None:
    with Running(Numbers()) as running:
        first = held(running, pool, "0")
        host, _, port = running.address.partition(":")
        body = json.dumps({"dialogues": [row("1")]}).encode()
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            until(lambda: running.queue.waiting == 1)
        until(lambda: running.queue.waiting == 0)
        running.scorer.gate.set()
        assert first.result()[0] == 200


def test_at_the_end_what_waits_is_finished_and_what_is_new_refused(pool: ThreadPoolExecutor) -> None:
    with Running(Numbers()) as running:
        first = held(running, pool, "0")
        second = pool.submit(running.score, "1")
        until(lambda: running.queue.waiting == 1)
        running.end()
        until(lambda: running.queue.closed)
        status, told, headers = running.score("2")
        assert (status, told["error"]) == (503, "the service is about to stop")
        assert "Retry-After" in headers
        assert running.ask("/health")[1]["status"] == "stopping"
        running.scorer.gate.set()
        assert (first.result()[1]["raw"], second.result()[1]["raw"]) == ([0.0], [1.0])


def test_a_token_is_asked_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(Numbers(), token="open sesame".replace(" ", "-")) as running:
        assert running.ask("/health")[0] == 200
        for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "open-sesame"}):
            assert running.ask("/about", **headers)[0] == 401
            assert running.ask("/score", {"dialogues": []}, **headers)[0] == 401
        assert running.ask("/about", Authorization="Bearer open-sesame")[0] == 200
        monkeypatch.delenv(TOKEN, raising=False)
        with pytest.raises(UserError, match=f"a token is needed here.*\n.*{TOKEN}"):
            Remote(running.address)
        monkeypatch.setenv(TOKEN, "open-sesame")
        assert Remote(running.address).score([messages(("user", "?"), ("assistant", "4"))]).raw == [4.0]


def test_a_port_that_is_taken_is_told() -> None:
    with Running(Numbers()) as running:
        port = int(running.address.partition(":")[2])
        queue = service.Queue(Numbers(), 1, 1)
        about = service.About("n", "f", "reward", True, 0.0, None, 1, 100)
        served = service.Service(queue, about, tokenizer=None, trained_on=NOTHING, timeout=1.0, token=None)
        with pytest.raises(UserError, match=rf"port={port}: cannot listen there\n"):
            asyncio.run(service.serve(served, "127.0.0.1", port, stop=asyncio.Event()))


def test_how_many_prompts_it_was_trained_on_is_told() -> None:
    keys = [f"{number:016x}" for number in (1, 2, 2**64 - 1, 3)]
    with Running(Numbers(), trained_on=seen.numbers([keys[2], keys[0], "00000000000000bb"])) as running:
        for asked, count in ((keys, 2), (keys[:1] * 3, 1), (keys[1:2], 0), ([], 0)):
            assert running.ask("/seen", {"keys": asked})[:2] == (200, {"seen": count, "fingerprint": FINGERPRINT})
        for body, sentence in (
            ({"keys": "a"}, "keys is not a list"),
            ({"keys": [keys[0], "1"]}, "keys[1] is not a prompt key, 16 hexadecimal digits"),
            ({"keys": [1]}, "keys[0] is not a prompt key, 16 hexadecimal digits"),
            ({"keys": [], "prompts": []}, "there is no key 'prompts' in a request; keys is the only one"),
        ):
            assert running.ask("/seen", body)[:2] == (400, {"error": sentence})
    with Running(Numbers(), token="open-sesame") as running:
        assert running.ask("/seen", {"keys": []})[0] == 401


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("node7", False),
    ],
)
def test_only_this_machine_is_let_in_without_a_token(host: str, loopback: bool) -> None:
    assert command_serve._is_loopback(host) is loopback


@pytest.mark.parametrize("token", ["", "two words", "tokén", "sesame\n", "ses\x1bame"])
def test_what_is_no_token_is_refused_on_both_sides_and_never_told(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(Numbers()) as running:
        monkeypatch.setenv(TOKEN, token)
        for refused in (token_from_environment, lambda: Remote(running.address), lambda: serve(Path(), "dir:x")):
            with pytest.raises(UserError, match=TOKEN) as error:
                refused()
            assert not token or token.strip() not in str(error.value)


def serve(folder: Path, reference: str, kind: Kind = "foreign", **classifier: str) -> None:
    """The command up to where it would listen."""
    values = yaml.safe_load((CONF / "stage" / "serve.yaml").read_text())
    del values["defaults"]
    values["classifier"] |= classifier
    values["engine"] = tiny_reward.SETTINGS.model_dump()
    settings = command_serve.Settings.parse(values)
    command_serve.run(settings, {"target": Artifact(folder, kind, "", reference, "c" * 64)}, Store(folder))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[service.Service]:
    """What the command would serve."""
    found: list[service.Service] = []

    async def listen(one: service.Service, *_: Any, **__: Any) -> None:
        found.append(one)

    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setattr(service, "serve", listen)
    return found


def test_a_served_classifier_is_also_how_it_is_read(tmp_path: Path, served: list[service.Service]) -> None:
    folder = tiny_classifier.build(tmp_path / "tiny", "safe", "toxic")
    for label, text in (("toxic", "dialogue"), ("safe", "dialogue"), ("toxic", "answer"), ("toxic", "answer")):
        serve(folder, "dir:tiny", label=label, text=text)
    about = [one.about for one in served]
    assert [one.name for one in about] == ["tiny:toxic", "tiny:safe", "tiny:toxic", "tiny:toxic"]
    assert [one.queue._scorer.text for one in served] == ["dialogue", "dialogue", "answer", "answer"]  # type: ignore
    assert about[2] == about[3]
    assert len({"c" * 64, *(one.fingerprint for one in about)}) == 1 + 3
    assert about[0].fingerprint == files.digest_json(["c" * 64, "toxic", "dialogue"])


def test_a_served_reward_model_knows_its_prompts(
    reward_folder: Path, tmp_path: Path, served: list[service.Service]
) -> None:
    folder = tmp_path / "seen"
    shutil.copytree(reward_folder, folder)
    seen.write(folder, ["00000000000000aa"], [])
    serve(folder, "dir:x", text="answer")
    assert served[0].about.fingerprint == "c" * 64, "how classifiers are read is nothing to it"
    assert served[0]._trained_on.tolist() == [0xAA]


def test_what_is_served_elsewhere_is_not_served_again(served: list[service.Service]) -> None:
    with pytest.raises(UserError, match="remote:a:1: is served already"):
        serve(Path(), "remote:a:1", "remote")
    assert not served


def test_the_command_serves_until_it_is_stopped(
    reward_folder: Path, reward_scorer: RewardScorer, tmp_path: Path
) -> None:
    environment = {**os.environ, "CI": "true", "COLUMNS": "200", "PYTHONUNBUFFERED": "1", TOKEN: "a-secret"}
    line = command(tmp_path, "stage=serve", f"target=dir:{reward_folder}", "port=0", "engine.device=cpu")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        told = ""
        while "serving" not in told:
            line_told = process.stdout.readline()
            assert line_told, told
            told += line_told
        address = told.partition(" at http://")[2].partition(";")[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TOKEN, "a-secret")
            remote = Remote(address)
            rows = tiny_reward.dialogues()
            assert remote.score(rows).reported == pytest.approx(reward_scorer.score(rows).reported, abs=1e-5)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert f"stopped; {len(rows)} dialogues were scored" in rest
    assert "a-secret" not in told + rest
    assert remote.about["schema"] == "gemma1"
    assert remote.about["centre"] == 0.75
