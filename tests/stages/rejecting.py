"""What the tests of ``stage=reject`` need: somebody who speaks, somebody who rates, and what the stage wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest
from drawing import Judge, Speaker

from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Messages, Prompt, messages
from alignment.data import candidates, store
from alignment.sampling.decoding import Decoding, Reply
from alignment.scoring import combine
from alignment.scoring.scorer import Scores
from alignment.stages import reject

REWARD = Artifact(Path(), "reward", "reward", "helpful", "2" * 64)
OTHER = Artifact(Path(), "reward", "reward", "other", "3" * 64)


def prompt(number: int, *tags: str, **more: Any) -> Prompt:
    return Prompt(messages(("user", f"Question {number}?")), f"p{number}", tags, **more)


def prompts_in(folder: Path, *rows: Prompt, miniature: bool = False, **splits: list[Prompt]) -> Artifact:
    found: dict[Any, Any] = splits or {"train": list(rows)}
    return drawing.dataset(folder, "prompts", found, miniature=miniature)


def settings(**changes: Any) -> reject.Settings:
    shipped = drawing.values("reject", engine__device="cpu")
    shipped |= {"temperatures": [1.0], "samples": 3, "count": None}
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (shipped[group] if group else shipped)[leaf] = value
    return reject.Settings.parse(shipped)


class Warm(Speaker):
    """Says at which temperature it speaks, too."""

    def reply(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        decoding: Decoding,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Reply]]:
        found = super().reply(prompts, keys, decoding, on_progress)
        return [[replace(one, text=f"{one.text} {decoding.temperature:g}") for one in some] for some in found]


class Rater(Judge):
    """Reports what it scores: a single reward optimises what is reported."""

    def score(self, dialogues: Sequence[Messages]) -> Scores:
        found = super().score(dialogues)
        return found._replace(reported=found.raw)


def said(turns: Messages, key: str) -> str:
    """``p3:1`` answers the second time to the fourth prompt."""
    return f"answer {key}"


def by_number(*scores: float) -> Callable[[Messages], float]:
    """A score by the number of the answer among those to its prompt."""
    return lambda turns: scores[int(turns[-1].content.split()[1].rpartition(":")[2])]


def sampled(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    dataset: Artifact,
    *,
    score: Callable[[Messages], float] | None = None,
    speaker: Speaker | None = None,
    judge: Judge | None = None,
    earlier: Sequence[Artifact] = (),
    reward: Artifact = REWARD,
    **changes: Any,
) -> Outcome:
    """Run the stage with somebody who speaks and somebody who judges: of three answers the second is best."""
    drawing.let_speak(monkeypatch, speaker or Speaker(said))
    monkeypatch.setattr(combine, "open_scorer", lambda *_, **__: judge or Rater(score or by_number(0.1, 0.9, 0.5)))
    out.mkdir(exist_ok=True)
    inputs = {"policy": drawing.POLICY, "prompts": dataset, "reward.model": reward}
    if earlier:
        changes |= {"pool": "all", "earlier": [f"run:{one.path}" for one in earlier]}
        inputs |= {f"earlier.{place}": one for place, one in enumerate(earlier)}
    return reject.run(settings(**changes), inputs, out)


def artifact(out: Path, number: int) -> Artifact:
    """What the stage wrote, as a later iteration receives it."""
    return Artifact(out, "dataset", "reject", f"v{number}", f"{number}" * 64)


def answers(out: Path, split: str = "train") -> dict[str, str]:
    return {row.id: row.messages[-1].content for row in store.read(out, split)}  # type: ignore[arg-type, union-attr]


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / candidates.CANDIDATES).to_pylist()
    return rows


def ledger(out: Path) -> list[tuple[str, str, int, str, str, int]]:
    return [(one.source, one.file, one.line, one.fate, one.reason, one.copies) for one in store.entries(out)]
