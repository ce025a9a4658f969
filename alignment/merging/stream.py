"""Merge without holding a model: slices are read into buffers that are used again, computed in fp32, written in place.

Every thread takes the next slice of any tensor, so that one reads while another computes or writes; one more waits for
the disk. A file is sealed when its last slice is there: made durable, renamed, its sums written beside it. The sums
therefore promise a whole file, and what was interrupted goes on after the last one.

Where angles decide (slerp), a group's tensors are first measured, then merged. A group is measured while the one before
it is merged, so no thread waits for another, and what is read a second time is still in the page cache.

Slices are made of blocks that begin at the same numbers of a tensor whatever the memory and the threads, and sums
over blocks are rounded once: so the bytes, and what is said of them, depend on neither. (An accelerator adds up dot
products in an order of its own, which changes angles and coefficients by rounding.)

Axes: V vectors (the start, then each model's), N numbers of a block.
"""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import torch

from alignment import files
from alignment.errors import UserError
from alignment.merging import blocks, geometry
from alignment.merging.blocks import DTYPES, Buffers
from alignment.merging.plan import WIDTHS, Plan, Target, Tensors

BLOCK = 1 << 16
"""Numbers that are computed at once: small enough for a core's cache."""
SLICE = 1 << 20
"""Numbers that are read at once, at most."""
FLUSHED = 256 << 20
"""Bytes of a file after which the disk is told to begin: else it would idle until the file is whole."""
SUMS = ".sums.json"
"""Suffix of what is known of a sealed file: for every tensor the dot products of start and task vectors."""

Sums = dict[str, list[float]]


class Room(NamedTuple):
    """How the memory is divided: by this many threads, each with slices of this many numbers."""

    threads: int
    slice: int


