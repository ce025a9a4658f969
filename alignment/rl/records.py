"""What a run leaves for people: metrics by step, points of the KL–reward front, samples of what the policy said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment import console, files, parts, ranks
from alignment.chat.types import Prompt
from alignment.errors import LostError, UserError
from alignment.rl.control import Point
from alignment.training.tracking import Tracker

FRONT, SAMPLES = "front.jsonl", "samples.jsonl"
SHOWN = 24
"""Held-out prompts whose answers are kept at every look."""


class Records:
    """Writes rows; a run that goes on takes back those past its checkpoint, so that nothing is told twice."""

    def __init__(self, tracker: Tracker, out: Path) -> None:
        self.tracker, self.front, self.samples = tracker, out / FRONT, out / SAMPLES
        self.told = -1
        """The last step whose rows are whole."""

    def rewind(self, step: int) -> None:
        """Take back every row past ``step``; −1 takes back all."""
        self.told = step
        self.tracker.rewind(step)
        for path in (self.front, self.samples):
            if console.is_main_process() and path.exists():
                kept = [json.dumps(row, ensure_ascii=False) + "\n" for row in read(path) if row["step"] <= step]
                files.write_atomic(path, "".join(kept))

    def step(self, step: int, row: Mapping[str, float]) -> None:
        """The measures of a batch."""
        self.tracker.log(step, row)
        self.told = step

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


@contextmanager
def answers_kept(out: Path, prompts: Sequence[Prompt], answers: Sequence[str]) -> Iterator[None]:
    """Where the answers cannot be judged, a score that is no number included, they are saved, and the error says so."""
    try:
        yield
    except LostError:
        # Nothing is wrong with the answers, and a job queues again on its code.
        raise
    except UserError as error:
        path = out / parts.FOLDER / f"not_judged_{ranks.rank()}.jsonl"
        rows = ({"prompt": one.id, "answer": text} for one, text in zip(prompts, answers, strict=True))
        files.make_folder(path.parent)
        files.write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        remedy = f"{error.remedy} The answers are in {path}.".strip()
        raise UserError(error.problem, cause=error.cause, remedy=remedy) from error


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
