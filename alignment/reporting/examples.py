"""A few examples of suites, as people want to see them: what was asked, what every model said, what it counted for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = "examples.parquet"
ROWS_A_BATCH = 1_024
INVALID = "invalid"
NO_VALUES = {"suite", "model", "id", "unit", "shown"}
"""Columns of an example that say what it is; those of groups begin with ``by_``, all others are measures."""
BY = "by_"

ANSWERED = {"answers", "answer", "drawn", "chosen", "right", "scores", "judged"}
"""Of what is shown: what the model did, and what was said of it."""

Row = Mapping[str, Any]


class Said(NamedTuple):
    """What one model said, and what it counted for."""

    text: str
    values: dict[str, float]


class Shown(NamedTuple):
    """An example: its turns (role and text), the labels of its groups, and what was said by model."""

    turns: list[list[str]]
    labels: list[str]
    said: dict[str, Said]


def some(path: Path, most: int, *, suite: str = "", model: str = "") -> dict[str, dict[str, Shown]]:
    """At most so many examples of every suite, by suite and id: first what a judge could not read, then one a group.

    ``suite`` and ``model`` are what they are called in a file of one model on one suite, which names neither.
    The file is read twice, a thousand rows in memory at a time. There is none where nothing can be shown.
    """
    # Twice as many: of some there is nothing to show, such as the spread of a question over formats.
    chosen = _chosen(path, 2 * most, suite)
    found: dict[str, dict[str, Shown]] = {name: {} for name in chosen}
    for row in _rows(path):
        of = row.get("suite", suite)
        if row["id"] not in chosen[of] or not (shown := json.loads(row["shown"])):
            continue
        labels = [str(value) for name, value in row.items() if name.startswith(BY) and value is not None]
        one = found[of].setdefault(row["id"], Shown(turns_of(shown), labels, {}))
        one.said[row.get("model", model)] = Said(text_of(shown), _values(row))
    ordered = {of: [name for name in chosen[of] if name in some][:most] for of, some in found.items() if some}
    return {of: {name: found[of][name] for name in names} for of, names in ordered.items()}


def _chosen(path: Path, most: int, alone: str) -> dict[str, list[str]]:
    """Ids by suite, in the order in which they are shown."""
    unread: dict[str, dict[str, None]] = {}
    first: dict[str, dict[str, str]] = {}
    others: dict[str, dict[str, None]] = {}
    units: dict[str, set[str]] = {}
    for row in _rows(path, without=("shown",)):
        suite, name = row.get("suite", alone), row["id"]
        if row.get(INVALID) and len(unread.setdefault(suite, {})) < most:
            unread[suite][name] = None
        label = next((f"{key} {value}" for key, value in row.items() if key.startswith(BY) and value is not None), "")
        one_a_group, met = first.setdefault(suite, {}), units.setdefault(suite, set())
        if label not in one_a_group and row["unit"] not in met:
            one_a_group[label] = name
            met.add(row["unit"])
        if len(others.setdefault(suite, {})) < most:
            others[suite][name] = None
    return {
        suite: [*dict.fromkeys([*unread.get(suite, {}), *first[suite].values(), *others[suite]])][:most]
        for suite in first
    }


def _rows(path: Path, without: tuple[str, ...] = ()) -> Iterator[Row]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name not in without]
    for batch in file.iter_batches(ROWS_A_BATCH, columns=columns):
        yield from batch.to_pylist()


def _values(row: Row) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if value is not None and name not in NO_VALUES and not name.startswith(BY)
    }


def turns_of(shown: Row) -> list[list[str]]:
    """What was asked, as role and text, from what a suite shows of an example."""
    if "prompt" in shown:
        prompt = shown["prompt"]
        return [["text", prompt]] if isinstance(prompt, str) else [[role, text] for role, text in prompt]
    turns = [["instruction", shown["instruction"]]] if "instruction" in shown else []
    if "question" in shown:
        turns.append(["user", shown["question"]])
    if "options" in shown:
        turns += [[_letter(place), option] for place, option in enumerate(shown["options"])]
    return turns or [[str(key), _told(value)] for key, value in shown.items() if key not in ANSWERED]


def text_of(shown: Row) -> str:
    """What was answered: every sample on a line of its own, or the option that was chosen; empty for nothing."""
    if "answers" in shown:
        return "\n".join(map(str, shown["answers"]))
    if isinstance(shown.get("chosen"), int):
        return f"{_letter(shown['chosen'])}: {shown['options'][shown['chosen']]}"
    return str(shown.get("answer") or shown.get("drawn") or "")


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
