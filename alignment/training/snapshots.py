"""Models along a run, to be averaged: what is trained is put aside on the way, and becomes models when the run is done.

``<out>/snapshots/step-<n>/`` is then a model directory with a record of its own, which ``run:`` names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from alignment import files, parts, ranks
from alignment.artifacts import SNAPSHOTS
from alignment.errors import UserError
from alignment.training import team, zero


class Aside(TrainerCallback):
    """Puts aside what a trainer of transformers' trains, every so many steps but the last; None never does."""

    def __init__(self, out: Path, every: int | None) -> None:
        self._out, self._every = out, every

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **_: Any) -> None:
        if model is not None and is_due(self._every, state.global_step, state.max_steps):
            trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            put_aside(self._out, state.global_step, trained)


def need_whole_models(every: int | None, adapter: str) -> None:
    """Raise :class:`UserError` where adapters are trained and models are asked for along the way."""
    if every is not None and adapter != "none":
        raise UserError(
            f"optimisation.snapshots={every} and adapter.kind={adapter}",
            cause="What is kept along the way are whole models, and this run trains an adapter.",
            remedy="Say optimisation.snapshots=null, or adapter.kind=none. The adapters of several runs can be merged.",
        )


def is_due(every: int | None, step: int, last: int) -> bool:
    """Whether the model of this step is kept; that of the last one is the result."""
    return every is not None and step % every == 0 and step < last


def put_aside(out: Path, step: int, trained: Mapping[str, Tensor]) -> None:
    """Write what is trained, by name; every process comes here. A step that comes again has the same bits."""
    weights = zero.on_main(trained)
    if not ranks.is_main():
        return
    path = _folder(out) / f"step-{step}.safetensors"
    files.make_folder(path.parent)
    beside = path.with_name(path.name + files.TEMPORARY)
    save_file(weights, beside)
    files.write_atomic(_seal(path), files.digest_file(beside))
    files.sync_tree(path.parent)
    os.replace(beside, path)


@torch.no_grad()
def write(out: Path, held: Mapping[str, Tensor], save: Callable[[Path], None]) -> None:
    """Make a model of everything that was put aside; every process comes here.

    ``held`` is what has been trained, plain, of the model that ``save`` writes into a folder, on the processes that
    have it. It has its last weights again afterwards. Raises :class:`UserError`, before anything is made, where a file
    is not what was put aside.
    """
    steps = team.from_main(lambda: _unmade(out))
    last = {name: _copy(weight) for name, weight in held.items()} if steps else {}
    for step in steps:
        final = out / SNAPSHOTS / step
        beside = final.with_name(step + files.TEMPORARY)
        if any(not weight.is_meta for weight in held.values()):
            _put(held, load_file(_folder(out) / f"{step}.safetensors"))
        save(beside)
        team.from_main(partial(_finish, beside, final))
    _put(held, last)


def _unmade(out: Path) -> list[str]:
    """What was put aside and is no model yet, with an empty folder for each."""
    paths = [path for path in _folder(out).glob("step-*.safetensors") if not (out / SNAPSHOTS / path.stem).is_dir()]
    for path in paths:
        _need_whole(path)
    for path in paths:
        beside = out / SNAPSHOTS / (path.stem + files.TEMPORARY)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    return sorted((path.stem for path in paths), key=lambda step: int(step.partition("-")[2]))


def _need_whole(path: Path) -> None:
    seal = _seal(path)
    if not seal.is_file() or seal.read_bytes() != files.digest_file(path).encode():
        raise UserError(
            f"{path} is damaged",
            cause="Its bytes are not those that were put aside, and the run has passed this step.",
            remedy="Remove it, and there is no model of this step; or begin anew with force=true.",
        )


def _finish(beside: Path, final: Path) -> None:
    files.sync_tree(beside)
    os.replace(beside, final)


def _copy(weight: Tensor) -> Tensor:
    """In the memory of the CPU; of a weight that another process has, nothing."""
    return weight if weight.is_meta else weight.detach().cpu().clone()


def _put(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        held[name].copy_(weight)


def _seal(path: Path) -> Path:
    """Where the digest of what was put aside stands."""
    return path.with_name(path.name + ".sha256")


def _folder(out: Path) -> Path:
    return out / parts.FOLDER / SNAPSHOTS
