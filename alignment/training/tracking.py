"""Metrics on their way to a person: ``metrics.jsonl`` always, W&B offline unless the user is logged in.

A resumed stage continues the same W&B run, and rows that the interrupted run wrote past its last
checkpoint are taken back, so that no step is counted twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from alignment import console, files
from alignment.errors import UserError
from alignment.settings import Settings, execution

METRICS = "metrics.jsonl"


class TrackerSettings(Settings):
    """``conf/tracker/*.yaml``."""

    wandb: Literal["auto", "online", "offline", "off"] = execution(
        "Weights & Biases; auto is online for a logged-in user and offline otherwise; nobody is ever asked"
    )
    project: str = execution("the W&B project")
    every: int = execution("steps between two rows of metrics", ge=1)


class Tracker:
    """Writes one row of numbers per call. Only the main process writes."""

    def __init__(self, settings: TrackerSettings, out: Path, config: Mapping[str, Any]) -> None:
        self.path, self.every = out / METRICS, settings.every
        self._active = console.is_main_process()
        self._wandb = _start_wandb(settings, out, config) if self._active and settings.wandb != "off" else None

    def rewind(self, step: int) -> None:
        """Take back every row past ``step``; the run goes on from there."""
        if self._active and self.path.exists():
            kept = [json.dumps(row) + "\n" for row in read_metrics(self.path) if row["step"] <= step]
            files.write_atomic(self.path, "".join(kept))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row. A number that is not finite is written as null: JSON has no word for it."""
        if not self._active:
            return
        row = {"step": step} | {name: _json_number(value) for name, value in metrics.items()}
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics})

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows of text and numbers in W&B; what is kept on disk is the caller's."""
        if self._wandb is not None and rows:
            import wandb

            columns: list[Any] = list(rows[0])
            table = wandb.Table(columns=columns, data=[[row[column] for column in columns] for row in rows])
            self._wandb.log({"step": step, name: table})

    def finish(self, summary: Mapping[str, float]) -> None:
        """Close the run with its closing numbers."""
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _start_wandb(settings: TrackerSettings, out: Path, config: Mapping[str, Any]) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    online = settings.wandb == "online" or (settings.wandb == "auto" and wandb.login(prompt=False, verify=False))
    try:
        run = wandb.init(
            project=settings.project,
            id=f"{out.parent.name}-{out.name}",
            name=out.name,
            group=out.parent.name,
            dir=out,
            config=dict(config),
            mode="online" if online else "offline",
            resume="allow" if online else None,
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"tracker.wandb={settings.wandb}: {error}", remedy="Say tracker=offline, or tracker=off."
        ) from None
    # Our own step axis: W&B refuses a step that comes again after a resume, an axis of ours does not mind.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
