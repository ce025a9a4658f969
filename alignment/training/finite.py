"""What is done where numbers stop being any: the batch at fault is saved, and what came of it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from alignment import files, parts, ranks
from alignment.errors import UserError
from alignment.training import zero


def save_batch(out: Path, passes: Sequence[Mapping[str, Any]]) -> Path:
    """Save the tensors that this process's forward passes took in. Returns the file.

    Those of the first pass have their names, those of further ones end in ``.1``, ``.2``, …
    """
    path = out / parts.FOLDER / f"not_a_number_{ranks.rank()}.safetensors"
    tensors = {
        f"{name}.{place}" if place else name: value.detach().cpu().contiguous()
        for place, one in enumerate(passes)
        for name, value in one.items()
        if isinstance(value, Tensor)
    }
    files.make_folder(path.parent)
    save_file(tensors, path)
    return path


def need_weights(
    weights: Iterable[tuple[str, Tensor]], step: int, *, rate: str, out: Path, batch: Sequence[Mapping[str, Any]]
) -> None:
    """A finite loss may have a gradient that is not: such weights are never kept.

    ``batch`` is what the last step learned from, saved where one is not finite: had an earlier step spoiled it, the
    next loss would have said so. ``rate`` is the setting to lower. Raises :class:`UserError`.
    """
    for name, weight in weights:
        if bool(torch.isfinite(zero.own_part(weight)).all()):
            continue
        where = f"the batch is in {save_batch(out, batch)}, " if batch else ""
        raise UserError(
            f"{name} is not finite after step {step}",
            cause="A gradient was not: a learning rate that is too high, or arithmetic that overflowed.",
            remedy=f"Lower {rate}, or say engine.precision=fp32; {where}the last whole checkpoint is from before.",
        )
