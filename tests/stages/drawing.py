"""What the tests of stages that draw answers need: tiny datasets, settings from conf/, and somebody who answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact
from alignment.chat import template
from alignment.chat.types import Messages
from alignment.data import store
from alignment.data.rows import Kind, Row, Split
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring import opening
from alignment.scoring.scorer import Scores

CONF = Path(__file__).parents[2] / "conf"
Answer = Callable[[Messages, str], str]


def values(stage: str, **changes: Any) -> dict[str, Any]:
    """The values of conf/stage/<stage>.yaml, but for some; ``decoding__samples`` is a nested key."""
    found = yaml.safe_load((CONF / "stage" / f"{stage}.yaml").read_text())
    del found["defaults"]
    for group, option in (("engine", "single"), ("endpoint", "patient")):
        found[group] = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (found[group] if group else found)[leaf] = value
    return found


def dataset(folder: Path, kind: Kind, rows: Mapping[Split, Sequence[Row]], *, miniature: bool = False) -> Artifact:
    """A dataset artifact with these rows."""
    with store.Writer(folder, kind) as writer:
        for split, some in rows.items():
            for row in some:
                writer.add(split, row)
        counts = writer.rows
    world = {"seed": 0, "residents": 40} if miniature else None
    card = store.Card(kind, counts, {}, 0.0, {}, ("MIT",), "test", world=world)
    store.write_card(folder, card)
    return Artifact(folder, "dataset", "data", "test", "0" * 64, licences=("MIT",))


POLICY = Artifact(Path(), "policy", "sft", "test", "1" * 64)


class Speaker:
    """Answers by a function of the prompt and its key; stops for good after ``patience`` calls."""

    name = "speaker"

    def __init__(self, answer: Answer, patience: int | None = None, unfinished: str = "…") -> None:
        self.answer, self.patience, self.unfinished = answer, patience, unfinished
        self.asked: list[tuple[str, Messages]] = []
        self.calls = 0

    def reply(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        decoding: Decoding,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Reply]]:
        if self.calls == self.patience:
            raise KeyboardInterrupt
        self.calls += 1
        self.asked += zip(keys, prompts, strict=True)
        if on_progress is not None:
            on_progress(len(prompts) * decoding.samples)
        return [
            [self._one(self.answer(turns, f"{key}:{sample}")) for sample in range(decoding.samples)]
            for turns, key in zip(prompts, keys, strict=True)
        ]

    def _one(self, said: str) -> Reply:
        return Reply(said, len(said.split()), not said.endswith(self.unfinished))


class Judge:
    """Scores a dialogue by a function, which gives a probability."""

    name, absolute = "judge", True

    def __init__(self, score: Callable[[Messages], float]) -> None:
        self._score = score
        self.judged: list[Messages] = []

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        self.judged += dialogues
        raw = [self._score(turns) for turns in dialogues]
        return Scores(raw, [0.0] * len(raw), raw)


def let_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of tests lie nowhere, and none has the file that says how a chat is written."""
    monkeypatch.setattr(template, "has_chat_template", lambda folder: True)


def let_speak(monkeypatch: pytest.MonkeyPatch, speaker: Speaker, judge: Judge | None = None) -> None:
    """Have the stages ask ``speaker`` and ``judge``, whatever the references name."""
    monkeypatch.setattr(opening, "open_respondent", lambda *_, **__: speaker)
    let_chat(monkeypatch)
    if judge is not None:
        monkeypatch.setattr(opening, "open_scorer", lambda *_, **__: judge)


def contents(out: Path) -> dict[str, bytes]:
    """The bytes of everything that a stage leaves, but for the parts of unfinished work."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}
