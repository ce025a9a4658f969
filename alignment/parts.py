"""Long work in parts that are whole or not there, so that a stage that was killed goes on after the last one.

Parts live in ``<artifact>/parts/`` while a stage runs. They are no part of the artifact: the pipeline removes
them when it writes the record. Each ends with the digest of what stands before it; one that does not match is named
and made again. Asked to stop (``signals.py``), a stage ends after the part that it is at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from alignment import console, files, signals
from alignment.errors import UserError

FOLDER = "parts"
SEAL = 64
"""Bytes of a SHA-256 in hexadecimal, with which a part ends."""

Item = TypeVar("Item")
Rows = list[dict[str, Any]]


def in_parts(
    out: Path,
    name: str,
    items: Iterable[Item],
    size: int,
    work: Callable[[Sequence[Item]], Rows],
    on_done: Callable[[int, bool], None] | None = None,
    mine: Callable[[int], bool] = lambda number: True,
) -> Iterator[dict[str, Any]]:
    """Do ``work`` on ``items``, ``size`` at a time, and give its rows, in order.

    ``work`` returns plain JSON rows and must depend on its items alone. What an earlier start has finished is
    read instead of done again. ``on_done`` is told the items of each part, and whether they were done before. Parts
    whose number is not ``mine`` are left to other processes, and passed over.
    Raises :class:`signals.Preempted` after a part where this process was asked to stop.
    """
    folder = out / FOLDER / name
    files.make_folder(folder)
    for number, some in enumerate(batches(items, size)):
        if not mine(number):
            continue
        path = folder / f"{number:06}.jsonl"
        before = is_whole(path)
        if not before:
            write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in work(some)).encode())
        if on_done is not None:
            on_done(len(some), before)
        if not before:
            signals.heed(f"after part {number + 1:,} of {name}")
        yield from map(json.loads, read(path).decode().split("\n")[:-1])


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in lists of ``size``, the last one shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def write(path: Path, data: bytes) -> None:
    """Write a part, whole or not at all."""
    files.write_atomic(path, data + hashlib.sha256(data).hexdigest().encode())


def is_whole(path: Path) -> bool:
    """Whether a part is there. One whose bytes are not those that were written is named, and is to be made again."""
    if not path.is_file():
        return False
    if _unsealed(path.read_bytes()) is not None:
        return True
    console.say(f"{path} is made again: it is damaged", style="yellow")
    return False


def read(path: Path) -> bytes:
    """What :func:`write` was given. Raises :class:`UserError` where it is something else by now."""
    data = _unsealed(path.read_bytes())
    if data is None:
        raise UserError(
            f"{path} is damaged", cause="Its bytes are not those that were written.", remedy="Give the same command."
        )
    return data


def _unsealed(whole: bytes) -> bytes | None:
    data, seal = whole[:-SEAL], whole[-SEAL:]
    return data if hashlib.sha256(data).hexdigest().encode() == seal else None
