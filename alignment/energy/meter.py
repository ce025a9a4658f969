"""The meter around a step: what a session has used, written down as it goes, and the sum over a step's sessions.

A step's device is the GPU of each rank, or the processors of each machine, once for all its ranks. A session's file is
written anew every minute, so that a kill loses a minute at most; all are removed when the artifact's record tells their
sum. They are no part of the artifact: nothing here enters a fingerprint or a digest.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from alignment import files, ranks
from alignment.energy.counters import Board, Boards, Processors, gpu_in_use
from alignment.energy.record import Energy, Stated, sum_of_known

FOLDER = "energy"
SECONDS_BETWEEN_BEATS = 60.0
KWH = 3.6e6
"""Joules in a kilowatt hour."""
MEASURED, STATED, CAPPED, UNKNOWN = "measured", "stated watts", "power cap", "unknown"
ELSEWHERE = "servers of models and scorers, network and storage, cooling and power conversion, making the hardware"
EXCLUDES = {
    "gpu": f"the host's processors and memory, {ELSEWHERE}",
    "cpu": f"memory that the processors do not count, {ELSEWHERE}",
}


@dataclass(frozen=True)
class Session:
    """What one process used of its device from one start to its end, or to its last beat."""

    device: str
    kind: str
    hours: float
    kwh: float | None
    """What the device counted; None where it does not count."""
    cap: float | None
    """Watts that it may not exceed."""
    why: str
    """Why it does not count."""


@dataclass
class Meter:
    """Counts from entering to leaving, for one process that runs one step.

    ``folder`` is the artifact's; ``gpu`` says whether the step may compute on one; ``processor`` is what the machine's
    processors are called. Leaving by an error keeps what was used, unless nothing else was written.
    """

    folder: Path
    processor: str
    gpu: bool
    _leaving: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Meter:
        self._began = time.monotonic()
        self._file = self.folder / FOLDER / f"{ranks.rank():04}-{time.time_ns()}.json"
        self._processors, self._boards = Processors(self.processor), Boards() if self.gpu else None
        self._thread = threading.Thread(target=self._beat, name="energy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leaving.set()
        self._thread.join()
        if error is None:
            self.note()
            return
        # The error is what there is to tell, a disk that is full included.
        with contextlib.suppress(OSError):
            if any(path.name != FOLDER for path in self.folder.iterdir()):
                self.note()
            else:
                shutil.rmtree(self.folder / FOLDER)

    def note(self) -> None:
        """Write what has been used so far. Of the ranks that share a machine's processors, the first counts them."""
        session = self._session()
        if session.kind == "gpu" or ranks.local_rank() == 0:
            self._file.parent.mkdir(exist_ok=True)
            files.write_json(self._file, asdict(session))

    def _beat(self) -> None:
        while not self._leaving.wait(SECONDS_BETWEEN_BEATS):
            # A disk that is full is the step's to tell; what is missed now is in the next beat.
            with contextlib.suppress(OSError):
                self.note()

    def _session(self) -> Session:
        hours = (time.monotonic() - self._began) / 3600
        # Read in any case: RAPL's counters begin again after some minutes.
        joules = self._processors.joules()
        device: Processors | Board = self._processors
        found = None if self._boards is None else gpu_in_use()
        if found is not None and self._boards is not None:
            device = Board(*found, self._boards)
            joules = device.joules()
        kwh = None if joules is None else joules / KWH
        return Session(device.name, device.kind, hours, kwh, device.cap(), device.why)


def may_use_gpu(settings: Any) -> bool:
    """Whether a step's settings let it compute on one: by its ``device``, or else by its engine's."""
    device = getattr(settings, "device", None) or getattr(getattr(settings, "engine", None), "device", "cpu")
    return bool(device != "cpu")


def of(folder: Path, stated: Stated) -> Energy:
    """What the step of ``folder`` has taken: the sum over the sessions of all its ranks, all of which have ended."""
    sessions = [(*_named(path), _read(path)) for path in sorted((folder / FOLDER).glob("*.json"))]
    used = [_used(session, stated) for *_, session in sessions]
    kwh, grid = sum_of_known([one for one, _ in used]), stated.grid
    # The first rank's last session: a run may go on with fewer processes than it began with, or on other devices.
    *_, last = max((one for one in sessions if one[0] == 0), key=lambda one: one[1])
    return Energy(
        device=last.device,
        devices=len({rank for rank, *_ in sessions if rank < ranks.world()}),
        device_hours=sum(session.hours for *_, session in sessions),
        kwh=kwh,
        how="; ".join(dict.fromkeys(how for _, how in used)),
        kg_co2eq=None if kwh is None or grid is None else kwh * grid,
        grid_kg_per_kwh=grid,
        excludes=EXCLUDES[last.kind],
        sessions=sum(rank == 0 for rank, *_ in sessions),
    )


def _used(session: Session, stated: Stated) -> tuple[float | None, str]:
    """The kWh of a session, and how they are known."""
    if session.kwh is not None:
        return session.kwh, MEASURED
    for watts, how in ((stated.watts, STATED), (session.cap, CAPPED)):
        if watts is not None:
            return watts * session.hours / 1000, how
    return None, f"{UNKNOWN}: {session.why}, and watts= is not stated"


def _named(path: Path) -> tuple[int, int]:
    """Rank and start, from a session's file name."""
    rank, _, began = path.stem.partition("-")
    return int(rank), int(began)


def _read(path: Path) -> Session:
    return Session(**json.loads(path.read_text(encoding="utf-8")))
