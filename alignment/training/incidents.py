"""What has gone wrong with a step on its way: kept beside what it makes until that is finished, then in its record.

An artifact that was made in one go, with nothing to tell, has no such note. A process that was killed could say
nothing; that it was is told by ``resumed_from_step`` and the like.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignment import console, signals
from alignment.errors import without_secrets

FILE = "incidents.jsonl"


@contextlib.contextmanager
def recorded(folder: Path, tell: Callable[[Path, str], None]) -> Iterator[None]:
    """Where the block ends by an error or a signal, note why, and ``tell(folder, why)``."""
    try:
        yield
    except BaseException as error:
        why = reason(error)
        note(folder, why)
        tell(folder, why)
        raise


def note(folder: Path, why: str) -> None:
    """Note what has happened to the work in ``folder``, if anything of it is there; secrets are left out."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = json.dumps({"at": at, "why": without_secrets(why)}) + "\n"
    # What has happened is there to be told, and not what happens while it is noted: a full disk is both.
    with contextlib.suppress(OSError):
        if console.is_main_process() and any(path.name != FILE for path in folder.iterdir()):
            with open(folder / FILE, "ab+") as file:
                if file.tell():
                    # One that a full disk has cut short ends before this one begins.
                    file.seek(-1, os.SEEK_END)
                    file.write(b"" if file.read() == b"\n" else b"\n")
                file.write(line.encode())


def reason(error: BaseException) -> str:
    """Why something ended, in one line without secrets."""
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C"
    said = without_secrets(str(error)).strip().split("\n")[0]
    return said if said and isinstance(error, signals.Preempted | ValueError) else f"{type(error).__name__}: {said}"


def told(folder: Path) -> dict[str, Any]:
    """A note for the record: ``{"incidents": [{"at", "why"}, …]}``, or none where nothing has happened."""
    path = folder / FILE
    found = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        # One may have been cut short by a full disk.
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return {"incidents": found} if found else {}
