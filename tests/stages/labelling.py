"""What the tests of ``stage=label`` need: pairs, somebody who judges them, and what the stage wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drawing
import pyarrow.parquet as pq
import pytest
from drawing import Judge, Speaker
from pairs_support import artifact_of, pair

from alignment.artifacts import Artifact, Outcome
from alignment.chat.types import Comparison, Messages
from alignment.data import store
from alignment.data.pairs import Pair
from alignment.stages import label

SCORER = Artifact(Path(), "reward", "reward", "helpful", "2" * 64)
SCORES = {"Great.": 0.9, "Good.": 0.6, "Fair.": 0.45, "Poor.": 0.4, "Awful.": 0.0}


def truth() -> Judge:
    return Judge(lambda turns: SCORES[turns[-1].content])


class Reporting(Judge):
    """Reports what it scores."""

    def score(self, dialogues: Sequence[Messages]) -> Any:
        scores = super().score(dialogues)
        return scores._replace(reported=scores.raw)


PAIRS = [
    pair("t-0", "Great.", "Awful."),
    pair("t-1", "Poor.", "Great."),
    pair("t-2", "Good.", "Poor."),
    pair("t-3", "Fair.", "Poor."),
    pair("t-4", "Good.", "Good."),
    pair("t-5", "Good.", "Good.", why="equal answers"),
    pair("v-0", "Awful.", "Good.", split="valid"),
    pair("x-0", "Great.", "Poor.", split="test"),
]


def settings(**changes: Any) -> label.Settings:
    plain = {"judge": "run:judge", "aspect": "helpfulness", "held_out__share": 0.0}
    return label.Settings.parse(drawing.values("label", **{**plain, **changes}))


def labelled(
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    some: Sequence[Pair] = PAIRS,
    *,
    judge: Judge | None = None,
    speaker: Speaker | None = None,
    named: Artifact | None = SCORER,
    world: dict[str, int] | None = None,
    **changes: Any,
) -> Outcome:
    out.mkdir(parents=True, exist_ok=True)
    if named is not None and named.kind != "gold":
        drawing.let_speak(monkeypatch, speaker or Speaker(lambda *_: ""), judge or Reporting(truth()._score))
    inputs = {"pairs": artifact_of(out.with_name(f"{out.name}-pairs"), some, world)}
    if named is not None:
        inputs["judge"] = named
    return label.run(settings(**changes), inputs, out)


def rows_of(out: Path) -> dict[str, tuple[str, Comparison]]:
    """Split and row by id."""
    found = {}
    for split in store.card(out)["rows"]:
        for row in store.stream(out, split):
            assert isinstance(row, Comparison)
            found[row.id] = (split, row)
    return found


def origins_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(out / label.ORIGINS).to_pylist()}


def fates(out: Path) -> dict[str, tuple[str, str]]:
    return {entry.id: (entry.fate, entry.reason) for entry in store.entries(out)}
