"""A model directory from several: weights that are streamed, everything else the first model's."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from alignment import console, files, parts
from alignment.errors import UserError
from alignment.merging import geometry, stream
from alignment.merging.coefficients import STRAIGHT
from alignment.merging.geometry import Geometry, Layer, Rounding
from alignment.merging.layout import INDEX
from alignment.merging.plan import Plan, Target

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
class Merged:
    """What was written, and what it was merged from. ``before`` counts bytes that an earlier start had written."""

    tensors: int
    numbers: int
    bytes: int
    before: int
    whole: Layer
    layers: dict[str, Layer]
    geometry: Geometry | None
    rounding: Rounding | None

    @property
    def spread(self) -> float:
        """How far apart the models are: the root mean square of their distances from the mean, over its norm."""
        squares = [distance**2 for distance in self.whole.distances]
        return math.sqrt(sum(squares) / len(squares)) / self.whole.norm if self.whole.norm else 0.0

    @property
    def straight(self) -> int:
        """Groups between whose task vectors lies a line as good as any arc, or of which one is zero."""
        groups = () if self.geometry is None else self.geometry.groups.values()
        angles = [group.angles.values() for group in groups]
        return sum(any(angle is None or math.sin(math.radians(angle)) < STRAIGHT for angle in one) for one in angles)

    def record(self) -> dict[str, object]:
        """What a record says of the weights; the same for the same weights, however they were computed."""
        return {
            "tensors": self.tensors,
            "numbers": self.numbers,
            "bytes": self.bytes,
            "spread": self.spread,
            "whole": asdict(self.whole),
            "layers": {name: asdict(layer) for name, layer in self.layers.items()},
            "geometry": None if self.geometry is None else asdict(self.geometry),
        }


def merge(
    plan: Plan,
    out: Path,
    *,
    memory: int,
    threads: int,
    on_progress: Callable[[int], None],
    device: str = "cpu",
) -> Merged:
    """Write the model directory of a plan; whole files of an earlier start in ``out`` are kept.

    ``memory`` bytes hold all buffers, whatever the model's size. Nothing gets its final name before every number has
    been computed. ``on_progress`` is told the bytes of weights that are done. Raises :class:`UserError` where the disk
    is too small, and for weights that cannot be merged, not finite or opposite: then nothing is left.
    """
    division = stream.room(plan, memory, threads)
    # Sums are told from the start where it is there; what was begun without it is of no use with it.
    folder = out / parts.FOLDER / ("merge" if plan.start is None else "merge_from_start")
    files.make_folder(folder)
    done = [target for target in plan.targets if _sealed(folder, out, target)]
    before = sum(target.shard.size for target in done)
    files.need_space(out, plan.bytes_written - before)
    try:
        counts = stream.stream(plan, folder, division, lambda now: on_progress(before + now), device, done)
    except UserError:
        shutil.rmtree(folder)
        raise
    sums: stream.Sums = {}
    for target in plan.targets:
        sums |= stream.sums_of(folder, target)
        if (folder / target.name).is_file():
            os.replace(folder / target.name, out / target.name)
    carry(plan.models[0].directory, out)
    numbers = [tensors.entry.count for target in plan.targets for tensors in target.tensors]
    whole, layers = geometry.layers(plan, sums, counts)
    moved, rounded = geometry.geometry(plan, sums, counts), geometry.rounding(plan, sums)
    return Merged(len(numbers), sum(numbers), plan.bytes_written, before, whole, layers, moved, rounded)


def _sealed(folder: Path, out: Path, target: Target) -> bool:
    """Whether a file has been finished, and may have been moved to ``out`` since.

    One that was cut off is named, and is to be made again.
    """
    if not (folder / f"{target.name}{stream.SUMS}").is_file():
        return False
    path = next((place / target.name for place in (folder, out) if (place / target.name).is_file()), None)
    if path is not None and path.stat().st_size == target.shard.size:
        return True
    console.say(f"{path or out / target.name} is made again: it is {'cut off' if path else 'gone'}", style="yellow")
    return False


def carry(first: Path, out: Path) -> None:
    """Copy everything that makes a model directory but its weights."""
    for name in CARRIED:
        if (first / name).is_file():
            files.write_atomic(out / name, (first / name).read_bytes())
