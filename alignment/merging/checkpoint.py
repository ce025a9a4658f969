"""A model directory from several: weights that are streamed, everything else the first model's."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from alignment import files, parts
from alignment.errors import UserError
from alignment.merging import stream
from alignment.merging.layout import INDEX
from alignment.merging.plan import Plan

CARRIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    INDEX,
)
"""What is taken from the first model, where it is there."""


@dataclass(frozen=True)
class Layer:
    """‖mean‖ of a layer's weights, and how far each model's are from it, in the models' order."""

    norm: float
    distances: tuple[float, ...]


@dataclass(frozen=True)
class Merged:
    """What was written, and what it was merged from. ``before`` counts bytes that an earlier start had written."""

    tensors: int
    numbers: int
    bytes: int
    before: int
    whole: Layer
    layers: dict[str, Layer]

    @property
    def spread(self) -> float:
        """How far apart the models are: the root mean square of their distances from the mean, over its norm."""
        squares = [distance**2 for distance in self.whole.distances]
        return math.sqrt(sum(squares) / len(squares)) / self.whole.norm if self.whole.norm else 0.0

    def record(self) -> dict[str, object]:
        """What a record says of the weights; the same for the same weights, however they were computed."""
        return {
            "tensors": self.tensors,
            "numbers": self.numbers,
            "bytes": self.bytes,
            "spread": self.spread,
            "whole": asdict(self.whole),
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
        }


def merge(plan: Plan, out: Path, *, memory: int, threads: int, on_progress: Callable[[int], None]) -> Merged:
    """Write the model directory of a plan; whole files of an earlier start in ``out`` are kept.

    ``memory`` bytes hold all buffers, whatever the model's size. Nothing gets its final name before every number has
    been computed. ``on_progress`` is told the bytes of weights that are done. Raises :class:`UserError` where the disk
    is too small, and for weights that are not finite: then nothing is left.
    """
    division = stream.room(plan, memory, threads)
    folder = out / parts.FOLDER / "merge"
    files.make_folder(folder)
    before = sum(target.shard.size for target in plan.targets if stream.sealed(folder, target))
    files.need_space(out, plan.bytes_written - before)
    try:
        stream.stream(plan, folder, division, lambda done: on_progress(before + done))
    except UserError:
        shutil.rmtree(folder)
        raise
    sums: stream.Sums = {}
    for target in plan.targets:
        sums |= stream.sums_of(folder, target)
        if (folder / target.name).is_file():
            os.replace(folder / target.name, out / target.name)
    carry(plan.models[0].directory, out)
    counts = [tensors.entry.count for target in plan.targets for tensors in target.tensors]
    whole, layers = _layer(list(sums.values())), _by_layer(sums)
    return Merged(len(counts), sum(counts), plan.bytes_written, before, whole, layers)


def carry(first: Path, out: Path) -> None:
    """Copy everything that makes a model directory but its weights."""
    for name in CARRIED:
        if (first / name).is_file():
            files.write_atomic(out / name, (first / name).read_bytes())


def layer_of(tensor: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` → ``layers.3``; ``model.embed_tokens.weight`` → ``embed_tokens``."""
    found = re.search(r"(?:^|\.)(layers\.\d+)\.", tensor)
    return found[1] if found else tensor.removeprefix("model.").removesuffix(".weight")


def _by_layer(sums: Mapping[str, Sequence[float]]) -> dict[str, Layer]:
    gathered: dict[str, list[Sequence[float]]] = {}
    for tensor in sorted(sums):
        gathered.setdefault(layer_of(tensor), []).append(sums[tensor])

    def place(name: str) -> list[tuple[bool, int, str]]:
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]

    return {name: _layer(gathered[name]) for name in sorted(gathered, key=place)}


def _layer(rows: Sequence[Sequence[float]]) -> Layer:
    norm, *distances = (math.sqrt(math.fsum(column)) for column in zip(*rows, strict=True))
    return Layer(norm, tuple(distances))
