"""Long work in parts that are whole or not there, so that a stage that was killed goes on after the last one.

Parts live in ``<artifact>/parts/`` while a stage runs. They are no part of the artifact: the pipeline removes
them when it writes the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from alignment import files

FOLDER = "parts"

Item = TypeVar("Item")
Rows = list[dict[str, Any]]


def in_parts(
    out: Path,
    name: str,
    items: Iterable[Item],
    size: int,
    work: Callable[[Sequence[Item]], Rows],
    on_done: Callable[[int, bool], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Do ``work`` on ``items``, ``size`` at a time, and give its rows, in order.

    ``work`` returns plain JSON rows and must depend on its items alone. What an earlier start has finished is
    read instead of done again. ``on_done`` is told the items of each part, and whether they were done before.
    """
    folder = out / FOLDER / name
    files.make_folder(folder)
    for number, some in enumerate(batches(items, size)):
        path = folder / f"{number:06}.jsonl"
        before = path.is_file()
        if not before:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in work(some))
            files.write_atomic(path, "".join(lines))
        if on_done is not None:
            on_done(len(some), before)
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in lists of ``size``, the last one shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
