"""What has been asked for: ``<store>/<pipeline>/jobs.json``, a line for every step, with the job that makes it.

A step stands there by its folder. What is finished is told by its artifact, and what runs by the queue: the ledger
only says which job belongs to which step, what that job waits for, and where its output goes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from alignment import console, files
from alignment.errors import UserError

LEDGER = "jobs.json"


@dataclass(frozen=True)
class Entry:
    """A step that was asked for."""

    step: str
    stage: str
    fingerprint: str
    folder: str
    job: str | None = None
    """Slurm's number, ``12`` or ``12_3``; None where the step is made without a job."""
    after: tuple[str, ...] = ()
    """The jobs that it waits for."""
    log: str | None = None
    """Where the job's output goes."""
    user: str = ""
    asked: str = ""
    """When, UTC."""


def read(folder: Path) -> list[Entry]:
    """The entries of one pipeline's folder, in the order in which they were asked for."""
    path = folder / LEDGER
    try:
        rows = json.loads(path.read_text())["steps"]
        return [Entry(**{**row, "after": tuple(row["after"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error})",
            cause="It says which job makes which step.",
            remedy="Move it away; a job that it knew may then be submitted a second time.",
        ) from None


def read_all(store: Path) -> dict[str, Entry]:
    """Every pipeline's entries, by the step's fingerprint."""
    return {entry.fingerprint: entry for path in sorted(store.glob(f"*/{LEDGER}")) for entry in read(path.parent)}


def write(entries: Iterable[Entry]) -> None:
    """Put entries down in the ledgers of their pipelines, in place of what those said of the same steps.

    What was asked for with other numbers under the same name, and never begun, goes.
    """
    by_folder: dict[Path, list[Entry]] = {}
    for entry in entries:
        by_folder.setdefault(Path(entry.folder).parent, []).append(entry)
    for folder, new in by_folder.items():
        names = {entry.step for entry in new}
        old = [one for one in read(folder) if one.step not in names or one.job is not None or Path(one.folder).is_dir()]
        known = {entry.folder: entry for entry in [*old, *new]}
        files.write_json(folder / LEDGER, {"steps": [asdict(entry) for entry in known.values()]})


def announce(entries: Iterable[Entry], store: Path) -> None:
    """Put down what is about to be made without jobs, so that it can be seen; what jobs make stays theirs."""
    entries, known = list(entries), read_all(store)
    if all(entry.fingerprint in known for entry in entries):
        return
    with held(store):
        known = read_all(store)
        new = [entry for entry in entries if entry.fingerprint not in known]
        for folder in {Path(entry.folder).parent for entry in new}:
            files.make_folder(folder)
        write(new)


@contextlib.contextmanager
def held(store: Path) -> Iterator[None]:
    """One submission at a time, so that no step is submitted twice."""
    files.make_folder(store)
    with files.exclusive(store / "jobs", on_wait=lambda holder: console.say(f"{holder} submits; waiting", style="dim")):
        yield
