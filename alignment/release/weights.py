"""Weights in the dtype of the release: read, rounded and written in blocks, file by file, with the shard layout kept.

A file is named when it is whole, and what is known of its rounding is written beside it after that; so a conversion
that was killed goes on after its last whole file, to the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from alignment import files
from alignment.errors import UserError
from alignment.merging import layout
from alignment.merging.layout import PREFIX, Entry, Layout, Shard

Dtype = Literal["bf16", "fp32"]
TORCH: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
SPELLED: dict[Dtype, str] = {"bf16": "BF16", "fp32": "F32"}
READ = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
BLOCK = 1 << 20
"""Numbers that are held at once."""
DONE = ".rounded.json"
"""Suffix of what is known of a whole file: ‖w‖² and ‖rounded w − w‖² of every tensor."""


@dataclass(frozen=True)
class Written:
    """``rounding`` is ‖rounded w − w‖ / ‖w‖ over all weights; 0 where nothing had to be rounded."""

    tensors: int
    numbers: int
    bytes: int
    rounding: float


def size(source: Layout, dtype: Dtype) -> int:
    """Bytes of the numbers in another dtype."""
    return sum(entry.count for entry in source.entries.values()) * TORCH[dtype].itemsize


def convert(
    source: Layout,
    target: Path,
    beside: Path,
    dtype: Dtype,
    metadata: Mapping[str, str],
    on_progress: Callable[[int], None],
) -> Written:
    """Write every file of ``source`` into ``target`` with its numbers in ``dtype``, and the index where there is one.

    ``metadata`` goes into the files' headers. ``beside`` holds what is known of whole files. ``on_progress`` is told
    the bytes that are done. Raises :class:`UserError` for a tensor that is no float and a number that is not finite.
    """
    sums: dict[str, list[float]] = {}
    done = 0
    for shard in source.shards:
        told = beside / f"{shard.path.name}{DONE}"
        if not (told.is_file() and (target / shard.path.name).is_file()):
            files.write_json(told, _write(shard, target, dtype, metadata, partial(_tell, on_progress, done)))
        sums |= json.loads(told.read_text(encoding="utf-8"))
        done += sum(entry.count for entry in shard.entries) * TORCH[dtype].itemsize
        on_progress(done)
    if source.index is not None:
        _write_index(source, target, done)
    norm, error = (math.fsum(column) for column in zip(*sums.values(), strict=True))
    numbers = sum(entry.count for entry in source.entries.values())
    return Written(len(sums), numbers, done, math.sqrt(error / norm) if norm else 0.0)


def _tell(on_progress: Callable[[int], None], before: int, written: int) -> None:
    on_progress(before + written)


def header(shard: Shard, dtype: Dtype, metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file: its length in 8 bytes, then JSON, padded so that the numbers are aligned."""
    told: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    place = 0
    for entry in shard.entries:
        end = place + entry.count * TORCH[dtype].itemsize
        told[entry.name] = {"dtype": SPELLED[dtype], "shape": [*entry.shape], "data_offsets": [place, end]}
        place = end
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % PREFIX)
    return len(text).to_bytes(PREFIX, "little") + text


def _write(
    shard: Shard, target: Path, dtype: Dtype, metadata: Mapping[str, str], on_progress: Callable[[int], None]
) -> dict[str, list[float]]:
    """One file, whole or not there; the sums of its tensors."""
    unfinished = target / f"{shard.path.name}{files.TEMPORARY}"
    sums: dict[str, list[float]] = {}
    written = 0
    with open(shard.path, "rb") as source, open(unfinished, "wb") as file:
        file.write(header(shard, dtype, metadata))
        for entry in shard.entries:
            squares: list[tuple[float, float]] = []
            for start in range(0, entry.count, BLOCK):
                numbers = min(BLOCK, entry.count - start)
                squares.append(_convert(entry, start, numbers, dtype, source, file))
                written += numbers * TORCH[dtype].itemsize
                on_progress(written)
            sums[entry.name] = [math.fsum(column) for column in zip(*squares, strict=True)] or [0.0, 0.0]
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(target / shard.path.name)
    files.sync_folder(target)
    return sums


def _convert(
    entry: Entry, start: int, numbers: int, dtype: Dtype, source: BinaryIO, target: BinaryIO
) -> tuple[float, float]:
    """Round a block to nearest, ties to even; ‖w‖² and ‖rounded w − w‖² of it."""
    if entry.dtype not in READ:
        raise UserError(
            f"{entry.path}: {entry.name} is of dtype {entry.dtype}",
            cause="Weights are released from fp32, bf16 or fp16.",
            remedy="Quantised weights cannot be released in another precision than they have.",
        )
    width = READ[entry.dtype].itemsize
    source.seek(entry.start + start * width)
    raw = bytearray(source.read(numbers * width))
    if len(raw) < numbers * width:
        raise UserError(f"{entry.path} has become shorter while it was read", remedy=layout.COPY_AGAIN)
    wide = torch.frombuffer(raw, dtype=READ[entry.dtype]).float()
    rounded = wide.to(TORCH[dtype])
    if not torch.isfinite(rounded).all():
        raise UserError(
            f"{entry.path}: {entry.name} holds a number that is not finite in {dtype}",
            cause="Such a model gives nothing but NaN.",
            remedy="Take an earlier checkpoint of it.",
        )
    target.write(rounded.view(torch.uint8).numpy().data)
    off = rounded.float().sub_(wide)
    return float(wide.double().square().sum()), float(off.double().square().sum())


def _write_index(source: Layout, target: Path, bytes_: int) -> None:
    """Which file holds which tensor; the whole size is that of the new numbers."""
    names = {entry.name: shard.path.name for shard in source.shards for entry in shard.entries}
    numbers = sum(entry.count for entry in source.entries.values())
    told = {
        "metadata": {"total_parameters": numbers, "total_size": bytes_},
        "weight_map": dict(sorted(names.items())),
    }
    files.write_json(target / layout.INDEX, told)
