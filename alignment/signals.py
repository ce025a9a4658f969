"""What a scheduler tells a run, stop soon, and what a run tells whoever looks: its heartbeat.

USR1 and TERM only set a flag. Work looks at it where it can stop without loss: at the end of a step
(``training/preemption.py``, where all processes agree), after a part (``parts.py``), between two stages. It then ends
with a code of its own, :data:`REQUEUE`, and the same command goes on to the same bits. After a stage's last save
nothing looks any more, so the stage is finished whatever comes.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from alignment import files, ranks

REQUEUE = 85
"""The exit code of a run that was asked to stop and goes on when it is started again."""
LISTENED = (signal.SIGUSR1, signal.SIGTERM)
HEARTBEAT = "heartbeat.json"
BETWEEN_BEATS = 5.0
"""Seconds, at least."""
GLANCE = 0.5
"""Seconds after which one that waits looks whether it was asked to stop."""


class Preempted(BaseException):
    """A run that was asked to stop, has kept what it had, and ends. Like KeyboardInterrupt, it is no error."""

    def __init__(self, number: int, where: str) -> None:
        self.name, self.where = signal.Signals(number).name, where
        super().__init__(f"{self.name}: stopped {where}")


_asked = 0
_before: dict[int, Any] = {}


def listen() -> None:
    """From now on USR1 and TERM set the flag and do nothing else. For the main thread of a process of its own."""
    for number in LISTENED:
        _before[number] = signal.signal(number, _note)


def restore() -> None:
    """Let USR1 and TERM do what they did before :func:`listen`, for programs that wait for nothing but their end."""
    global _asked
    _asked = 0
    while _before:
        signal.signal(*_before.popitem())


def ignore() -> None:
    """Let neither signal disturb this process on its way out: the interpreter itself gives up its handlers early."""
    for number in LISTENED:
        signal.signal(number, signal.SIG_IGN)


def asked() -> int:
    """The number of the signal by which this process was asked to stop; 0 where it was not."""
    return _asked


def heed(where: str) -> None:
    """End here, with nothing in progress, where this process was asked to. Raises :class:`Preempted`.

    Of several processes none ends alone: their steps end together.
    """
    if _asked and ranks.world() == 1:
        raise Preempted(_asked, where)


def pause(seconds: float, where: str) -> None:
    """Wait for something outside, but end here, as :func:`heed` does, as soon as this process is asked to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        heed(where)
        time.sleep(min(left, GLANCE))


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = _asked or number


# ── heartbeat ────────────────────────────────────────────────────────────────────────────────────


class _Pulse:
    """The work that is going on in this process. The rate counts what was done since it was first told of."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.unit = folder, ""
        self.began, self.first, self.last, self.told = 0.0, 0, 0, 0.0

    def beat(self, step: int, steps: int, unit: str) -> None:
        now = time.monotonic()
        if unit != self.unit or step < self.last:
            # Other work of the same stage begins.
            self.unit, self.began, self.first, self.told = unit, now, step, 0.0
        self.last = step
        if self.told and now - self.told < BETWEEN_BEATS:
            return
        self.told = now
        moved, passed = step - self.first, now - self.began
        values = {
            "step": step,
            "steps": steps or None,
            "unit": unit,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "rate": moved / passed if moved and passed else None,
            "rank": ranks.rank(),
            "host": os.uname().nodename,
            "process": os.getpid(),
        }
        files.write_json(self.folder / HEARTBEAT, values)


_pulse: _Pulse | None = None


def begin(folder: Path) -> None:
    """What is counted from here on makes the artifact in ``folder``."""
    global _pulse
    _pulse = _Pulse(folder) if ranks.is_main() else None


def beat(step: int, steps: int, unit: str) -> None:
    """Say that ``step`` of ``steps`` (0 where nobody knows) is done, in ``heartbeat.json``, now and then.

    ``{"step", "steps", "unit", "at": ISO time, "rate": per second or null, "rank", "host", "process"}``; written by
    rank 0, atomically, at most every :data:`BETWEEN_BEATS` seconds.
    """
    if _pulse is not None:
        _pulse.beat(step, steps, unit)


def rest() -> None:
    """The work is over: its heartbeat is taken away."""
    global _pulse
    if _pulse is not None:
        (_pulse.folder / HEARTBEAT).unlink(missing_ok=True)
    _pulse = None
