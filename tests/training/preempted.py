"""A trainer's run of eight steps that is told to stop, or breaks off, at a chosen moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import GemmaTokenizer

from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.training import supervised
from alignment.training.engine import Engine, EngineSettings
from alignment.training.loop import Planned, Watcher
from alignment.training.optimisation import Optimisation
from alignment.training.rows import TokenRows
from alignment.training.tracking import Tracker, TrackerSettings, read_metrics

CONF = Path(__file__).parents[2] / "conf"
STEPS = 8
SHAPE = Shape("gemma1", 16, 2, 24, 2, 1, head_dim=8, query_scale=8, context=32)


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    weights: Tensor
    rows: list[dict[str, Any]]
    resumed: int | None


def engine(**changes: object) -> Engine:
    """One process on the CPU in fp32."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / "engine" / "single.yaml"))
    assert isinstance(values, dict)
    settings = EngineSettings.parse({**values, "device": "cpu", "precision": "fp32", **changes})  # type: ignore[dict-item]
    return Engine("cpu", False, False, 1, settings)


@cache
def tokenizer_folder() -> Path:
    """TRL wants one; nothing is spelled with it."""
    folder = Path(mkdtemp())
    GemmaTokenizer().save_pretrained(folder)
    return folder


def rows() -> TokenRows:
    rng = np.random.default_rng(0)
    return TokenRows.gather((rng.integers(3, 64, n), np.arange(n) > n // 3) for n in rng.integers(6, 30, 40))


def numbers(checkpoint_steps: int) -> Optimisation:
    values = OmegaConf.to_container(OmegaConf.load(CONF / "stage" / "sft.yaml"))
    assert isinstance(values, dict)
    changes = {"steps": STEPS, "epochs": None, "batch": 4, "checkpoint_steps": checkpoint_steps}
    return Optimisation.parse({**values["optimisation"], **changes})


def ran(out: Path, *, every_checkpoint: int = 4, tell: Mapping[int, str] | None = None, **how: object) -> Ran:
    """Train for eight steps, with a row of metrics every second one. ``tell`` says what happens at the end of which.

    ``step``: USR1 comes; ``twice``: TERM after it; ``save``: USR1 comes while its checkpoint is written; ``killed``:
    an error that nobody has foreseen.
    """
    out.mkdir(exist_ok=True)
    tell = tell or {}
    on_step_end, save = Watcher.on_step_end, Planned._save_checkpoint

    def told(self: Watcher, args: Any, state: Any, control: Any, **more: Any) -> None:
        moment = tell.get(state.global_step)
        if moment in ("step", "twice"):
            os.kill(os.getpid(), signal.SIGUSR1)
        if moment == "twice":
            os.kill(os.getpid(), signal.SIGTERM)
        if moment == "killed":
            raise RuntimeError("killed")
        on_step_end(self, args, state, control, **more)

    def saved(self: Planned, model: Any, trial: Any) -> None:
        if tell.get(self.state.global_step) == "save":
            os.kill(os.getpid(), signal.SIGUSR1)
        save(self, model, trial)

    model = core.build(SHAPE, 64, TokenIds(), 0)
    tracker = Tracker(TrackerSettings(wandb="off", project="test", every=2, upload="none"), out, {})
    with (
        mock.patch.object(Watcher, "on_step_end", told),
        mock.patch.object(Planned, "_save_checkpoint", saved),
        # Ten rows a run are the least that is written otherwise.
        mock.patch("alignment.training.loop.Course.every", 2),
    ):
        trained = supervised.train(
            model,
            rows(),
            title="test",
            out=out,
            tokenizer_folder=tokenizer_folder(),
            pad_id=0,
            numbers=numbers(every_checkpoint),
            engine=engine(**how),
            tracker=tracker,
            seed=3,
        )
    weights = torch.cat([one.detach().flatten() for one in model.parameters()])
    return Ran(weights, read_metrics(out / "metrics.jsonl"), trained.resumed_from)
