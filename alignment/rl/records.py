"""What a run leaves for people: metrics by step, points of the KL–reward front, samples of what the policy said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment import console, files
from alignment.rl.control import Point
from alignment.training.tracking import Tracker

FRONT, SAMPLES = "front.jsonl", "samples.jsonl"
SHOWN = 24
"""Held-out prompts whose answers are kept at every look."""


class Records:
    """Writes rows; a run that goes on takes back those past its checkpoint, so that nothing is told twice."""

    def __init__(self, tracker: Tracker, out: Path) -> None:
        self.tracker, self.front, self.samples = tracker, out / FRONT, out / SAMPLES

    def rewind(self, step: int) -> None:
        """Take back every row past ``step``; −1 takes back all."""
        self.tracker.rewind(step)
        for path in (self.front, self.samples):
            if console.is_main_process() and path.exists():
                kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in read(path) if row["step"] <= step]
                files.write_atomic(path, "".join(kept))

    def step(self, step: int, row: Mapping[str, float]) -> None:
        """The measures of a batch."""
        self.tracker.log(step, row)

    def point(self, point: Point, rows: Sequence[Mapping[str, Any]]) -> None:
        """One look at the held-out prompts, with what was said to the first of them."""
        self.tracker.log(
            point.step,
            {"held_out/kl": point.kl, "held_out/reward": point.reward}
            | {f"held_out/{name}": value for name, value in point.others.items()},
        )
        self.tracker.table("held_out/samples", point.step, rows[:SHOWN])
        _append(self.front, [point.row()])
        _append(self.samples, rows[:SHOWN])


def read(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if console.is_main_process():
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
