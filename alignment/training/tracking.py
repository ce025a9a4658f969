"""Metrics on their way to a person: ``metrics.jsonl`` always, W&B offline unless the user is logged in.

A resumed stage continues the same W&B run, and rows that the interrupted run wrote past its last checkpoint are taken
back, so that no step is counted twice. W&B is told what stands on disk, row by row (``wandb_runs.py``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment import console, files
from alignment.artifacts import Artifact
from alignment.training.wandb_runs import TABLES, Run, TrackerSettings, number, whole_rows

__all__ = ["METRICS", "Tracker", "TrackerSettings", "conclude", "leave_open", "read_metrics"]

METRICS = "metrics.jsonl"

_open: dict[Path, Run] = {}
"""Runs whose stage is done and whose artifact is not yet finished, by its folder."""


class Tracker:
    """Writes one row of numbers per call. Only the main process writes.

    ``inputs`` are declared to W&B at once, as what the run reads; what it makes is declared by :func:`conclude`.
    """

    def __init__(
        self,
        settings: TrackerSettings,
        out: Path,
        config: Mapping[str, Any],
        *,
        stage: str = "",
        inputs: Mapping[str, Artifact] | None = None,
    ) -> None:
        self.out, self.path, self.every = out, out / METRICS, settings.every
        self._active = console.is_main_process()
        self._run: Run | None = None
        self._untold, self._untold_tables = 0, 0
        if not self._active:
            return
        for path in (self.path, out / TABLES):
            _keep(path, math.inf)
        if settings.wandb != "off":
            self._untold, self._untold_tables = len(whole_rows(self.path)), len(whole_rows(out / TABLES))
            self._run = Run(settings, folder=out, place=out, stage=stage, config=config)
            self._run.over_steps()
            for artifact in (inputs or {}).values():
                self._run.take(artifact)

    def rewind(self, step: float) -> None:
        """Take back every row past ``step``; the run goes on from there, and W&B is told what it does not know."""
        if not self._active:
            return
        earlier = whole_rows(self.path)[: self._untold]
        earlier_tables = whole_rows(self.out / TABLES)[: self._untold_tables]
        _keep(self.path, step)
        _keep(self.out / TABLES, step)
        if self._run is not None:
            for row in earlier:
                if self._run.told < row["step"] <= step:
                    self._run.log(row)
            for table in earlier_tables:
                if self._run.told < table["step"] <= step:
                    self._run.table(table["name"], table["rows"], table["step"])
            self._run.supersede()
        self._untold = self._untold_tables = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row. A number that is not finite is written as null: JSON has no word for it."""
        if not self._active:
            return
        row = {"step": step} | {name: number(value) for name, value in metrics.items()}
        _append(self.path, row)
        if self._run is not None:
            self._run.log(row)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows of text and numbers in W&B; what is kept on disk for people is the caller's."""
        if self._run is not None and rows:
            _append(self.out / TABLES, {"step": step, "name": name, "rows": [dict(row) for row in rows]})
            self._run.table(name, rows, step)

    def finish(self, summary: Mapping[str, float]) -> None:
        """Give the closing numbers; the run stays open for the artifact that the stage is about to finish."""
        if self._run is not None:
            if self._untold or self._untold_tables:
                self.rewind(math.inf)
            self._run.summarise(summary)
            leave_open(self.out, self._run)


def leave_open(out: Path, run: Run) -> None:
    """Leave a run to :func:`conclude`, or to the end of the program."""
    _open[out] = run


def conclude(artifact: Artifact) -> None:
    """Declare a finished artifact as what its run made, with all its numbers, and close the run, if there is one."""
    run = _open.pop(artifact.path, None)
    if run is not None:
        run.summarise(artifact.metrics)
        run.give(artifact)
        run.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file; a last line cut short by a kill is left out."""
    return whole_rows(path)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _keep(path: Path, step: float) -> None:
    """Leave only the whole rows up to ``step``."""
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in whole_rows(path) if row["step"] <= step]
        files.write_atomic(path, "".join(kept))
