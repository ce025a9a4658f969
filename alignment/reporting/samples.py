"""A few answers of an evaluation, as a person wants to see them: the dialogue, the answer, what it counted for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from alignment import console
from alignment.artifacts import Artifact
from alignment.reporting import examples
from alignment.reporting.examples import Shown
from alignment.reporting.numbers import fixed

SHOWN = 3
SHOWN_OF_SUITE = 2
MODELS, MEASURES = 4, 4
"""Of an example of a suite: how many models' answers are shown, with how many measures."""
ANSWERS = "answers.parquet"


def show(evaluations: Sequence[Artifact]) -> None:
    """Print samples of the last evaluation that kept answers, spread over what it asked; those of suites keep none."""
    for evaluation in [one for one in evaluations if (one.path / ANSWERS).is_file()][-1:]:
        for row in _spread(_answers(evaluation), SHOWN):
            console.say()
            console.console().print(_dialogue(row))


def of_suites(artifact: Artifact) -> None:
    """Print a few examples of every suite, first those about which a judge could not be read."""
    path = artifact.path / examples.FILE
    if not path.is_file():
        return
    name = artifact.step or artifact.path.name
    for suite, some in examples.some(path, SHOWN_OF_SUITE, suite=name, model="answer").items():
        for one in some.values():
            console.say()
            console.console().print(_example(suite, one))


def _example(suite: str, one: Shown) -> Text:
    shown = Text(f"  {', '.join([suite, *one.labels])}\n", style="dim")
    width = max(len(name) for name in [*(role for role, _ in one.turns), *one.said])
    for role, text in one.turns:
        shown.append(f"  {role:<{width}} ", style="dim").append(f"{text}\n", style="not dim")
    for model, said in [*one.said.items()][:MODELS]:
        shown.append(f"  {model:<{width}} ", style="dim").append(said.text or "(nothing)", style="not dim bold green")
        values = [f"{name} {fixed(value, 2)}" for name, value in [*said.values.items()][:MEASURES]]
        shown.append(f"   {', '.join(values)}\n", style="not dim cyan")
    if len(one.said) > MODELS:
        shown.append(f"  and {len(one.said) - MODELS} more\n")
    shown.rstrip()
    return shown


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
