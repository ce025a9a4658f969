"""A run between two steps, on disk: whole or not there, and enough to go on to the same bits.

Nothing is saved that is a function of step and seed: not the order of the prompts, not the noise of the draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment import files
from alignment.rl.advantages import RunningMean
from alignment.rl.control import Beta, Judgement
from alignment.rl.learner import Learner
from alignment.training import checkpoints

STATE, TRAINED, ANCHOR, OPTIMISER = "state.json", "trained.safetensors", "anchor.safetensors", "optimiser.pt"


@dataclass
class Progress:
    """What a run carries from step to step besides its weights."""

    step: int
    """Steps that are done."""
    beta: Beta
    baseline: RunningMean = field(default_factory=RunningMean)
    judgement: Judgement = field(default_factory=Judgement)
    reward: dict[str, Any] = field(default_factory=dict)
    """Running statistics of the scores."""


def save(folder: Path, progress: Progress, learner: Learner) -> None:
    """Write ``checkpoint-<step>``, of all processes; older ones but one are removed."""
    accelerator = learner.accelerator
    if learner.engine.settings.zero:
        _all(accelerator, folder, progress.step, lambda beside: _write_engine(beside, progress, learner))
    else:
        _all(accelerator, folder, progress.step, lambda beside: _write(beside, progress, learner))


def _all(accelerator: Any, folder: Path, step: int, write: Callable[[Path], None]) -> None:
    """Every process writes into the same folder, which the main one names once all are done."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        write(folder / f"checkpoint-{step}.partial")
        accelerator.wait_for_everyone()
        accelerator.wait_for_everyone()
        return
    with checkpoints.writing(folder, step) as beside:
        accelerator.wait_for_everyone()
        write(beside)
        accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()


def _write(beside: Path, progress: Progress, learner: Learner) -> None:
    if not learner.accelerator.is_main_process:
        return
    save_file(_plain(trained(learner)), beside / TRAINED)
    torch.save(learner.optimiser.state_dict(), beside / OPTIMISER)
    _write_rest(beside, progress, learner)


def _write_engine(beside: Path, progress: Progress, learner: Learner) -> None:
    learner.model.save_checkpoint(str(beside / "engine"), tag="state")
    if learner.accelerator.is_main_process:
        _write_rest(beside, progress, learner)


def _write_rest(beside: Path, progress: Progress, learner: Learner) -> None:
    anchor = learner.roles.anchor_state()
    if anchor:
        save_file(_plain(anchor), beside / ANCHOR)
    (beside / STATE).write_text(json.dumps(asdict(progress)))


def load(checkpoint: Path, learner: Learner) -> Progress:
    """Take back what :func:`save` wrote: weights and optimiser into ``learner``, the rest returned."""
    if learner.engine.settings.zero:
        learner.model.load_checkpoint(str(checkpoint / "engine"), tag="state")
    else:
        put_back(learner, load_file(checkpoint / TRAINED))
        learner.optimiser.load_state_dict(torch.load(checkpoint / OPTIMISER, weights_only=True))
    anchor = checkpoint / ANCHOR
    learner.roles.load_anchor(load_file(anchor) if anchor.is_file() else {})
    values = json.loads((checkpoint / STATE).read_text())
    return Progress(
        values["step"],
        Beta(**values["beta"]),
        RunningMean(**values["baseline"]),
        Judgement(**values["judgement"]),
        values["reward"],
    )


def trained(learner: Learner) -> dict[str, Tensor]:
    """What is trained, by name."""
    return {name: weight for name, weight in learner.roles.named_parameters() if weight.requires_grad}


@torch.no_grad()
def put_back(learner: Learner, weights: dict[str, Tensor]) -> None:
    """Weights by name into what is trained."""
    held = trained(learner)
    assert weights.keys() == held.keys(), "a checkpoint of other roles"
    for name, weight in weights.items():
        held[name].copy_(weight)


def write_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    """A file of tensors that is there whole or not at all."""
    beside = path.with_name(path.name + files.TEMPORARY)
    save_file(_plain(tensors), beside)
    beside.replace(path)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