def room(plan: Plan, memory: int, threads: int) -> Room:
    """The division of ``memory`` bytes among at most ``threads``. Raises :class:`UserError` where one has no room."""

    def numbers(share: int) -> int:
        return min(SLICE, (share - held(plan, 0)) // (held(plan, 1) - held(plan, 0)) // BLOCK * BLOCK)

    threads = next((count for count in range(threads, 0, -1) if numbers(memory // count) > 0), 0)
    if not threads:
        raise UserError(
            f"memory_mib={memory / 2**20:g} has no room for a slice of {len(plan.models)} models and their start",
            remedy=f"Give it at least {math.ceil(held(plan, BLOCK) / 2**20)}.",
        )
    return Room(threads, numbers(memory // threads))


def held(plan: Plan, slice_: int) -> int:
    """Bytes of one thread's buffers: a slice of the start, of every model and of the result, and a block in fp32."""
    return plan.width * (len(plan.models) + 2) * slice_ + 4 * (len(plan.models) + 3) * BLOCK


def stream(
    plan: Plan,
    folder: Path,
    division: Room,
    on_progress: Callable[[int], None],
    device: str = "cpu",
    done: Collection[Target] = (),
) -> dict[str, tuple[float, ...]]:
    """Write every file of the plan into ``folder``, each with its sums beside it, but for those that are ``done``.

    Of these the sums are there. ``on_progress`` is told the bytes written so far, of this call, under a lock. Returns
    what each task vector counts, by tensor. Raises :class:`UserError` for a number that is not finite, for models that
    moved in opposite directions, and for a file that changes on the way.
    """
    # The pools are the innermost: no file is closed while a thread may still use it.
    with (
        _one_thread_each(),
        ExitStack() as stack,
        ThreadPoolExecutor(1) as disk,
        ThreadPoolExecutor(division.threads) as pool,
    ):
        work = _Work(plan, folder, division.slice, device, stack, disk, on_progress, done)
        futures = [pool.submit(work.run) for _ in range(division.threads)]
        try:
            wait(futures)
        finally:
            work.stop()
        for future in (*futures, *work.durable):
            future.result()
        return work.counts()


def sums_of(folder: Path, target: Target) -> Sums:
    """What is known of a sealed file."""
    return json.loads((folder / f"{target.name}{SUMS}").read_text())


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """The threads are ours: torch's own would wait for each other inside of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Output:
    """A file of the result; ``left`` counts slices that are not written yet, ``fresh`` bytes that are not durable."""

    target: Target
    left: int
    fresh: int = 0
    file: FileIO | None = None


@dataclass
class _Sum:
    """A tensor's dot products while it is measured; ``left`` counts the slices that are not measured yet."""

    left: int
    columns: list[array[float]]


class _Slice(NamedTuple):
    output: _Output
    tensors: Tensors
    start: int
    numbers: int
    measured: bool
    """Whether its dot products are formed,"""
    merged: bool
    """and whether its part of the result is written."""


class _Work:
    """What the threads share."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        slice_: int,
        device: str,
        stack: ExitStack,
        disk: ThreadPoolExecutor,
        on_progress: Callable[[int], None],
        done: Collection[Target],
    ) -> None:
        self._plan, self._folder, self._slice, self._stack, self._disk = plan, folder, slice_, stack, disk
        self._device, self._on_progress, self._written = device, on_progress, 0
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False
        self.durable: list[Future[None]] = []
        """What the disk was told."""
        self._inputs: dict[Path, FileIO] = {}
        self._groups = plan.groups
        self._sums: Sums = {}
        self._counts: dict[str, tuple[float, ...]] = {}
        missing = []
        for target in plan.targets:
            if target in done:
                self._sums |= sums_of(folder, target)
            else:
                missing.append(target)
        self._measuring: dict[str, _Sum] = {}
        pairs = (len(plan.models) + 1) * (len(plan.models) + 2) // 2
        for tensors in (one for target in missing for one in target.tensors):
            if pieces := self._pieces(tensors):
                self._measuring[tensors.entry.name] = _Sum(pieces, [array("d") for _ in range(pairs)])
            else:
                self._sums[tensors.entry.name] = [0.0] * pairs
        self._slices = self._all([_Output(target, sum(map(self._pieces, target.tensors))) for target in missing])

    def run(self) -> None:
        """Work off slices until there is none, or until another thread has failed."""
        try:
            buffers = Buffers(self._plan, self._slice, BLOCK, self._device)
            task = self._next()
            while task is not None and not self._stopped:
                following = self._next()
                self._do(task, buffers)
                task = following
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Let every thread end after its slice."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def counts(self) -> dict[str, tuple[float, ...]]:
        """What each task vector counts, by tensor; all of them have been measured."""
        return {one.entry.name: self._counted(one) for group in self._groups.values() for one in group}

    # ── the order of the work ────────────────────────────────────────────────────────────────────

    def _all(self, outputs: list[_Output]) -> Iterator[_Slice]:
        """Every slice, file by file; where angles decide group by group, each measured before the last is merged."""
        if self._plan.method != "slerp":
            for output in outputs:
                for tensors in output.target.tensors:
                    yield from self._cut(output, tensors, measured=True, merged=True)
        else:
            groups: dict[str, list[tuple[_Output, Tensors]]] = {}
            for output in outputs:
                for tensors in output.target.tensors:
                    groups.setdefault(tensors.group, []).append((output, tensors))
            before: list[tuple[_Output, Tensors]] = []
            for group in (*groups.values(), []):
                for output, tensors in group:
                    yield from self._cut(output, tensors, measured=True, merged=False)
                for output, tensors in before:
                    yield from self._cut(output, tensors, measured=False, merged=True)
                before = group
        for output in outputs:
            if output.file is None:
                self._open(output)
                self._tell_disk(partial(self._seal, output))

    def _cut(self, output: _Output, tensors: Tensors, *, measured: bool, merged: bool) -> Iterator[_Slice]:
        if merged and output.file is None and self._pieces(tensors):
            self._open(output)
        for start in range(0, tensors.entry.count, self._slice):
            yield _Slice(output, tensors, start, min(self._slice, tensors.entry.count - start), measured, merged)

    def _pieces(self, tensors: Tensors) -> int:
        return math.ceil(tensors.entry.count / self._slice)

    def _next(self) -> _Slice | None:
        """The next slice, which the kernel is asked to fetch while the one before is computed."""
        with self._changed:
            task = next(self._slices, None)
            if task is not None:
                for source in task.tensors.read:
                    width = WIDTHS[source.dtype]
                    file, start = self._input(source.path), source.start + task.start * width
                    os.posix_fadvise(file.fileno(), start, task.numbers * width, os.POSIX_FADV_WILLNEED)
            return task

    def _input(self, path: Path) -> FileIO:
        if path not in self._inputs:
            self._inputs[path] = self._stack.enter_context(FileIO(path))
        return self._inputs[path]

    # ── one slice ────────────────────────────────────────────────────────────────────────────────

    def _do(self, task: _Slice, buffers: Buffers) -> None:
        """Read a slice, and form its sums, or write its result, or both."""
        tensors = task.tensors
        counts = self._awaited(tensors) if task.merged else None
        if task.merged and counts is None:
            return
        for raw, source in zip(buffers.raw_VN, tensors.read, strict=True):
            width = WIDTHS[source.dtype]
            data = raw.numpy().data[: task.numbers * width]
            _read(self._inputs[source.path], data, source.start + task.start * width, source.path)
        rows = buffers.rows(tensors.read)
        result = buffers.result.view(DTYPES[tensors.entry.dtype])[: task.numbers]
        if counts is not None:
            # An average does not depend on whether the start could be read.
            averaged = self._plan.method == "linear" or tensors.start is None
            buffers.merge(rows, counts, result, averaged=averaged)
            # Of the dtypes only this one has a largest number that weights come near.
            if result.dtype == torch.float16 and not torch.isfinite(result).all():
                single = [row[: task.numbers] for several in rows for row in several]
                blocks.refuse_if_too_large(single, result, tensors, task.start)
        sums = buffers.measure(rows, tensors.read, task.numbers, task.start) if task.measured else []
        if task.merged:
            width = WIDTHS[tensors.entry.dtype]
            assert task.output.file is not None
            _write(
                task.output.file,
                buffers.result.numpy().data[: task.numbers * width],
                tensors.entry.start + task.start * width,
            )
        self._done(task, sums)

    def _awaited(self, tensors: Tensors) -> tuple[float, ...] | None:
        """What each task vector counts, once its group has been measured; None where another thread has failed."""
        with self._changed:
            if self._plan.method == "slerp":
                while not self._stopped and any(one.entry.name not in self._sums for one in self._group(tensors)):
                    self._changed.wait()
            return None if self._stopped else self._counted(tensors)

    def _group(self, tensors: Tensors) -> Sequence[Tensors]:
        return self._groups[tensors.group]

    def _counted(self, tensors: Tensors) -> tuple[float, ...]:
        name = tensors.entry.name
        if name not in self._counts:
            self._counts[name] = geometry.counted(self._plan, tensors, self._sums, self._group(tensors))
        return self._counts[name]

    def _done(self, task: _Slice, sums: list[list[float]]) -> None:
        output, size = task.output, task.numbers * WIDTHS[task.tensors.entry.dtype]
        with self._changed:
            if task.measured:
                self._add(task.tensors.entry.name, sums)
            if task.merged:
                output.left -= 1
                output.fresh += size
                self._written += size
                self._on_progress(self._written)
                assert output.file is not None
                if not output.left:
                    self._tell_disk(partial(self._seal, output))
                elif output.fresh >= FLUSHED:
                    output.fresh = 0
                    self._tell_disk(partial(_flush, output.file))

    def _tell_disk(self, task: Callable[[], None]) -> None:
        """Let one thread wait for it, in turn; what has failed is told here, or at the end."""
        with self._changed:
            for earlier in self.durable:
                if earlier.done():
                    earlier.result()
            self.durable.append(self._disk.submit(task))

    def _add(self, name: str, sums: list[list[float]]) -> None:
        """Blocks come in any order, so they are added exactly, when the last of a tensor's is there."""
        measuring = self._measuring[name]
        for column, found in zip(measuring.columns, zip(*sums, strict=True), strict=True):
            column.extend(found)
        measuring.left -= 1
        if not measuring.left:
            self._sums[name] = [math.fsum(column) for column in self._measuring.pop(name).columns]
            self._changed.notify_all()

    # ── files ────────────────────────────────────────────────────────────────────────────────────

    def _open(self, output: _Output) -> None:
        """Make the file in its size, with its head."""
        shard = output.target.shard
        file = self._stack.enter_context(FileIO(self._folder / f"{output.target.name}{files.TEMPORARY}", "w"))
        file.truncate(shard.size)
        _write(file, memoryview(shard.head), 0)
        output.file = file

    def _seal(self, output: _Output) -> None:
        """Durable, renamed, its sums beside it: in that order."""
        assert output.file is not None
        os.fsync(output.file.fileno())
        output.file.close()
        name = output.target.name
        os.replace(self._folder / f"{name}{files.TEMPORARY}", self._folder / name)
        files.sync_folder(self._folder)
        sums = {one.entry.name: self._sums[one.entry.name] for one in output.target.tensors}
        files.write_json(self._folder / f"{name}{SUMS}", sums)


def _read(file: FileIO, room: memoryview, start: int, path: Path) -> None:
    """Fill ``room`` from the file's bytes at ``start``; a call may give less than it is asked for."""
    done = 0
    while done < len(room):
        got = os.preadv(file.fileno(), [room[done:]], start + done)
        if not got:
            raise UserError(f"{path} has become shorter while it was read", remedy="Copy it again, and merge again.")
        done += got


def _flush(file: FileIO) -> None:
    """What is written is durable, and gives its room in the page cache to what will be read."""
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(file: FileIO, data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file.fileno(), data[done:], start + done)
