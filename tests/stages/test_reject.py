"""Rejection sampling: the best answer is kept, from a pool where there is one, and nothing is drawn or scored twice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest
import rewarding
from drawing import Speaker, contents
from rejecting import (
    REWARD,
    Rater,
    Warm,
    answers,
    artifact,
    by_number,
    ledger,
    prompt,
    prompts_in,
    said,
    sampled,
    settings,
    table,
)

from alignment import artifacts, console, run
from alignment.artifacts import Artifact
from alignment.chat.types import Conversation, Messages, Prompt, messages
from alignment.data import store
from alignment.errors import UserError
from alignment.scoring import combine, opening
from alignment.stages import reject
from alignment.store import Store

# ── one iteration ────────────────────────────────────────────────────────────────────────────────


def test_the_shipped_values_are_whole() -> None:
    shipped = reject.Settings.parse(drawing.values("reject"))
    assert (shipped.pool, shipped.unfinished, shipped.reward.whiten) == ("last", "drop", "none")
    preset = drawing.values("reject/llama2")
    assert (preset["pool"], preset["reward"]["rule"]) == ("all", "llama2")
    assert {1.2, 1.3} <= set(preset["temperatures"])


def test_the_best_answer_becomes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = messages(("user", "Hello."), ("assistant", "Hi."), ("user", "Who?"))
    dataset = prompts_in(tmp_path / "prompts", train=[prompt(0, "word", "x"), Prompt(turns, "p1")], valid=[prompt(2)])
    outcome = sampled(monkeypatch, tmp_path / "out", dataset, splits=["train", "valid"])
    assert store.read(tmp_path / "out", "train") == [
        Conversation(
            (*prompt(0).messages, *messages(("assistant", "answer p0:1"))), "p0", ("word", "x", "reject"), "last"
        ),
        Conversation((*turns, *messages(("assistant", "answer p1:1"))), "p1", ("reject",), "last"),
    ]
    assert answers(tmp_path / "out", "valid") == {"p2": "answer p2:1"}
    assert (outcome.kind, outcome.headline) == ("dataset", "best")
    assert outcome.metrics["rows"] == 3
    assert outcome.metrics["best"] == pytest.approx(0.9)
    assert outcome.metrics["one"] == pytest.approx(0.5)
    assert outcome.notes["policy"] == "speaker"
    first = table(tmp_path / "out")[:3]
    assert [(row["id"], row["sample"], row["answer"], row["score"]) for row in first] == [
        ("p0", 0, "answer p0:0", 0.1),
        ("p0", 1, "answer p0:1", 0.9),
        ("p0", 2, "answer p0:2", 0.5),
    ]
    assert [(row["best"], row["kept"]) for row in first] == [(False, False), (True, True), (False, False)]
    assert {(row["iteration"], row["policy"], row["temperature"], row["tokens"]) for row in first} == {
        (1, "speaker", 1.0, 2)
    }
    assert dict(first[0]["parts"]) == {"judge": 0.1}


def test_of_equals_the_first_is_taken_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parrot(turns: Messages, key: str) -> str:
        return "answer x:0" if key.startswith("p0") else f"answer {key}"

    dataset = prompts_in(tmp_path / "prompts", prompt(0), prompt(1), prompt(2), prompt(3))
    outcome = sampled(
        monkeypatch,
        tmp_path / "out",
        dataset,
        speaker=Speaker(parrot),
        score=lambda turns: 0.5 if "p1" in turns[-1].content else by_number(0.2, 0.7, 0.7)(turns),
    )
    assert answers(tmp_path / "out") == {
        "p0": "answer x:0",
        "p1": "answer p1:0",
        "p2": "answer p2:1",
        "p3": "answer p3:1",
    }
    assert outcome.metrics["equal_answers"] == 1 / 4
    assert outcome.metrics["constant_scores"] == 2 / 4


def test_an_unfinished_answer_loses_whatever_it_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(turns: Messages, key: str) -> str:
        name, _, sample = key.partition(":")
        if name == "p2" and sample == "0":
            return " "
        return f"answer {key} …" if name != "p0" or sample == "1" else f"answer {key}"

    dataset = prompts_in(tmp_path / "prompts", prompt(0), prompt(1), prompt(2))
    outcome = sampled(
        monkeypatch,
        tmp_path / "drop",
        dataset,
        speaker=Speaker(cut),
        score=lambda turns: by_number(0.1, 0.9, 0.5)(turns) if turns[-1].content.strip() else 1.0,
    )
    assert answers(tmp_path / "drop") == {"p0": "answer p0:2"}
    assert ledger(tmp_path / "drop") == [
        ("prompts", "train", 1, "kept", "", 1),
        ("prompts", "train", 2, "dropped", "unfinished answer", 0),
        ("prompts", "train", 3, "dropped", "unfinished answer", 0),
    ]
    assert outcome.metrics["sound"] == 2 / 9
    assert not any(row["kept"] for row in table(tmp_path / "drop") if row["id"] != "p0")
    sampled(
        monkeypatch,
        tmp_path / "keep",
        dataset,
        speaker=Speaker(cut),
        unfinished="keep",
        score=lambda turns: by_number(0.1, 0.9, 0.5)(turns) if turns[-1].content.strip() else 1.0,
    )
    assert answers(tmp_path / "keep") == {"p0": "answer p0:2", "p1": "answer p1:1 …", "p2": "answer p2:1 …"}


def test_nothing_to_learn_from_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path / "prompts", prompt(0))
    silent = Speaker(lambda turns, key: "")
    with pytest.raises(UserError, match=r"no row is left(.|\n)*empty answer \(1\)"):
        sampled(monkeypatch, tmp_path / "out", dataset, speaker=silent, unfinished="keep", score=lambda turns: 1.0)
    assert contents(tmp_path / "out") == {}


def test_what_is_not_asked_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = replace(prompt(0), id="p9")
    dataset = prompts_in(tmp_path / "prompts", train=[prompt(0), again, prompt(1), prompt(2)], test=[prompt(3)])
    sampled(monkeypatch, tmp_path / "out", dataset, count=2)
    assert answers(tmp_path / "out") == {"p0": "answer p0:1", "p1": "answer p1:1"}
    assert ledger(tmp_path / "out") == [
        ("prompts", "train", 1, "kept", "", 1),
        ("prompts", "train", 2, "not_drawn", "the same prompt again", 0),
        ("prompts", "train", 3, "kept", "", 1),
        ("prompts", "train", 4, "not_drawn", "beyond the count", 0),
        ("prompts", "test", 1, "not_drawn", "not asked for", 0),
    ]


def test_gold_stands_beside_and_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompt(0)
    plain = prompts_in(tmp_path / "plain", asked)
    known = prompts_in(tmp_path / "known", asked, miniature=True)

    def hedged(turns: Messages, key: str) -> str:
        return "I do not know x:0" if key.endswith(":0") else f"answer {key}"

    score = lambda turns: 0.0 if "know" in turns[-1].content else 1.0  # noqa: E731
    for name, dataset in (("a", plain), ("b", known)):
        sampled(monkeypatch, tmp_path / name, dataset, speaker=Speaker(hedged), score=score)
    assert answers(tmp_path / "a") == answers(tmp_path / "b") == {"p0": "answer p0:1"}
    assert [row["gold"] for row in table(tmp_path / "a")] == [None] * 3
    first, second, _ = (row["gold"] for row in table(tmp_path / "b"))
    assert first > second, "the truth would have chosen another"
    results = json.loads((tmp_path / "b" / reject.RESULTS).read_text())
    assert results["curves"]["gold"][-1]["estimate"] == second
    assert "gold" not in json.loads((tmp_path / "a" / reject.RESULTS).read_text())["curves"]


# ── temperature ──────────────────────────────────────────────────────────────────────────────────


def warm_score(turns: Messages) -> float:
    """At 1.5 the answers differ most and the best is best; at 2 all are bad."""
    text, _, temperature = turns[-1].content.rpartition(" ")
    spread = {"0.5": 0.1, "1.5": 0.4, "2": 0.0}[temperature]
    return 0.5 + spread * (int(text.rpartition(":")[2]) - 1)


def test_the_temperature_is_that_of_the_best_maximum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[console.Progress] = []

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[console.Progress]:
        bars.append(console.Progress(title, total, unit))
        yield bars[-1]

    monkeypatch.setattr(console, "progress", progress)
    dataset = prompts_in(tmp_path / "prompts", *map(prompt, range(5)))
    speaker = Warm(said)
    outcome = sampled(
        monkeypatch,
        tmp_path / "out",
        dataset,
        speaker=speaker,
        score=warm_score,
        temperatures=[0.5, 1.5, 2.0],
        tune_prompts=2,
    )
    assert answers(tmp_path / "out") == {f"p{number}": f"answer p{number}:2 1.5" for number in range(5)}
    # Two prompts at each temperature, and then only the three that were not answered at the one that is taken.
    assert [key for key, _ in speaker.asked] == ["p0", "p1"] * 3 + ["p2", "p3", "p4"]
    results = json.loads((tmp_path / "out" / reject.RESULTS).read_text())
    assert results["temperature"] == 1.5
    assert [one["temperature"] for one in results["tuning"]] == [0.5, 1.5, 2.0]
    assert [one["maximum"][-1]["estimate"] for one in results["tuning"]] == pytest.approx([0.6, 0.9, 0.5])
    assert {one["prompts"] for one in results["tuning"]} == {2}
    assert {row["temperature"] for row in table(tmp_path / "out")} == {1.5}
    assert outcome.metrics["best"] == pytest.approx(0.9)
    assert [(bar.done, bar.total) for bar in bars] == [(27, 27)], "3 answers, 2 prompts 3 times and 3 prompts once"


def test_one_temperature_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Warm(said)
    sampled(monkeypatch, tmp_path / "out", prompts_in(tmp_path / "prompts", prompt(0)), speaker=speaker, score=len)
    assert len(speaker.asked) == 1
    assert json.loads((tmp_path / "out" / reject.RESULTS).read_text())["tuning"] == []


def test_it_goes_on_after_a_stop_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reject, "ANSWERS_A_PART", 6)
    dataset = prompts_in(tmp_path / "prompts", *map(prompt, range(7)))
    given: dict[str, Any] = {"score": warm_score, "temperatures": [0.5, 1.5], "tune_prompts": 3}
    sampled(monkeypatch, tmp_path / "whole", dataset, speaker=Warm(said), **given)
    # Parts of two prompts: two for each temperature, two for the four prompts left.
    for patience in (1, 3, 5):
        out = tmp_path / f"out-{patience}"
        first, second = Warm(said, patience=patience), Warm(said)
        with pytest.raises(KeyboardInterrupt):
            sampled(monkeypatch, out, dataset, speaker=first, **given)
        assert contents(out) == {}
        sampled(monkeypatch, out, dataset, speaker=second, **given)
        assert first.calls + second.calls == 6, "nothing is drawn twice"
        assert contents(out) == contents(tmp_path / "whole")


# ── what bad input gets ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperatures": [1.0, 0.0]}, r"temperatures: 0 is not above 0(.|\n)*are the same"),
        ({"temperatures": [6.0]}, "temperatures: 6 is not above 0 and at most 5"),
        ({"temperatures": [math.nan]}, r"temperatures\.0=nan.*a finite number"),
        ({"temperatures": [1.0, 1.0]}, "temperatures=.*names one twice"),
        ({"temperatures": []}, "temperatures"),
        ({"samples": 0}, "samples"),
        ({"splits": ["train", "train"]}, "splits=.*names one twice"),
        ({"earlier": ["latest:v1"]}, r"pool=last: does not look at earlier(.|\n)*pool=all"),
        ({"reward__whiten": "batch"}, r"reward.whiten=batch: has no part(.|\n)*reward.whiten=none"),
        ({"reward__unfinished": -1.0}, r"reward.unfinished=-1.0: has no part(.|\n)*reward.unfinished=null"),
        ({"reward__length_penalty": 0.1}, r"reward.length_penalty=0.1: has no part(.|\n)*reward.length_penalty=0"),
    ],
)
def test_values_out_of_bounds_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        settings(**changes)


def test_only_prompts_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversations = drawing.dataset(tmp_path / "c", "conversations", {"train": rewarding.ANSWERS})
    with pytest.raises(UserError, match=r"holds conversations(.|\n)*kind: prompts"):
        sampled(monkeypatch, tmp_path / "out", conversations)
    with pytest.raises(UserError, match="has no split 'valid'"):
        sampled(monkeypatch, tmp_path / "out", prompts_in(tmp_path / "p", prompt(0)), splits=["valid"])
    empty = prompts_in(tmp_path / "empty", prompt(0))
    (tmp_path / "empty" / "train.parquet").unlink()
    table = store.Table(tmp_path / "empty" / "train.parquet", pq.read_schema(tmp_path / "p" / "train.parquet"))
    table.finish()
    with pytest.raises(UserError, match="there is no prompt in train"):
        sampled(monkeypatch, tmp_path / "out", empty)


def test_a_pool_is_made_of_artifacts_of_this_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path / "prompts", prompt(0))
    with pytest.raises(UserError, match=r"holds no scored candidates(.|\n)*latest:reject"):
        sampled(monkeypatch, tmp_path / "out", dataset, earlier=[dataset])
    sampled(monkeypatch, tmp_path / "v1", dataset)
    twice = [artifact(tmp_path / "v1", 1), artifact(tmp_path / "v1", 1)]
    with pytest.raises(UserError, match="are the same artifact"):
        sampled(monkeypatch, tmp_path / "out", dataset, earlier=twice)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_has_to_be_finite(score: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prompts_in(tmp_path / "prompts", prompt(0))
    with pytest.raises(UserError, match=r"judge: gives the score (nan|inf) to an answer to p0"):
        sampled(monkeypatch, tmp_path / "out", dataset, score=lambda turns: score)


# ── models ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifacts.foreign(rewarding.policy(tmp_path_factory.mktemp("large")), "dir:large")


def drawn_by(monkeypatch: pytest.MonkeyPatch, policy: Artifact, dataset: Artifact, out: Path, **changes: Any) -> None:
    monkeypatch.setattr(combine, "open_scorer", lambda *_, **__: Rater(lambda turns: 0.5))
    out.mkdir()
    inputs = {"policy": policy, "prompts": dataset, "reward.model": REWARD}
    numbers = {"max_new_tokens": 12, "unfinished": "keep", "engine__precision": "fp32", **changes}
    reject.run(settings(**numbers), inputs, out)


def test_an_answer_depends_on_seed_prompt_and_sample(
    policy: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, one = (
        prompts_in(tmp_path / "several", *map(prompt, range(5))),
        prompts_in(tmp_path / "one", prompt(3)),
    )
    drawn_by(monkeypatch, policy, several, tmp_path / "a")
    drawn_by(monkeypatch, policy, one, tmp_path / "b", samples=2)
    drawn_by(monkeypatch, policy, one, tmp_path / "c", samples=2, seed=1)
    drawn_by(monkeypatch, policy, several, tmp_path / "d", temperatures=[1.0, 0.5], tune_prompts=4)
    whole = {(row["id"], row["sample"]): row["answer"] for row in table(tmp_path / "a")}
    assert len(set(whole.values())) > 10
    found = [row["answer"] for row in table(tmp_path / "b")]
    assert found == [whole["p3", 0], whole["p3", 1]]
    assert found != [row["answer"] for row in table(tmp_path / "c")]
    assert [row["answer"] for row in table(tmp_path / "d")] == list(whole.values()), "1.0 is the first of equals"


def test_prompts_that_leave_no_room_are_refused_at_once(
    policy: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Prompt(rewarding.long_prompt(1), "long")
    dataset = prompts_in(tmp_path / "prompts", prompt(0), long, prompt(1))
    told = r"prompts: 1 of 3 leave no room for 40 tokens more\nlong has \d+, and .* sees 96 at once.\n.*max_new_tokens="
    with pytest.raises(UserError, match=told):
        drawn_by(monkeypatch, policy, dataset, tmp_path / "out", max_new_tokens=40)
    assert list((tmp_path / "out").iterdir()) == [], "before anything is drawn"


def test_a_small_model_learns_from_what_a_large_one_drew(
    policy: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only text is kept, so the two need not share their pieces."""
    dataset = prompts_in(tmp_path / "prompts", *map(prompt, range(8)))
    drawn_by(monkeypatch, policy, dataset, tmp_path / "best")
    small = rewarding.policy(tmp_path / "small", pieces=420)
    kept = len(store.read(tmp_path / "best", "train"))
    arguments = [
        "stage=sft",
        f"store={tmp_path / 'runs'}",
        f"model=dir:{small}",
        f"data=dir:{tmp_path / 'best'}",
        "tracker=off",
        "engine.precision=fp32",
        "optimisation={steps: 2, epochs: null, batch: 4}",
    ]
    assert run.door(arguments) == 0
    trained = Store(tmp_path / "runs").latest("sft")
    assert trained.metrics["rows"] == kept == 8
    assert trained.tokens is not None
    assert trained.tokens.vocabulary == 420
    assert opening.speaks(trained)
