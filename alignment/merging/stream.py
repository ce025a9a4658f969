"""Merge without holding a model: slices are read into buffers that are used again, summed in fp32, written in place.

Every thread takes the next slice of any tensor, so that one reads while another computes or writes. A file is sealed
by whoever finishes its last slice: made durable, renamed, its sums written beside it. The sums therefore promise a
whole file, and what was interrupted goes on after the last one.

Slices are made of blocks that begin at the same numbers of a tensor whatever the memory and the threads, and sums
over blocks are rounded once: so the bytes, and what is said of them, depend on neither.
"""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alignment import files
from alignment.errors import UserError
from alignment.merging import kernels
from alignment.merging.layout import Entry
from alignment.merging.plan import WIDTHS, Plan, Target, Tensors

BLOCK = 1 << 17
"""Numbers that are computed at once: small enough for a core's cache."""
SLICE = 1 << 20
"""Numbers that are read at once, at most."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SUMS = ".sums.json"
"""Suffix of what is known of a sealed file: for every tensor ‖mean‖² and each model's ‖θ − mean‖²."""

Sums = dict[str, list[float]]


class Room(NamedTuple):
    """How the memory is divided: by this many threads, each with slices of this many numbers."""

    threads: int
    slice: int


def room(plan: Plan, memory: int, threads: int) -> Room:
    """The division of ``memory`` bytes among at most ``threads``. Raises :class:`UserError` where one has no room."""
    models = len(plan.models)
    width = plan.width
    scratch = 4 * BLOCK * (models + 2)

    def numbers(share: int) -> int:
        return min(SLICE, (share - scratch) // (width * (models + 1)) // BLOCK * BLOCK)

    threads = next((count for count in range(threads, 0, -1) if numbers(memory // count) > 0), 0)
    if not threads:
        least = scratch + width * (models + 1) * BLOCK
        raise UserError(
            f"memory_mib={memory / 2**20:g} has no room for a slice of {models} models",
            remedy=f"Give it at least {math.ceil(least / 2**20)}.",
        )
    return Room(threads, numbers(memory // threads))


def stream(plan: Plan, folder: Path, division: Room, on_progress: Callable[[int], None]) -> None:
    """Write every file of the plan into ``folder`` that is not there yet, each with its sums beside it.

    ``on_progress`` is told the bytes written so far, of this call, under a lock. Raises :class:`UserError` for a
    number that is not finite, and for a file that changes on the way.
    """
    missing = [target for target in plan.targets if not sealed(folder, target)]
    # The pool is the innermost: no file is closed while a thread may still use it.
    with _one_thread_each(), ExitStack() as stack, ThreadPoolExecutor(division.threads) as pool:
        work = _Work(plan, missing, folder, division.slice, stack, on_progress)
        futures = [pool.submit(work.run) for _ in range(division.threads)]
        try:
            wait(futures)
        finally:
            work.stopped = True
        for future in futures:
            future.result()


def sealed(folder: Path, target: Target) -> bool:
    """Whether a file has been finished, wherever it was moved since."""
    return (folder / f"{target.name}{SUMS}").is_file()


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
    """A file that is being written. ``blocks`` gathers, tensor by tensor, the sums of its blocks."""

    target: Target
    file: FileIO
    left: int
    blocks: dict[str, list[array[float]]] = field(default_factory=dict)


class _Slice(NamedTuple):
    output: _Output
    tensors: Tensors
    start: int
    numbers: int


class _Work:
    """What the threads share."""

    def __init__(
        self,
        plan: Plan,
        targets: list[Target],
        folder: Path,
        slice_: int,
        stack: ExitStack,
        on_progress: Callable[[int], None],
    ) -> None:
        self.stopped = False
        self._plan, self._folder, self._slice, self._stack = plan, folder, slice_, stack
        self._on_progress, self._written = on_progress, 0
        self._lock = threading.Lock()
        self._inputs: dict[Path, FileIO] = {}
        self._slices = self._all(targets)

    def run(self) -> None:
        """Work off slices until there is none, or until another thread has failed."""
        try:
            buffers = _Buffers(self._plan, self._slice)
            task = self._next()
            while task is not None and not self.stopped:
                following = self._next()
                sums = self._merge(task, buffers)
                self._done(task, sums)
                task = following
        except BaseException:
            self.stopped = True
            raise

    def _all(self, targets: list[Target]) -> Iterator[_Slice]:
        """Every slice, file by file; a file is opened, and its head written, when its first slice is taken."""
        for target in targets:
            output = self._open(target)
            if not output.left:
                self._seal(output)
            for tensors in target.tensors:
                for start in range(0, tensors.entry.count, self._slice):
                    yield _Slice(output, tensors, start, min(self._slice, tensors.entry.count - start))

    def _next(self) -> _Slice | None:
        """The next slice, which the kernel is asked to fetch while the one before is computed."""
        with self._lock:
            task = next(self._slices, None)
            if task is not None:
                for source in task.tensors.sources:
                    width = WIDTHS[source.dtype]
                    file, start = self._input(source.path), source.start + task.start * width
                    os.posix_fadvise(file.fileno(), start, task.numbers * width, os.POSIX_FADV_WILLNEED)
            return task

    def _input(self, path: Path) -> FileIO:
        if path not in self._inputs:
            self._inputs[path] = self._stack.enter_context(FileIO(path))
        return self._inputs[path]

    def _open(self, target: Target) -> _Output:
        beside = self._folder / f"{target.name}{files.TEMPORARY}"
        file = self._stack.enter_context(FileIO(beside, "w"))
        file.truncate(target.shard.size)
        _write(file, memoryview(target.shard.head), 0)
        slices = sum(math.ceil(tensors.entry.count / self._slice) for tensors in target.tensors)
        sums = {
            tensors.entry.name: [array("d") for _ in range(len(self._plan.models) + 1)] for tensors in target.tensors
        }
        return _Output(target, file, slices, sums)

    def _merge(self, task: _Slice, buffers: _Buffers) -> list[array[float]]:
        """Read, compute and write a slice; the sums of its blocks."""
        entry, sources = task.tensors.entry, task.tensors.sources
        dtype = DTYPES[entry.dtype]
        offset, size = task.start * dtype.itemsize, task.numbers * dtype.itemsize
        for raw, source in zip(buffers.raw, sources, strict=True):
            _read(self._inputs[source.path], raw.numpy().data[:size], source.start + offset, source.path)
        inputs = [raw[:size].view(dtype) for raw in buffers.raw]
        result = buffers.result[:size].view(dtype)
        sums = [array("d") for _ in range(len(sources) + 1)]
        for start in range(0, task.numbers, BLOCK):
            stop = min(start + BLOCK, task.numbers)
            blocks = [tensor[start:stop] for tensor in inputs]
            found = buffers.merge(blocks, self._plan.weights, result[start:stop])
            if not all(map(math.isfinite, found)):
                refuse_if_not_finite(blocks, sources, task.start + start)
                found = kernels.sums_of_large(blocks, self._plan.weights)
            for column, value in zip(sums, found, strict=True):
                column.append(value)
        _write(task.output.file, buffers.result.numpy().data[:size], entry.start + offset)
        return sums

    def _done(self, task: _Slice, sums: list[array[float]]) -> None:
        with self._lock:
            for whole, part in zip(task.output.blocks[task.tensors.entry.name], sums, strict=True):
                whole.extend(part)
            task.output.left -= 1
            last = not task.output.left
            self._written += task.numbers * WIDTHS[task.tensors.entry.dtype]
            self._on_progress(self._written)
        if last:
            self._seal(task.output)

    def _seal(self, output: _Output) -> None:
        """Durable, renamed, its sums beside it: in that order. Blocks come in any order, so they are added exactly."""
        os.fsync(output.file.fileno())
        output.file.close()
        name = output.target.name
        os.replace(self._folder / f"{name}{files.TEMPORARY}", self._folder / name)
        files.sync_folder(self._folder)
        sums = {tensor: [math.fsum(column) for column in columns] for tensor, columns in output.blocks.items()}
        files.write_json(self._folder / f"{name}{SUMS}", sums)


class _Buffers:
    """One thread's memory, used again for every slice."""

    def __init__(self, plan: Plan, slice_: int) -> None:
        models = len(plan.models)
        self.raw = [torch.empty(slice_ * plan.width, dtype=torch.uint8) for _ in range(models)]
        self.result = torch.empty(slice_ * plan.width, dtype=torch.uint8)
        self._wide = [torch.empty(BLOCK) for _ in range(models)]
        self._mean, self._term = torch.empty(BLOCK), torch.empty(BLOCK)

    def merge(self, blocks: list[Tensor], weights: tuple[float, ...], result: Tensor) -> list[float]:
        """Write Σ wᵢ θᵢ of a block to ``result``, rounded to its dtype; ‖mean‖² and every ‖θᵢ − mean‖²."""
        count = len(result)
        wide = [
            block if block.dtype == torch.float32 else room[:count].copy_(block)
            for block, room in zip(blocks, self._wide, strict=True)
        ]
        mean, term = self._mean[:count], self._term[:count]
        kernels.linear(wide, weights, mean, term)
        result.copy_(mean)
        distances = [kernels.squared_distance(tensor, mean, term) for tensor in wide]
        return [kernels.squared_norm(mean), *distances]


def refuse_if_not_finite(blocks: Sequence[Tensor], sources: Sequence[Entry], start: int) -> None:
    """Raise :class:`UserError` for the first number that is not; ``start`` is where in the tensors the blocks begin."""
    for block, source in zip(blocks, sources, strict=True):
        wrong = (~torch.isfinite(block)).nonzero()
        if len(wrong):
            raise UserError(
                f"{source.path}: {source.name} holds {float(block[wrong[0]])} (number {start + int(wrong[0]):,})",
                cause="A model whose weights are not finite gives nothing but NaN.",
                remedy="Merge without this model, or take an earlier checkpoint of it.",
            )


def _read(file: FileIO, room: memoryview, start: int, path: Path) -> None:
    """Fill ``room`` from the file's bytes at ``start``; a call may give less than it is asked for."""
    done = 0
    while done < len(room):
        got = os.preadv(file.fileno(), [room[done:]], start + done)
        if not got:
            raise UserError(f"{path} has become shorter while it was read", remedy="Copy it again, and merge again.")
        done += got


def _write(file: FileIO, data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file.fileno(), data[done:], start + done)
