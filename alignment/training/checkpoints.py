"""Checkpoints that are whole or not there: written beside, digested, marked, renamed.

``<root>/checkpoint-<step>/`` holds a ``complete.json`` with the digest of every file. What lacks it, or whose bytes do
not match it, is named, set aside, and passed over for the one before. Two are kept, a third exists while it is written,
and nothing is written that would not fit on the disk. ``<root>`` lies in the folder of what is made, whose rows
(``*.jsonl``) are on the disk before a checkpoint of their steps is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment import console, files
from alignment.training import incidents

MARK = "complete.json"
KEEP = 2
"""Whole checkpoints kept: the last one, and the one before in case a disk damages the last."""
BROKEN = ".broken"
"""Suffix of what was found damaged; it goes when the next checkpoint is whole."""


@contextmanager
def writing(root: Path, step: int) -> Iterator[Path]:
    """A folder to write a checkpoint into; it becomes ``checkpoint-<step>`` when the body ends well.

    Raises :class:`UserError`, with nothing written, where the disk has no room for another like the last one.
    """
    root.mkdir(parents=True, exist_ok=True)
    for last in newest_first(root)[:1]:
        files.need_space(root, files.size(last))
    beside = root / f"checkpoint-{step}{files.TEMPORARY}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    yield beside
    _sync_rows(root.parent)
    commit(beside, root / f"checkpoint-{step}")
    rotate(root)


@contextmanager
def writing_together(root: Path, step: int, meet: Callable[[], None]) -> Iterator[Path]:
    """As :func:`writing`, of all processes into one folder; ``meet`` returns when all of them are there."""
    if not console.is_main_process():
        meet()
        yield root / f"checkpoint-{step}{files.TEMPORARY}"
        meet()
        meet()
        return
    with writing(root, step) as beside:
        meet()
        yield beside
        meet()
    meet()


def commit(beside: Path, final: Path) -> None:
    """Digest, mark, make durable, rename: in that order, so that a name promises a whole checkpoint."""
    files.write_json(beside / MARK, files.digest_folder(beside, keep=lambda name: name != MARK))
    files.sync_tree(beside)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    files.sync_folder(final.parent)


def _sync_rows(out: Path) -> None:
    """A power loss must not leave a checkpoint that is newer than the rows that were written on the way to it."""
    for path in sorted(out.glob("*.jsonl")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    files.sync_folder(out)


def step_of(checkpoint: Path) -> int:
    """``checkpoint-120`` → 120."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_step(root: Path) -> int:
    """The step of the newest checkpoint below ``root``, or 0."""
    return max((step_of(checkpoint) for checkpoint in newest_first(root)), default=0)


def newest_first(root: Path) -> list[Path]:
    """The checkpoints below ``root``, by step, without looking inside them."""
    named = [path for path in root.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(named, key=step_of, reverse=True)


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None for a whole one."""
    try:
        promised = json.loads((checkpoint / MARK).read_text())
    except (OSError, ValueError, RecursionError):
        promised = None
    if not isinstance(promised, dict) or not promised:
        return f"it has no readable {MARK}"
    try:
        found = files.digest_folder(checkpoint, keep=lambda name: name != MARK)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    for name in sorted(promised.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in promised:
            return f"{name} was not there when it was marked"
        if found[name] != promised[name]:
            return f"{name} is damaged"
    return None


def last_whole(root: Path) -> Path | None:
    """The newest whole checkpoint. A broken one is named, here and among the incidents of what is made, set aside, and
    passed over for the one before it."""
    for checkpoint in newest_first(root):
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint
        console.say(f"{checkpoint} is passed over: {reason}", style="yellow")
        incidents.note(root.parent, f"{checkpoint.name} was passed over: {reason}")
        # Under its name it would count as one of those that are kept.
        aside = checkpoint.with_name(checkpoint.name + BROKEN)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
    return None


def rotate(root: Path, keep: int = KEEP) -> None:
    """Remove all but the newest ``keep``; called only after the newest has been marked and renamed."""
    for checkpoint in [*newest_first(root)[keep:], *root.glob(f"checkpoint-*{BROKEN}")]:
        shutil.rmtree(checkpoint)
