"""The numbers of a supervised run, and how many steps they come to. Importable without torch."""

from __future__ import annotations

import math
from pathlib import Path

from alignment.errors import UserError
from alignment.settings import Settings, execution, identity


class Optimisation(Settings):
    """AdamW under a cosine with warm-up; the batch is counted in rows, the loss in tokens."""

    batch: int = identity("rows per optimiser step, over all processes", ge=1)
    epochs: float | None = identity("passes over the rows; null where `steps` says it", gt=0)
    steps: int | None = identity("optimiser steps; null where `epochs` says it", ge=1)
    learning_rate: float = identity("peak learning rate", gt=0, le=1)
    final_rate: float = identity("the cosine's end, as a share of the peak", ge=0, le=1)
    warmup_share: float = identity("share of the steps that warm up linearly", ge=0, lt=1)
    warmup_at_least: int = identity("warm-up steps at the least", ge=0)
    weight_decay: float = identity("AdamW's weight decay, not on norms", ge=0)
    beta1: float = identity("AdamW's first decay", ge=0, lt=1)
    beta2: float = identity("AdamW's second decay", ge=0, lt=1)
    epsilon: float = identity("AdamW's ε", gt=0)
    clip_norm: float = identity("largest norm of the gradient", gt=0)
    length_window: int = identity("batches among which rows are sorted by length; 1 keeps the order drawn", ge=1)
    snapshots: int | None = identity("steps between models that are kept for averages; null keeps the last only", ge=1)
    checkpoint_steps: int = execution("steps between two checkpoints", ge=1)


def disk_for(
    numbers: Optimisation, shape: str | None, folder: Path | None = None, *, rank: int | None = None, moments: int = 2
) -> int:
    """Bytes for a model in fp32: its weights, and three checkpoints of what is kept of them and its two moments.

    The model is that in ``folder``; where it is not there yet, one of ``shape``, which counts as ``mini`` where none is
    named. With adapters of a ``rank`` they alone are in checkpoints; nothing that is trained has no ``moments``.

    Two checkpoints are kept, and a third exists while it is being written. A snapshot is there twice for a while; of a
    run that is counted in epochs snapshots are not foreseen.
    """
    weights, adapters = _bytes_of_shape(shape or "mini") if folder is None else bytes_of(folder, rank or 0)
    checkpoint = (weights if rank is None else adapters) * (1 + moments)
    snapshots = 0 if numbers.snapshots is None else ((numbers.steps or 0) - 1) // numbers.snapshots
    return weights + 3 * checkpoint + 2 * max(0, snapshots) * weights


def bytes_of(folder: Path, rank: int) -> tuple[int, int]:
    """Of a model in fp32, whatever it is stored in, and of adapters to all its matrices, by the headers of its files.

    Raises :class:`UserError` where they are not whole.
    """
    from alignment.merging import layout

    shapes = [entry.shape for shard in layout.read(folder).shards for entry in shard.entries]
    return 4 * sum(map(math.prod, shapes)), 4 * rank * sum(sum(shape) for shape in shapes if len(shape) == 2)


def _bytes_of_shape(shape: str) -> tuple[int, int]:
    """The same of a preset, whose adapters count as all of it."""
    from alignment.gemma.presets import REPORTED_VOCABULARY, parameter_counts, shape_named

    vocabulary = 4096 if shape.startswith("mini") else REPORTED_VOCABULARY
    weights = 4 * sum(parameter_counts(shape_named(shape), vocabulary))
    return weights, weights


def total_steps(numbers: Optimisation, rows: int) -> int:
    """The optimiser steps of a run over ``rows`` rows; every row is seen at least ``epochs`` times."""
    if rows == 0:
        raise UserError("there is no row to train on", remedy="`stage=show` of the dataset says where its rows went.")
    if (numbers.epochs is None) == (numbers.steps is None):
        raise UserError(
            f"optimisation.epochs={numbers.epochs} and optimisation.steps={numbers.steps}",
            cause="One of them says how long to train, the other is null.",
            remedy="Say for instance optimisation.steps=400 optimisation.epochs=null.",
        )
    if numbers.steps is not None:
        return numbers.steps
    return max(1, math.ceil((numbers.epochs or 0) * rows / numbers.batch))
