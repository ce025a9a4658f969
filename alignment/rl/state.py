"""A run between two steps, on disk: whole or not there, and enough to go on to the same bits.

Nothing is saved that is a function of step and seed: not the order of the prompts, not the noise of the draws.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment import console, files, parts
from alignment.rl.advantages import RunningMean
from alignment.rl.control import Beta, Judgement
from alignment.rl.learner import Learner
from alignment.training import checkpoints, team, universal

STATE, TRAINED, ANCHOR, OPTIMISER = "state.json", "trained.safetensors", "anchor.safetensors", "optimiser.pt"
BEST = "best.safetensors"
ENGINE, TAG = "engine", "state"
"""The folder of DeepSpeed's own checkpoint, and the one in it."""


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


def save(folder: Path, progress: Progress, learner: Learner, *, best: Path | None) -> None:
    """Write ``checkpoint-<step>``, of all processes; older ones but one are removed.

    The file of the ``best`` policy so far is copied into it: another name of the same bytes would let one damaged byte
    spoil all checkpoints at once.
    """
    with checkpoints.writing_together(folder, progress.step, team.meet) as beside:
        if learner.engine.settings.zero:
            # Every process writes its part; what is frozen is read where the run began.
            learner.model.save_checkpoint(str(beside / ENGINE), tag=TAG, exclude_frozen_parameters=True)
        anchor = learner.anchor_state()
        if not console.is_main_process():
            return
        if not learner.engine.settings.zero:
            save_file(_plain(trained(learner)), beside / TRAINED)
            torch.save(learner.optimiser.state_dict(), beside / OPTIMISER)
        if anchor:
            save_file(_plain(anchor), beside / ANCHOR)
        if best is not None:
            shutil.copyfile(best, beside / BEST)
        (beside / STATE).write_text(json.dumps(asdict(progress)))
        universal.describe(beside, learner.engine)


def load(checkpoint: Path, learner: Learner) -> Progress:
    """Take back what :func:`save` wrote: weights and optimiser into ``learner``, the rest returned."""
    fits = team.from_main(lambda: universal.fits(checkpoint, learner.engine))
    if learner.engine.settings.zero:
        _load_engine(checkpoint, learner, fits)
    else:
        put_back(learner, load_file(checkpoint / TRAINED))
        learner.optimiser.load_state_dict(torch.load(checkpoint / OPTIMISER, weights_only=True))
    anchor = checkpoint / ANCHOR
    learner.load_anchor(load_file(anchor) if anchor.is_file() else {})
    values = json.loads((checkpoint / STATE).read_text())
    return Progress(
        values["step"],
        Beta(**values["beta"]),
        RunningMean(**values["baseline"]),
        Judgement(**values["judgement"]),
        values["reward"],
    )


def _load_engine(checkpoint: Path, learner: Learner, fits: bool) -> None:
    """Into DeepSpeed; what another number of processes wrote is made universal first, beside the checkpoints."""
    folder = checkpoint / ENGINE
    if not fits:
        beside = checkpoint.parents[1] / parts.FOLDER / "universal"
        team.from_main(lambda: _make_universal(folder / TAG, beside))
        folder = beside
    learner.model._config.load_universal_checkpoint = not fits
    found, _ = learner.model.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    assert found is not None, "a whole checkpoint has what was saved"
    learner.model._config.load_universal_checkpoint = False
    universal.divide_steps(learner.model)


def _make_universal(source: Path, folder: Path) -> None:
    # DeepSpeed would take fragments of a conversion that was cut short for its own.
    shutil.rmtree(folder, ignore_errors=True)
    universal.convert(source, folder / TAG)


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


def take_out_best(checkpoint: Path, path: Path) -> None:
    """Put the best policy of a checkpoint at ``path``, whatever is there."""
    if (checkpoint / BEST).is_file():
        files.make_folder(path.parent)
        beside = path.with_name(path.name + files.TEMPORARY)
        shutil.copyfile(checkpoint / BEST, beside)
        beside.replace(path)


def write_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    """A file of tensors that is there whole or not at all."""
    beside = path.with_name(path.name + files.TEMPORARY)
    save_file(_plain(tensors), beside)
    beside.replace(path)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
