"""Rewards that are measured beside gold, under the names of the steps that made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest

from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt, messages
from alignment.evals import answers
from alignment.sampling.sampler import Answer
from alignment.scoring import opening
from alignment.scoring.scorer import Scores
from alignment.stages import evaluate
from alignment.training import policies

REWARD = Artifact(Path("/nowhere"), "reward", "reward", "helpful", "2" * 64)


class Centred:
    """Raw scores are lengths, reported ones 100 less."""

    name, absolute = "whatever", False

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        raw = [float(len(turns[-1].content)) for turns in dialogues]
        return Scores(raw, [value - 100 for value in raw], [0.5] * len(raw))


class Policy:
    tokenizer = None


def evaluated(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    rewards: list[Artifact] | None,
    read: list[Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Run the stage; how each reward is opened is added to ``read``."""
    prompts = [Prompt(messages(("user", f"{word}?")), word) for word in ("one", "three")]
    data = drawing.dataset(out / "data", "prompts", {"test": prompts})
    drawn = [Answer(place, 0, [1] * length, [0.0] * length, True) for place, length in enumerate((2, 3))]
    drawing.let_chat(monkeypatch)
    monkeypatch.setattr(policies, "open_policy", lambda *_: Policy())
    monkeypatch.setattr(evaluate, "_draw", lambda *_: (drawn, [[1], [1]]))
    monkeypatch.setattr(answers, "answer_text", lambda ids, _: "x" * len(ids))

    def open_scorer(artifact: Artifact, *_: Any, **reading: Any) -> Centred:
        if read is not None:
            read.append(reading)
        return Centred()

    monkeypatch.setattr(opening, "open_scorer", open_scorer)
    named = None if rewards is None else ["run:x"] * len(rewards)
    values = drawing.values(
        "evaluate", models=["run:m"], prompts="run:p", conversations=None, reference=None, rewards=named, **more
    )
    inputs = {"models.0": replace(drawing.POLICY, path=out), "prompts": data}
    inputs |= {f"rewards.{place}": reward for place, reward in enumerate(rewards or [])}
    outcome = evaluate.run(evaluate.Settings.parse(values), inputs, out)
    return {**outcome.metrics}


def test_rewards_are_reported_by_the_names_of_their_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = evaluated(monkeypatch, tmp_path, [REWARD, replace(REWARD, step="safety")])
    # Answers of two and three characters, centred at 100.
    assert found["reward_helpful"] == found["reward_safety"] == -97.5
    rows = pq.read_table(tmp_path / evaluate.ANSWERS).to_pylist()
    assert [row["reward_helpful"] for row in rows] == [-98, -97]
    told = json.loads((tmp_path / evaluate.RESULTS).read_text())["models"]["test"]
    assert told["reward_safety"]["low"] < told["reward_safety"]["high"]


def test_rewards_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = evaluated(monkeypatch, tmp_path, [REWARD, replace(REWARD, fingerprint="7" * 64)])
    assert {"reward_helpful-2222", "reward_helpful-7777"} <= found.keys()


def test_a_classifier_is_read_as_the_settings_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[Any] = []
    evaluated(monkeypatch, tmp_path / "a", [REWARD], read, classifier__label="toxic", classifier__text="answer")
    evaluated(monkeypatch, tmp_path / "b", [REWARD], read)
    assert [(one["label"], one["text"]) for one in read] == [("toxic", "answer"), (None, "dialogue")]
    assert all(one["prompts"] for one in read), "a check reads what is right from them"


def test_without_rewards_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not any(name.startswith("reward") for name in evaluated(monkeypatch, tmp_path, None))
