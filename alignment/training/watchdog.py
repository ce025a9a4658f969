"""A process that hangs is seen, its stacks are kept, and the run ends in a way from which it goes on by itself.

What hangs, hangs in the main thread, mostly in a collective whose other side is gone. So a thread of its own counts
the minutes since :func:`alive` was last called. Every process watches itself: the stacks of all of them together say
who did not come to a collective. Where not even threads get their turn, the C code of ``faulthandler`` writes the
stacks and ends the process a little later.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from alignment import console, files, parts, ranks, signals
from alignment.errors import UserError
from alignment.training import incidents, tracking

GRACE = 30.0
"""Seconds in which rank 0 speaks before the others leave, and threads get their turn before ``faulthandler`` acts."""

_dog: Watchdog | None = None


class Watchdog:
    """Watches the main thread of this process; ``leave(code)`` ends the process."""

    def __init__(self, folder: Path, minutes: float, leave: Callable[[int], None]) -> None:
        self.stacks = folder / parts.FOLDER / f"stacks-{ranks.rank()}.txt"
        self._folder, self._seconds, self._leave = folder, 60 * minutes, leave
        self._seen, self._over = time.monotonic(), threading.Event()
        files.make_folder(self.stacks.parent)
        self._file: TextIO = open(self.stacks, "w", encoding="utf-8")  # noqa: SIM115  faulthandler keeps it open.
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self.alive()
        self._thread.start()

    def alive(self) -> None:
        """Count anew."""
        self._seen = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds + 2 * GRACE, exit=True, file=self._file)

    def stop(self) -> None:
        """Watch no longer; a file without stacks goes."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()
        self._file.close()
        self.stacks.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, self._seen + self._seconds - time.monotonic())):
            if time.monotonic() - self._seen >= self._seconds:
                self._bite()
                return

    def _bite(self) -> None:
        """Keep the stacks, say why, and end the process."""
        faulthandler.dump_traceback(self._file, all_threads=True)
        self._file.flush()
        if not ranks.is_main():
            # The run speaks through rank 0, whose stacks may be the ones that tell.
            if not self._over.wait(GRACE):
                self._leave(signals.REQUEUE)
            return
        error = UserError(
            f"no step has ended for {self._seconds / 60:g} minutes",
            cause="A process hangs, or waits for one that does; where each of them stands is in "
            f"{self.stacks.with_name('stacks-*.txt')}.",
            remedy="The same command goes on from the last whole checkpoint. Where steps take so long, say "
            "engine.watchdog_minutes=<more>.",
        )
        incidents.note(self._folder, error.problem)
        tracking.abandon(self._folder, error.problem)
        console.say()
        console.say(str(error), style="red")
        self._leave(signals.REQUEUE)


@contextlib.contextmanager
def watching(folder: Path, minutes: float | None) -> Iterator[None]:
    """While the block lasts, end the process where :func:`alive` is not called for ``minutes`` (None: never).

    It ends with :data:`signals.REQUEUE`: what hung once need not hang again, and who starts it again counts. The stacks
    are in ``folder/parts/stacks-<rank>.txt``.
    """
    global _dog
    if minutes is None:
        yield
        return
    _dog = Watchdog(folder, minutes, leave)
    _dog.start()
    try:
        yield
    finally:
        _dog.stop()
        _dog = None


def alive() -> None:
    """Say that this process makes progress."""
    if _dog is not None:
        _dog.alive()


def leave(code: int) -> None:
    """End the process although its main thread is busy; the others of the run hear of it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if ranks.world() > 1 and ranks.is_main():
        from alignment.training.team import team

        team().end(code)
    os._exit(code)
