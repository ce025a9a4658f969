"""Command lines in processes that are forked from one that has imported everything: a start costs no seconds.

``python forking.py`` reads a JSON request from each line of its standard input, ``{"arguments", "log", "fault",
"count"}``, forks a child that goes through the door with these arguments, and answers with two lines: the child's
process, and, once it has ended, its status (negative: the signal that killed it).

A *fault* strikes the child from inside, at what it is about to change on disk: Python tells of every file that it
opens to write, renames or removes, every folder that it makes or removes. ``{"at": n}`` strikes before the n-th change;
``{"after": pattern, "times": n}`` before the first change that follows the n-th renaming to a matching name;
``{"before": pattern}`` before the first change of a matching name. It is SIGKILL, after ``delay`` seconds; or, with
``"fill": path``, a file at that path which leaves the disk ``left`` bytes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "shutil.rmtree"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Fault:
    """Counts changes below ``root``, and strikes at one of them."""

    def __init__(self, root: str, plan: dict[str, Any]) -> None:
        self.root, self.plan, self.seen, self.renamed = root, plan, 0, 0
        self._pattern = re.compile(plan["after"]) if "after" in plan else None
        self._before = re.compile(plan["before"]) if "before" in plan else None
        self._owner, self._struck = os.getpid(), False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._struck or os.getpid() != self._owner or not self._changes(event, arguments):
            return
        self.seen += 1
        due = self.seen == self.plan.get("at")
        due = due or (self._pattern is not None and self.renamed >= self.plan["times"])
        due = due or (self._before is not None and bool(self._before.search(str(arguments[0]))))
        if due:
            self._struck = True
            self._strike()
        if event == "os.rename" and self._pattern is not None and self._pattern.search(str(arguments[1])):
            self.renamed += 1

    def _changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITING) if mode is None else any(letter in mode for letter in "wax+")
            return writes and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)
        return event in CHANGES and str(arguments[0]).startswith(self.root)

    def _strike(self) -> None:
        if "fill" in self.plan:
            fill(Path(self.plan["fill"]), self.plan["left"])
        elif self.plan.get("delay"):
            threading.Thread(target=_kill, args=(self.plan["delay"],), daemon=True).start()
        else:
            _kill(0.0)


def fill(path: Path, left: int) -> None:
    """Take what is free of a disk but for ``left`` bytes."""
    with open(path, "wb") as file:
        free = os.fstatvfs(file.fileno())
        taken = free.f_bavail * free.f_frsize - left
        if taken > 0:
            os.posix_fallocate(file.fileno(), 0, taken)


def _kill(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def child(request: dict[str, Any]) -> None:
    """Go through the door, and end with its code."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    fault = Fault(request["root"], request.get("fault") or {})
    sys.addaudithook(fault)
    from alignment import run

    code: Any = 1
    try:
        run.main(request["arguments"])
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if "count" in request:
            Path(request["count"]).write_text(str(fault.seen))
        if sys.exc_info()[0] not in (None, SystemExit):
            import traceback

            traceback.print_exc()
        os._exit(int(code or 0))


def serve() -> None:
    """Fork a child for every line of standard input."""
    # What libraries print when they are imported is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    heavy = ("datasets", "sentencepiece", "hydra", "pyarrow", "plotly", "peft", "trl.trainer.sft_trainer")
    for name in ("torch", "transformers", *heavy, "trl.trainer.reward_trainer", "alignment.run"):
        __import__(name)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            child(request)
        print(json.dumps({"process": process}), file=answers, flush=True)
        _, status = os.waitpid(process, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)


if __name__ == "__main__":
    serve()
