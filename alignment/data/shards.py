"""Passes over all rows of a recipe, in shards that are whole or not there, by several processes.

The first pass reads the sources and shapes rows; every filter that asks a scorer is a pass of its own, because a
scorer is opened once, in this process; what stands between is filtered wherever there is a core. A build
that was stopped goes on after its last whole shard, and the shards are the same whoever wrote them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from alignment import files, parts, signals
from alignment.data import prepare
from alignment.data.filters.table import SCORED
from alignment.data.filters.use import NEAR, Use
from alignment.data.prepare import Preparer, Record, Scores
from alignment.data.recipe import Recipe
from alignment.data.rows import Kind, Raw, Row
from alignment.data.sources import Source
from alignment.errors import UserError
from alignment.parts import batches

ROWS = 2_000
"""Source rows in a shard: what is held in memory at once by each process, and lost when it is killed."""


@dataclass(frozen=True)
class Pass:
    """One round over all rows: filters for any process, or one that needs a scorer."""

    uses: tuple[Use, ...]
    scored: Use | None
    last: bool


def passes(recipe: Recipe) -> list[Pass]:
    """The rounds that a recipe's filters make, in its order."""
    groups: list[tuple[list[Use], Use | None]] = [([], None)]
    for use in recipe.filters or []:
        if use.filter in SCORED:
            groups.append(([], use))
        elif use.filter != NEAR:
            if groups[-1][1] is not None:
                groups.append(([], None))
            groups[-1][0].append(use)
    return [Pass(tuple(uses), scored, place + 1 == len(groups)) for place, (uses, scored) in enumerate(groups)]


class Shards:
    """The records of a build, below ``out/parts``: a folder for every pass, a file for every shard."""

    def __init__(self, out: Path, kind: Kind) -> None:
        self.folder, self.kind = out / parts.FOLDER, kind

    def begin(self, stamp: str) -> None:
        """Keep the shards of an earlier start if they were made from the same things (``stamp``), or none."""
        mark = self.folder / "stamp"
        if not mark.is_file() or mark.read_text() != stamp:
            shutil.rmtree(self.folder, ignore_errors=True)
            files.make_folder(self.folder)
            files.write_atomic(mark, stamp)

    def path(self, number: int, name: str) -> Path:
        """Where a shard of a pass lies."""
        return self.folder / str(number) / f"{name}.jsonl.zst"

    def write(self, path: Path, records: Sequence[Record]) -> None:
        """Write a shard, whole or not at all."""
        lines = (json.dumps(prepare.dump(record, self.kind), ensure_ascii=False) for record in records)
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write("\n".join(lines).encode())
        parts.write(path, sink.getvalue().to_pybytes())

    def read(self, path: Path) -> list[Record]:
        """The records of a shard."""
        source = pa.BufferReader(parts.read(path))
        with pa.CompressedInputStream(source, "zstd") as packed:
            lines = packed.read().decode().split("\n")
        return [prepare.load(json.loads(line), self.kind) for line in lines if line]


@dataclass(frozen=True)
class Job:
    """What a process is asked to do: shape the raw rows of a shard, or filter the records of the pass before."""

    path: Path
    source: int | None = None
    raws: tuple[Raw, ...] = ()
    several_files: bool = False
    within: int = 0
    """How many of the raw rows lie within the source's limit."""
    before: Path | None = None


class Worker:
    """One process's share of a pass."""

    def __init__(self, recipe: Recipe, one: Pass, against: Mapping[str, Sequence[Row]], shards: Shards) -> None:
        self.recipe, self.shards = recipe, shards
        self.preparer = Preparer(recipe, one.uses, against, one.last)

    def do(self, job: Job) -> int:
        """Write the shard and say how many source rows it holds."""
        if job.before is not None:
            records = self.preparer.filter(self.shards.read(job.before))
        else:
            assert job.source is not None
            records = self.preparer.shape(self.recipe.sources[job.source], job.raws, job.several_files, job.within)
        self.shards.write(job.path, records)
        return len(records)


_worker: Worker | UserError


def _start(*arguments: Any) -> None:
    """What a new process does first. An error is kept for the first job, which is where it can be told."""
    global _worker
    signals.ignore()  # A scheduler tells every process; it is the parent's to end.
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        _worker = Worker(*arguments)
    except UserError as error:
        _worker = error


def _leave_with(parent: int) -> None:
    """End this process once its parent is gone: nobody would wait for it any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _do(job: Job) -> int:
    if isinstance(_worker, UserError):
        raise _worker
    return _worker.do(job)


def run_pass(
    jobs: Iterator[Job],
    arguments: tuple[Recipe, Pass, Mapping[str, Sequence[Row]], Shards],
    workers: int,
    on_done: Callable[[int], None],
) -> None:
    """Do every job, here or in ``workers`` processes; ``on_done`` is told the source rows of each as it ends.

    Jobs are taken from ``jobs`` as they can be done, so that memory does not grow with their number. An error of
    a job is raised in the order of the jobs, after which nothing more is started. Asked to stop (``signals.py``), it
    ends after the shards that are being written.
    """

    def told(rows: int) -> None:
        on_done(rows)
        signals.heed("after a shard")

    if workers == 1:
        worker: Worker | None = None
        for job in jobs:
            worker = worker or Worker(*arguments)
            told(worker.do(job))
        return
    spawn = multiprocessing.get_context("spawn")
    waiting: deque[Future[int]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start, initargs=arguments)
    try:
        for job in jobs:
            waiting.append(pool.submit(_do, job))
            if len(waiting) > 2 * workers:
                told(waiting.popleft().result())
        while waiting:
            told(waiting.popleft().result())
    except BrokenProcessPool:
        raise UserError(
            f"workers={workers}: a process that filtered rows was killed",
            cause="Most often by the system, for want of memory.",
            remedy="Use fewer workers; the same command goes on from the last whole shard.",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def run_scored(paths: Sequence[tuple[Path, Path]], one: Pass, shards: Shards, recipe: Recipe, scores: Scores) -> None:
    """Ask a scorer about the records of every shard; ``paths`` are (the pass before, this pass)."""
    assert one.scored is not None
    sealer = Preparer(recipe, (), {}, one.last)
    for before, path in paths:
        if not parts.is_whole(path):
            records = shards.read(before)
            prepare.score(records, one.scored, scores)
            shards.write(path, sealer.filter(records))
            signals.heed("after a shard")


def raw_jobs(raws: Iterator[Raw], place: int, source: Source, several_files: bool, shards: Shards) -> Iterator[Job]:
    """The shards of one source, as jobs for whoever writes them."""
    for number, some in enumerate(batches(raws, ROWS)):
        within = len(some) if source.limit is None else source.limit - number * ROWS
        yield Job(shards.path(0, f"{place:03}-{number:06}"), place, tuple(some), several_files, within)
