"""Checkpoints that are whole or not there: written beside, digested, marked, renamed.

``<root>/checkpoint-<step>/`` holds a ``complete.json`` with the digest of every file. What lacks it,
or whose bytes do not match it, is passed over for the one before, and named.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment import console, files

MARK = "complete.json"
KEEP = 2
"""Whole checkpoints kept: the last one, and the one before in case a disk damages the last."""


@contextmanager
def writing(root: Path, step: int) -> Iterator[Path]:
    """A folder to write a checkpoint into; it becomes ``checkpoint-<step>`` when the body ends well."""
    root.mkdir(parents=True, exist_ok=True)
    beside = root / f"checkpoint-{step}{files.TEMPORARY}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    yield beside
    commit(beside, root / f"checkpoint-{step}")
    rotate(root)


def commit(beside: Path, final: Path) -> None:
    """Digest, mark, make durable, rename: in that order, so that a name promises a whole checkpoint."""
    files.write_json(beside / MARK, files.digest_folder(beside, keep=lambda name: name != MARK))
    files.sync_tree(beside)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    files.sync_folder(final.parent)


def step_of(checkpoint: Path) -> int:
    """``checkpoint-120`` → 120."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def newest_first(root: Path) -> list[Path]:
    """The checkpoints below ``root``, by step, without looking inside them."""
    named = [path for path in root.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(named, key=step_of, reverse=True)


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None for a whole one."""
    try:
        promised: dict[str, str] = json.loads((checkpoint / MARK).read_text())
    except (OSError, ValueError):
        return f"it has no readable {MARK}"
    for name, digest in promised.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if files.digest_file(path) != digest:
            return f"{name} is damaged"
    return None


def last_whole(root: Path) -> Path | None:
    """The newest whole checkpoint. A broken one is named and passed over for the one before it."""
    for checkpoint in newest_first(root):
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint
        console.say(f"{checkpoint} is passed over: {reason}", style="yellow")
    return None


def rotate(root: Path, keep: int = KEEP) -> None:
    """Remove all but the newest ``keep``; called only after the newest has been marked and renamed."""
    for checkpoint in newest_first(root)[keep:]:
        shutil.rmtree(checkpoint)
