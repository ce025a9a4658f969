"""Who talks to the service: the remote scorer, references, TRL's trainers and OpenRLHF's client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_reward
from running import FINGERPRINT, Numbers, Running, Stub
from stages import drawing

from alignment import artifacts, pipeline
from alignment.chat.types import Comparison, messages, prompt_key
from alignment.data.seen import numbers, write
from alignment.errors import UserError
from alignment.scoring.opening import open_scorer, refuse_seen
from alignment.scoring.remote import Remote, trl_reward
from alignment.scoring.reward_model import RewardScorer
from alignment.scoring.scorer import Scores
from alignment.stages import measure
from alignment.store import Store

READING = {"label": None, "text": "dialogue"}


def test_a_remote_scorer_is_the_local_one_in_many_requests(reward_scorer: RewardScorer) -> None:
    rows = tiny_reward.dialogues()
    bits = reward_scorer.score(rows)
    with Running(reward_scorer, most_dialogues=5, batch=100) as running:
        remote = Remote(f"http://{running.address}/")
        assert (remote.name, remote.absolute, remote.fingerprint) == ("helpful", False, FINGERPRINT)
        found = remote.score(rows)
        for name in Scores._fields:
            assert getattr(found, name) == pytest.approx(getattr(bits, name), abs=1e-5)
        assert remote.score(rows[:5]) == reward_scorer.score(rows[:5]), "the same batch gives the same bits"
        assert remote.score([]) == ([], [], [])


def test_requests_keep_to_the_servers_limits() -> None:
    dialogues = [messages(("user", "?"), ("assistant", str(n).zfill(1 + 40 * (n % 3)))) for n in range(40)]
    with Running(Numbers(), most_bytes=700, most_dialogues=7) as running:
        assert Remote(running.address).score(dialogues).raw == list(map(float, range(40)))
        assert max(running.scorer.calls) <= 7
        assert len(running.scorer.calls) > 6, "some were ended by their size"
        with pytest.raises(UserError, match=r"refuses the request\n.*status 413"):
            Remote(running.address).score([messages(("user", "?"), ("assistant", "1".zfill(800)))])
        with pytest.raises(UserError, match=r"status 422: numbers: dialogue 0 is too long"):
            Remote(running.address).score([messages(("user", "?"), ("assistant", "long"))])


ABOUT = {"name": "n", "fingerprint": "1", "absolute": True, "most_dialogues": 8, "most_bytes": 9999}
GIVEN = {"raw": [1.0], "reported": [1], "probability": [0.7], "fingerprint": "1"}
ONE = [messages(("user", "?"), ("assistant", "!"))]


def test_a_server_that_is_busy_or_away_is_asked_again() -> None:
    stub = Stub((503, {"error": "full"}), None, (200, ABOUT), (502, {}), None, (200, GIVEN))
    assert Remote(stub.address, back_off=0.01).score(ONE) == ([1.0], [1.0], [0.7])
    assert stub.asked == 6


def test_waits_grow_and_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("alignment.signals.pause", lambda seconds, _: waits.append(seconds))
    monkeypatch.setattr("alignment.scoring.remote.random.uniform", lambda low, high: high)
    stub = Stub((200, ABOUT), *[(503, {"error": "the queue is full"})] * 4)
    remote = Remote(stub.address, attempts=4, back_off=0.5)
    with pytest.raises(UserError, match=r"no answer in 4 attempts\n.*status 503: the queue is full\n.*stage=serve"):
        remote.score(ONE)
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("asked", "wait"), [("7", 7.0), ("86400", 30.0), ("9" * 400, 30.0), ("²", 0.5), ("soon", 0.5)])
def test_no_server_has_anybody_wait_for_ever(asked: str, wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("alignment.signals.pause", lambda seconds, _: waits.append(seconds))
    monkeypatch.setattr("alignment.scoring.remote.random.uniform", lambda low, high: high)
    stub = Stub((503, {"error": "full"}), (200, ABOUT), retry_after=asked)
    Remote(stub.address)
    assert waits == [wait]


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        ([(200, ABOUT), (200, GIVEN | {"fingerprint": "2"})], "another model is served now"),
        ([(200, ABOUT), (200, GIVEN | {"raw": [1.0, 2.0]})], "is not as many numbers"),
        ([(200, ABOUT), (200, GIVEN | {"raw": [None]})], "is not as many numbers"),
        ([(200, {"name": "n"})], "What it says of itself has no fingerprint"),
        ([(200, [])], "does not answer as a served reward model"),
        ([(404, "no")], "does not answer as a served reward model"),
        ([(200, ABOUT), (500, {"error": "the model failed"})], "status 500: the model failed"),
    ],
)
def test_what_no_served_model_says_is_not_taken_for_scores(replies: list[Any], told: str) -> None:
    stub = Stub(*replies)
    with pytest.raises(UserError, match=told):
        Remote(stub.address, attempts=1).score(ONE)


def test_trl_gets_a_reward_for_every_completion(reward_scorer: RewardScorer) -> None:
    with Running(reward_scorer) as running:
        reward = trl_reward(running.address)
        assert reward.__name__ == "helpful"
        said = ["the town", "the friend"]
        wanted = reward_scorer.score([messages(("user", "question 1"), ("assistant", one)) for one in said]).reported
        columns = {"completion_ids": [[1], [2]], "trainer_state": None}
        plain = reward(prompts=["question 1"] * 2, completions=said, **columns)
        prompts = [[{"role": "user", "content": "question 1"}]] * 2
        spoken = reward(prompts=prompts, completions=[[{"role": "assistant", "content": one}] for one in said])
        assert plain == pytest.approx(wanted, abs=1e-5)
        assert spoken == plain
        with pytest.raises(UserError, match="a turn is not text"):
            reward(prompts=prompts[:1], completions=[[{"role": "assistant", "content": None}]])


def test_openrlhf_gets_what_its_client_reads(reward_scorer: RewardScorer) -> None:
    asked = "<bos><start_of_turn>user\nquestion 1<end_of_turn>\n<start_of_turn>model\n"
    said = ["the town", "the friend", ""]
    scores = reward_scorer.score([messages(("user", "question 1"), ("assistant", one)) for one in said])
    with Running(reward_scorer, tokenizer=reward_scorer.tokenizer) as running:
        endings = ("<end_of_turn><eos>", "", "<eos>")
        query = [f"<pad>{asked}{one}{ending}" for one, ending in zip(said, endings, strict=True)]
        for more in ({"prompts": [asked] * 3, "labels": ["", None, ""]}, {"prompts": None}, {}):
            status, told, _ = running.ask("/get_reward", {"query": query, **more})
            assert status == 200
            assert told.keys() == {"rewards", "scores", "extra_logs"}
            assert told["rewards"] == pytest.approx(scores.reported, abs=1e-5)
            assert told["scores"] == pytest.approx(scores.probability, abs=1e-5)
        for body, sentence in (
            ({"query": "a"}, "query is not a list"),
            ({"query": [1]}, "query[0] is not text"),
            ({"query": [asked], "prompts": []}, "there are 1 queries and 0 prompts"),
            ({"query": ["<s>hi"]}, "query[0]: this text is not a conversation with its control tokens: "),
        ):
            status, told, _ = running.ask("/get_reward", body)
            assert status == 400
            assert told["error"].startswith(sentence)


def test_a_reference_to_it_is_what_it_serves(tmp_path: Path) -> None:
    maker = pipeline.Maker(Store(tmp_path), lambda *_: {}, {})
    with Running(Numbers()) as one, Running(Numbers()) as other:
        found = [maker.resolve(f"remote:{running.address}", {}) for running in (one, other)]
        wanted = artifacts.named("remote", "", FINGERPRINT).fingerprint
        assert {artifact.fingerprint for artifact in found} == {wanted}, "wherever it is served"
        scorer = open_scorer(found[0], tiny_reward.ENGINE, None, **READING)  # type: ignore[arg-type]
        assert scorer.score([messages(("user", "?"), ("assistant", "3"))]).raw == [3.0]


def test_what_was_exchanged_since_it_was_planned_is_not_opened() -> None:
    with Running(Numbers(), fingerprint="e" * 64) as running:
        planned = artifacts.named("remote", running.address, FINGERPRINT)
        for opening in (
            lambda: open_scorer(planned, tiny_reward.ENGINE, None, **READING),
            lambda: refuse_seen(planned, []),
        ):
            with pytest.raises(UserError, match=r"served now than when this was planned\n.*eeeeeeeeeeee"):
                opening()


# ── which prompts it has seen ────────────────────────────────────────────────────────────────────

KEYS = [f"{number:016x}" for number in range(200)]


def test_a_judge_that_is_served_is_refused_for_prompts_that_it_has_seen() -> None:
    with Running(Numbers(), trained_on=numbers(KEYS[::3]), most_bytes=1000) as running:
        judge = artifacts.named("remote", running.address, FINGERPRINT)
        refuse_seen(judge, [*KEYS[1::3], *KEYS[2::3]])
        refuse_seen(judge, [])
        with pytest.raises(UserError, match="numbers has been trained on 67 of the 200 prompts"):
            refuse_seen(judge, KEYS + KEYS)


def test_a_server_that_does_not_say_what_it_has_seen_is_not_taken_for_one_that_has_seen_nothing() -> None:
    for reply, told in (
        ((200, {"fingerprint": "1"}), "does not say how many prompts"),
        ((200, {"fingerprint": "2", "seen": 0}), "another model is served now"),
        ((404, {"error": "Not Found"}), "refuses the request"),
    ):
        stub = Stub((200, ABOUT), reply)
        with pytest.raises(UserError, match=told):
            Remote(stub.address, attempts=1).refuse_seen(KEYS)


def test_a_judge_here_is_refused_too_and_the_truth_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, KEYS[:2], [])
    refuse_seen(artifacts.named("gold", "safety"), KEYS)
    refuse_seen(tiny_reward.ours(tmp_path), KEYS[2:])
    with pytest.raises(UserError, match="has been trained on 2 of the 200 prompts"):
        refuse_seen(tiny_reward.ours(tmp_path), KEYS)


def test_the_stage_asks_a_served_judge_what_it_has_seen(tmp_path: Path) -> None:
    comparison = Comparison(messages(("user", "?")), "2", "1", None, "test", "one")
    data = drawing.dataset(tmp_path / "data", "comparisons", {"test": [comparison]})
    values = drawing.values("measure", models=["remote:a:1"], comparisons=["run:x"])
    with Running(Numbers(), trained_on=numbers([prompt_key(comparison.prompt)])) as running:
        judge = artifacts.named("remote", running.address, FINGERPRINT)
        with pytest.raises(UserError, match="numbers has been trained on 1 of the 1 prompts"):
            measure.run(measure.Settings.parse(values), {"models.0": judge, "comparisons.0": data}, tmp_path)
    assert running.scorer.calls == []


# ── addresses ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "address", ["127.0.0.1:99999", "..:80", "a..b:80", f"{'a' * 64}:80", ":80", "a:0", "[::1:80", "ftp://a:80", "a:b"]
)
def test_what_is_no_address_is_told_without_a_traceback(address: str) -> None:
    with pytest.raises(UserError, match="is no address of a server"):
        Remote(address, attempts=1)
