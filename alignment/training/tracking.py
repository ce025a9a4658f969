"""Metrics on their way to a person: ``metrics.jsonl`` always, W&B offline unless the user is logged in.

A resumed stage continues the same W&B run, and rows that the interrupted run wrote past its last checkpoint are taken
back, so that no step is counted twice. W&B is told what stands on disk, row by row (``wandb_runs.py``); where its
process dies, its run is begun anew and told all of it again, a counted number of times.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment import console, files
from alignment.artifacts import Artifact
from alignment.errors import UserError
from alignment.training import incidents, wandb_runs
from alignment.training.wandb_runs import TABLES, Run, TrackerSettings, number, whole_rows

__all__ = ["METRICS", "Tracker", "TrackerSettings", "abandon", "conclude", "leave_open", "part", "read_metrics"]

METRICS = "metrics.jsonl"
LOSSES = 3
"""How often in one run W&B's process may die."""
GRACE = 20.0
"""Seconds in which W&B is told why a stage was stopped: less than the watchdog and a scheduler's warning leave."""
PATIENCE = 60.0
"""Seconds in which W&B is told of a finished artifact, besides those for the weights that are sent."""
SLOWEST = 4 * 2**20
"""Bytes a second at which weights that are sent are waited for."""

_open: dict[Path, Run] = {}
"""Runs whose stage is done and whose artifact is not yet finished, by its folder."""
_live: dict[Path, Run] = {}
"""Runs whose stage is going on, by the folder of what it makes."""


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
        self._settings, self._config, self._stage = settings, config, stage
        self._inputs = list((inputs or {}).values())
        self._active = console.is_main_process()
        self._run: Run | None = None
        self._untold = self._untold_tables = self._losses = 0
        if not self._active:
            return
        for path in (self.path, out / TABLES):
            _keep(path, math.inf)
        if settings.wandb != "off":
            self._open()

    def _open(self) -> None:
        """Begin or go on with the run; it still has to be told what stands on disk."""
        self._untold, self._untold_tables = len(whole_rows(self.path)), len(whole_rows(self.out / TABLES))
        self._run = Run(self._settings, folder=self.out, place=self.out, stage=self._stage, config=self._config)
        _live[self.out] = self._run
        self._run.over_steps()
        for artifact in self._inputs:
            self._run.take(artifact)

    def _tell(self, say: Callable[[Run], None], *, kept: bool = True) -> None:
        """Tell W&B something; ``kept``: it stands on disk too, from which a run that is begun anew is told."""
        while self._run is not None:
            try:
                say(self._run)
                return
            except ConnectionError as error:
                self._begin_again(error)
                if kept:
                    return

    def _begin_again(self, error: ConnectionError) -> None:
        """W&B's process is gone: start another, with all there is. Raises :class:`UserError` the last time."""
        while self._losses < LOSSES:
            self._losses += 1
            gone = f"W&B's process was gone ({incidents.reason(error)})"
            why = f"{gone}; its run was begun anew, time {self._losses} of at most {LOSSES}"
            console.say(f"  {why}", style="yellow")
            incidents.note(self.out, why)
            wandb_runs.forget_process()
            try:
                self._open()
                self.rewind(math.inf)
            except ConnectionError as again:
                error = again
            else:
                return
        _live.pop(self.out, None)
        raise UserError(
            f"W&B's process was gone {LOSSES + 1} times",
            cause=f"The last time: {error}",
            remedy="The same command goes on from the last whole checkpoint; tracker=off leaves W&B out.",
        )

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
        self._tell(lambda run: run.log(row))

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rows of text and numbers in W&B; what is kept on disk for people is the caller's."""
        if self._run is not None and rows:
            _append(self.out / TABLES, {"step": step, "name": name, "rows": [dict(row) for row in rows]})
            self._tell(lambda run: run.table(name, rows, step))

    def finish(self, summary: Mapping[str, float]) -> None:
        """Give the closing numbers; the run stays open for the artifact that the stage is about to finish."""
        if self._run is not None:
            if self._untold or self._untold_tables:
                self.rewind(math.inf)
            self._tell(lambda run: run.summarise(summary), kept=False)
            _live.pop(self.out, None)
            leave_open(self.out, self._run)


def leave_open(out: Path, run: Run) -> None:
    """Leave a run to :func:`conclude`, or to the end of the program."""
    _open[out] = run


def conclude(artifact: Artifact) -> None:
    """Declare a finished artifact as what its run made, with all its numbers, and close the run, if there is one.

    Nothing that W&B does or leaves undone changes the artifact, or keeps what comes after it waiting for long.
    """
    run = _open.pop(artifact.path, None)
    if run is None:
        return

    def say() -> None:
        run.summarise({**artifact.metrics, **_energy(artifact)})
        run.give(artifact)
        run.finish()

    sent = wandb_runs.bytes_sent(artifact, run.upload)
    part(artifact.path, PATIENCE + sent / SLOWEST, say)


def abandon(out: Path, why: str) -> None:
    """The stage that writes ``out`` has been stopped: its run, if there is one, says why and ends as failed."""
    run = _live.pop(out, None) or _open.pop(out, None)
    if run is not None:
        # That W&B is gone as well changes nothing about why the stage ends, nor when.
        part(out, GRACE, lambda: run.fail(why))


def part(out: Path, seconds: float, say: Callable[[], None]) -> bool:
    """Let ``say`` have the last word with W&B, for so many seconds at most; what comes of it is told here, and no more.

    What takes longer goes on beside whatever comes next, until the program ends. Returns whether all has been said.
    """
    failed = list[Exception]()

    def work() -> None:
        try:
            say()
        except Exception as error:  # of W&B's or of a connection's own kind
            failed.append(error)

    thread = threading.Thread(target=work, name="parting", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() or failed:
        why = incidents.reason(failed[0]) if failed else f"it has not taken everything within {seconds:,.0f} s"
        left = f"what it was not sent is kept in {out / 'wandb'}, for `wandb sync`"
        console.say(f"  W&B may lack the end of {out.name}: {why}; {left}", style="yellow")
        return False
    return True


def _energy(artifact: Artifact) -> dict[str, float]:
    """What of an artifact's energy is known, as numbers of its run."""
    if artifact.energy is None:
        return {}
    named = {name: getattr(artifact.energy, name) for name in ("device_hours", "kwh", "kg_co2eq")}
    named["tokens_per_kwh"] = artifact.tokens_per_kwh
    return {f"energy/{name}": value for name, value in named.items() if value is not None}


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
