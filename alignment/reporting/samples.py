"""A few answers of an evaluation, as a person wants to see them: the dialogue, the answer, its gold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from alignment import console
from alignment.artifacts import Artifact

SHOWN = 3
ANSWERS = "answers.parquet"


def show(evaluations: Sequence[Artifact]) -> None:
    """Print samples of the last evaluation that kept answers, spread over what it asked; those of suites keep none."""
    for evaluation in [one for one in evaluations if (one.path / ANSWERS).is_file()][-1:]:
        for row in _spread(_answers(evaluation), SHOWN):
            console.say()
            console.console().print(_dialogue(row))


def _answers(evaluation: Artifact) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(evaluation.path / ANSWERS).to_pylist()


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows of different kinds: the first of a kind, kinds in the order in which they come."""
    kinds: dict[str, dict[str, Any]] = {}
    for row in rows:
        kinds.setdefault(json.dumps(row["tags"][:1]), row)
    return list(kinds.values())[:count]


def _dialogue(row: dict[str, Any]) -> Text:
    shown = Text()
    for turn in row["prompt"]:
        shown.append(f"  {turn['role']:<10}", style="dim").append(f"{turn['content']}\n")
    shown.append(f"  {'answer':<10}", style="dim").append(row["answer"] or "(nothing)", style="bold green")
    if "gold" in row:
        shown.append(f"   gold {row['gold']:.2f}", style="cyan")
    return shown
