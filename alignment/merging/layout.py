"""Where the tensors of a model directory lie in its safetensors files, by their headers alone.

A file is the length of its header in 8 bytes (little-endian), the header in JSON, and the numbers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from alignment.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PREFIX = 8
COPY_AGAIN = "It was probably cut short or changed: copy it again."


@dataclass(frozen=True)
class Entry:
    """One tensor: its numbers are the file's bytes from ``start`` on. ``dtype`` as safetensors spells it (``BF16``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One file. ``head`` is all that stands before the numbers, byte by byte."""

    path: Path
    head: bytes
    size: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Layout:
    """A directory's files in the order of their names; ``index`` where there is one beside them."""

    directory: Path
    shards: tuple[Shard, ...]
    index: Path | None

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by its name."""
        return {entry.name: entry for shard in self.shards for entry in shard.entries}


def read(directory: Path) -> Layout:
    """The layout of a model directory. Raises :class:`UserError`, with the file's name, for what is not whole."""
    index = directory / INDEX
    if index.is_file() and (directory / SINGLE).is_file():
        raise UserError(
            f"{directory} holds both {SINGLE} and {INDEX}",
            cause="One of them is left over, and nothing says which.",
            remedy="Remove the one that is not the model.",
        )
    if not index.is_file():
        return Layout(directory, (read_shard(directory / SINGLE),), None)
    promised = _index(index)
    shards = tuple(read_shard(directory / name) for name in sorted(promised))
    for shard in shards:
        names, held = promised[shard.path.name], {entry.name for entry in shard.entries}
        if names != held:
            told = "lacks" if names - held else "holds, unknown to the index,"
            raise UserError(
                f"{shard.path} {told} {min(names ^ held)}", cause=f"It does not fit {index.name}.", remedy=COPY_AGAIN
            )
    return Layout(directory, shards, index)


def _index(path: Path) -> dict[str, set[str]]:
    """The names of tensors by file."""
    promised: dict[str, set[str]] = {}
    try:
        for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items():
            promised.setdefault(file, set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read", cause=f"{type(error).__name__}: {error}", remedy=COPY_AGAIN) from None
    outside = [
        file
        for file in promised
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors")
    ]
    if outside or not promised:
        raise UserError(
            f"{path} names {outside[0]!r}" if outside else f"{path} names no file",
            cause="The weights are read from safetensors files that lie beside the index.",
            remedy="Copy the model again.",
        )
    return promised


def read_shard(path: Path) -> Shard:
    """One file by its header. Raises :class:`UserError` for what is not whole."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing", cause="Weights are read from safetensors alone, all of them.", remedy="Copy it there."
        )
    try:
        # The library checks what a header can get wrong: its length, gaps, overlaps, the file's end.
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is damaged", cause=str(error), remedy=COPY_AGAIN) from None
    with open(path, "rb") as file:
        prefix = file.read(PREFIX)
        header = file.read(int.from_bytes(prefix, "little"))
    data = PREFIX + len(header)
    entries = [
        Entry(name, told["dtype"], tuple(told["shape"]), path, data + told["data_offsets"][0])
        for name, told in json.loads(header).items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: (entry.start, entry.name))
    return Shard(path, prefix + header, path.stat().st_size, tuple(entries))
