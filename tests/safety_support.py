"""What tests of safety need: prompts, somebody who answers, somebody who judges, and one model examined on a suite."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment import artifacts
from alignment.artifacts import Artifact
from alignment.chat.types import Messages, Prompt
from alignment.data import store
from alignment.evals.suites import kept, subject
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring import opening
from alignment.scoring.scorer import Scores
from alignment.stages import assess

CONF = Path(__file__).parents[1] / "conf"
SCORER = Artifact(Path("/nowhere"), "reward", "reward", "safety", "2" * 64)
ENDPOINT = {"concurrency": 4, "max_spend": None, "timeout": 5.0, "retries": 0, "back_off": 0.01}


class Speaker:
    """Answers by a function of the prompt and its key with the sample; stops for good after ``patience`` calls."""

    name = "speaker"

    def __init__(self, answer: Callable[[Messages, str], str], patience: int | None = None) -> None:
        self.answer, self.patience, self.calls = answer, patience, 0
        self.asked: list[tuple[str, Messages]] = []

    def reply(
        self, prompts: Sequence[Messages], keys: Sequence[str], decoding: Decoding, on_progress: Any = None
    ) -> list[list[Reply]]:
        if self.calls == self.patience:
            raise KeyboardInterrupt
        self.calls += 1
        self.asked += zip(keys, prompts, strict=True)
        return [
            [
                Reply(said := self.answer(turns, f"{key}:{sample}"), len(said.split()), True)
                for sample in range(decoding.samples)
            ]
            for turns, key in zip(prompts, keys, strict=True)
        ]


class Judge:
    """Scores a dialogue by a function, which gives a probability."""

    name, absolute = "judge", True

    def __init__(self, score: Callable[[Messages], float], absolute: bool = True) -> None:
        self._score, self.absolute = score, absolute
        self.judged: list[Messages] = []

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        self.judged += dialogues
        found = [self._score(turns) for turns in dialogues]
        return Scores([9.0] * len(found), [8.0] * len(found), found)


class Answering:
    """Answers of a server, noted as they are given: whatever is refused before is not among them."""

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        self._answer = answer
        self.given: Counter[tuple[str, str]] = Counter()

    def __call__(self, body: dict[str, Any]) -> str:
        self.given[body["model"], json.dumps(body, sort_keys=True)] += 1
        return self._answer(body)

    def by_model(self) -> Counter[str]:
        """How many answers each model has given, of which none was asked for twice."""
        assert set(self.given.values()) <= {1}
        return Counter(model for model, _ in self.given)


def yaml_of(group: str, name: str) -> dict[str, Any]:
    """The values of a file in conf/, with those of the suite it is made from."""
    values = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    base = [one for one in values.pop("defaults", []) if isinstance(one, str) and one[0] not in "_/"]
    for one in base:
        values = yaml_of(group, one) | values
    return values


def prompts(folder: Path, rows: Sequence[Prompt], world: dict[str, int] | None = None, split: Any = "test") -> Artifact:
    """A dataset artifact with these rows."""
    with store.Writer(folder, "prompts") as writer:
        for row in rows:
            writer.add(split, row)
        counts = writer.rows
    store.write_card(folder, store.Card("prompts", counts, {}, 0.0, {}, ("MIT",), "test", world=world))
    return Artifact(folder, "dataset", "data", folder.name, "0" * 64, licences=("MIT",))


def examined(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    suite: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    *,
    speaker: Speaker | None = None,
    judge: Judge | None = None,
    endpoint: Mapping[str, Any] = ENDPOINT,
) -> dict[str, Any]:
    """``stage=assess``: one model on a suite; gives results.json. Without a speaker an endpoint answers."""
    out.mkdir(parents=True, exist_ok=True)
    with monkeypatch.context() as patch:
        model = artifacts.named("endpoint", "model")
        if speaker is not None:
            patch.setattr(subject.Subject, "respondent", speaker)
            model = Artifact(out.parent, "policy", "sft", out.name, "1" * 64)
        if judge is not None:
            patch.setattr(opening, "open_scorer", lambda *_, **__: judge)
        values = yaml_of("stage", "assess") | {
            "model": "run:m", "suite": dict(suite), "endpoint": dict(endpoint), "engine": yaml_of("engine", "single"),
        }  # fmt: skip
        named = {"model": model} | {f"suite.{key}": one for key, one in inputs.items()}
        assess.run(assess.Settings.parse(values), named, out)
    return told(out)


def told(out: Path) -> dict[str, Any]:
    """What results.json holds."""
    found: dict[str, Any] = json.loads((out / kept.RESULTS).read_text())
    return found


def estimates(measures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: one["estimate"] for name, one in measures.items()}
