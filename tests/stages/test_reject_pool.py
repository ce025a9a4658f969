"""A pool: the best of all iterations, each row accounted for, and nothing scored twice that need not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pytest
from drawing import Speaker, contents
from rejecting import (
    OTHER,
    Rater,
    answers,
    artifact,
    ledger,
    prompt,
    prompts_in,
    sampled,
    table,
)

from alignment import artifacts
from alignment.chat.types import Conversation, Messages, messages
from alignment.data import candidates, store
from alignment.stages import reject


def versioned(version: int) -> Speaker:
    return Speaker(lambda turns, key: f"answer {key} v{version}")


def worth(table: dict[str, float]) -> Callable[[Messages], float]:
    """A score by the version that answers, and by prompt: ``{"p0 v1": 0.9}``; of three answers the second."""

    def score(turns: Messages) -> float:
        _, key, version = turns[-1].content.split()
        name, _, sample = key.partition(":")
        return table[f"{name} {version}"] - (sample != "1")

    return score


WORTH = {"p0 v1": 0.9, "p1 v1": 0.2, "p2 v1": 0.5, "p0 v2": 0.1, "p1 v2": 0.8, "p3 v2": 0.4, "p2 v2": 0.5}


def test_the_pool_holds_the_best_of_all_iterations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = prompts_in(tmp_path / "old", prompt(4), prompt(0, "word"), prompt(1), prompt(2))
    new = prompts_in(tmp_path / "new", prompt(0, "new"), prompt(1), prompt(2), prompt(3))
    table_of = {**WORTH, "p4 v1": 0.3}
    sampled(monkeypatch, tmp_path / "v1", old, speaker=versioned(1), score=worth(table_of))
    judge = Rater(worth(table_of))
    outcome = sampled(
        monkeypatch,
        tmp_path / "v2",
        new,
        speaker=versioned(2),
        judge=judge,
        earlier=[artifact(tmp_path / "v1", 1)],
    )
    # p2 is a tie, which this iteration wins; p4 is asked no more and stays.
    assert answers(tmp_path / "v2") == {
        "p0": "answer p0:1 v1",
        "p1": "answer p1:1 v2",
        "p2": "answer p2:1 v2",
        "p3": "answer p3:1 v2",
        "p4": "answer p4:1 v1",
    }
    assert len(judge.judged) == 12, "what the same reward has scored is not scored again"
    assert ledger(tmp_path / "v2")[:2] == [
        ("prompts", "train", 1, "not_drawn", "another answer is better iteration 1: 0.100 → 0.900", 0),
        ("earlier.0", "train", 2, "kept", "", 1),
    ]
    fates = {(source, line): (fate, copies) for source, _, line, fate, _, copies in ledger(tmp_path / "v2")}
    assert fates == {
        ("prompts", 1): ("not_drawn", 0),
        ("prompts", 2): ("kept", 1),
        ("prompts", 3): ("kept", 1),
        ("prompts", 4): ("kept", 1),
        ("earlier.0", 1): ("kept", 1),
        ("earlier.0", 2): ("kept", 1),
        ("earlier.0", 3): ("not_drawn", 0),
        ("earlier.0", 4): ("not_drawn", 0),
    }
    assert store.read(tmp_path / "v2", "train")[0].tags == ("new", "reject"), "the prompt as it is now"  # type: ignore[union-attr]
    results = json.loads((tmp_path / "v2" / reject.RESULTS).read_text())
    assert [(one["iteration"], one["stood"], one["rows"]) for one in results["pool"]] == [(1, 4, 2), (2, 4, 3)]
    # Of four prompts asked now, p0 is 0.1 alone and 0.9 from the pool; p4, which this iteration never had, is left out.
    gain = results["gain"]
    assert (gain["prompts"], list(gain["measures"])) == (4, ["reward"])
    assert gain["measures"]["reward"]["alone"] == pytest.approx((0.1 + 0.8 + 0.5 + 0.4) / 4)
    assert gain["measures"]["reward"]["pool"] == pytest.approx((0.9 + 0.8 + 0.5 + 0.4) / 4)
    assert gain["measures"]["reward"]["difference"]["estimate"] == pytest.approx(0.2)
    printed = capsys.readouterr().out
    assert "mean reward of the 4 prompts to which this iteration has a row as well: 0.450 of its own, 0.650" in printed
    assert "of the pool's, +0.200 ±" in printed
    assert results["tags"]["new"]["rows"] == 1
    assert results["prompts"] == 4
    assert outcome.metrics["dropped_share"] == 0, "an answer that is not the best was not dropped"
    rows = [row for row in table(tmp_path / "v2") if row["id"] == "p0"]
    assert [(row["iteration"], row["best"], row["kept"]) for row in rows] == [
        (2, False, False),
        (2, True, False),
        (2, False, False),
        (1, True, True),
    ]


def test_rows_and_kept_candidates_go_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prompts_in(tmp_path / "a", train=[prompt(4), prompt(0)], valid=[prompt(2)])
    second = prompts_in(tmp_path / "b", train=[prompt(0), prompt(1)], valid=[prompt(2), prompt(3)])
    score = worth({**WORTH, "p4 v1": 0.3})
    given: dict[str, Any] = {"score": score, "splits": ["train", "valid"]}
    sampled(monkeypatch, tmp_path / "v1", first, speaker=versioned(1), **given)
    earlier = [artifact(tmp_path / "v1", 1)]
    sampled(monkeypatch, tmp_path / "v2", second, speaker=versioned(2), earlier=earlier, **given)
    for split in ("train", "valid"):
        kept = [one for one in candidates.kept(tmp_path / "v2") if one.split == split]
        rows = store.read(tmp_path / "v2", split)
        assert [one.number for one in kept] == list(range(1, len(rows) + 1))
        for one, row in zip(kept, rows, strict=True):
            assert isinstance(row, Conversation)
            assert row.id == one.prompt.id
            assert row.messages == (*one.prompt.messages, *messages(("assistant", one.candidate.answer)))


def test_a_third_iteration_takes_what_the_second_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path / "prompts", prompt(0), prompt(1))
    score = worth({**WORTH, "p0 v3": 0.0, "p1 v3": 0.0})
    sampled(monkeypatch, tmp_path / "v1", dataset, speaker=versioned(1), score=score)
    one = artifact(tmp_path / "v1", 1)
    sampled(monkeypatch, tmp_path / "v2", dataset, speaker=versioned(2), score=score, earlier=[one])
    two = artifact(tmp_path / "v2", 2)
    wanted = {"p0": "answer p0:1 v1", "p1": "answer p1:1 v2"}
    for name, earlier in (("both", [one, two]), ("last", [two])):
        sampled(monkeypatch, tmp_path / name, dataset, speaker=versioned(3), score=score, earlier=earlier)
        assert answers(tmp_path / name) == wanted
    # The same answer stands twice: that of the earlier artifact is taken.
    kept = {row["id"]: row["iteration"] for row in table(tmp_path / "both") if row["kept"]}
    assert kept == {"p0": 1, "p1": 2}
    lines = [fate for source, _, _, fate, _, _ in ledger(tmp_path / "both") if source == "earlier.1"]
    assert lines == ["not_drawn", "kept"]
    # Without a pool the skill that only the first version had is lost.
    sampled(monkeypatch, tmp_path / "alone", dataset, speaker=versioned(3), score=score)
    assert answers(tmp_path / "alone") == {"p0": "answer p0:1 v3", "p1": "answer p1:1 v3"}


def test_another_reward_scores_the_pool_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path / "prompts", prompt(0, "unsafe", category="c", reference="R"), prompt(1))
    sampled(monkeypatch, tmp_path / "v1", dataset, speaker=versioned(1), score=worth(WORTH))
    judge = Rater(lambda turns: 0.25 + ("p1" in turns[-1].content) * ("v1" in turns[-1].content))
    sampled(
        monkeypatch,
        tmp_path / "v2",
        dataset,
        speaker=versioned(2),
        judge=judge,
        reward=OTHER,
        earlier=[artifact(tmp_path / "v1", 1)],
    )
    assert [turns[-1].content for turns in judge.judged[:2]] == ["answer p0:1 v1", "answer p1:1 v1"], "its best alone"
    assert len(judge.judged) == 2 + 6
    assert answers(tmp_path / "v2") == {"p0": "answer p0:0 v2", "p1": "answer p1:1 v1"}
    earlier = {row["id"]: row["score"] for row in table(tmp_path / "v2") if row["iteration"] == 1}
    assert earlier == {"p0": 0.25, "p1": 1.25}
    assert store.card(tmp_path / "v1")["reward"] != store.card(tmp_path / "v2")["reward"]
    (kept, _) = candidates.kept(tmp_path / "v1")
    assert kept.prompt == prompt(0, "unsafe", category="c", reference="R"), "the rule of a reward asks for all of it"


def test_truth_is_scored_anew_with_other_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prompts_in(tmp_path / "a", prompt(0))
    second = replace(prompts_in(tmp_path / "b", prompt(0)), fingerprint="7" * 64)
    gold = artifacts.named("gold", "overall")
    sampled(monkeypatch, tmp_path / "v1", first, speaker=versioned(1), score=worth(WORTH), reward=gold)
    for dataset, judged in ((first, 3), (second, 4)):
        judge = Rater(worth(WORTH))
        out = tmp_path / f"v2-{judged}"
        earlier = [artifact(tmp_path / "v1", 1)]
        sampled(monkeypatch, out, dataset, speaker=versioned(2), judge=judge, reward=gold, earlier=earlier)
        assert len(judge.judged) == judged


def test_the_pool_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reject, "ANSWERS_A_PART", 3)
    dataset = prompts_in(tmp_path / "prompts", *map(prompt, range(3)))
    sampled(monkeypatch, tmp_path / "v1", dataset, speaker=versioned(1), score=worth(WORTH))
    given: dict[str, Any] = {"score": worth(WORTH), "reward": OTHER, "earlier": [artifact(tmp_path / "v1", 1)]}
    sampled(monkeypatch, tmp_path / "whole", dataset, speaker=versioned(2), **given)
    stopping = versioned(2)
    stopping.patience = 2
    with pytest.raises(KeyboardInterrupt):
        sampled(monkeypatch, tmp_path / "out", dataset, speaker=stopping, **given)
    judge = Rater(worth(WORTH))
    sampled(monkeypatch, tmp_path / "out", dataset, speaker=versioned(2), judge=judge, **given)
    assert len(judge.judged) == 3, "neither the pool nor the first two prompts"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_iteration_that_shares_its_seed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = prompts_in(tmp_path / "prompts", prompt(0))
    sampled(monkeypatch, tmp_path / "v1", dataset, speaker=versioned(1), score=worth(WORTH))
    own = drawing.POLICY.fingerprint
    for seed, policy, wanted in ((0, own, "the same answers come again"), (0, "f" * 64, "scatter less"), (1, own, "")):
        parents = {"policy": artifacts.Parent("run:p", policy, "p")}
        earlier = replace(artifact(tmp_path / "v1", 1), settings={"seed": seed}, parents=parents)
        capsys.readouterr()
        out = tmp_path / f"v2-{seed}-{policy[:4]}"
        sampled(monkeypatch, out, dataset, speaker=versioned(2), score=worth(WORTH), earlier=[earlier])
        told = " ".join(capsys.readouterr().out.split())
        assert wanted in told
        assert ("a seed of its own" in told) is bool(wanted)
