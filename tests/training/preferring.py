"""What the tests of training on preferences need: pairs, a small policy, and a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from alignment.gemma import core
from alignment.gemma.presets import Shape, TokenIds
from alignment.training import direct, policies
from alignment.training.engine import Engine, EngineSettings
from alignment.training.loop import Trained
from alignment.training.model_settings import AdapterSettings
from alignment.training.optimisation import Optimisation
from alignment.training.pair_rows import PairRow, PairRows
from alignment.training.policies import Policy
from alignment.training.tracking import Tracker, TrackerSettings

VOCABULARY = 64
SHAPE = Shape(
    "gemma2", 16, 2, 24, 2, 1, head_dim=8, query_scale=8, context=64, window=8, attention_cap=50.0, final_cap=30.0
)
NUMBERS = {
    "batch": 8,
    "epochs": None,
    "steps": 4,
    "learning_rate": 1e-2,
    "final_rate": 0.1,
    "warmup_share": 0.0,
    "warmup_at_least": 1,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-5,
    "clip_norm": 1.0,
    "length_window": 2,
    "snapshots": None,
    "checkpoint_steps": 2,
}
BETA = 0.3


def pairs(count: int = 30) -> list[PairRow]:
    """Prompts and answers of many lengths; what is chosen has more of the token 5."""
    rng = np.random.default_rng(0)

    def ids(least: int, most: int) -> list[int]:
        return rng.integers(6, VOCABULARY, rng.integers(least, most)).tolist()

    return [PairRow([2, *ids(1, 14)], [5, *ids(0, 9), 5, 1], [*ids(1, 12), 1], 0.0) for _ in range(count)]


def engine(**changes: object) -> Engine:
    values = {
        "device": "cpu",
        "precision": "fp32",
        "micro_batch": None,
        "layout": "auto",
        "gradient_checkpointing": False,
        "processes": "any",
        "zero": 0,
        "offload": False,
        "gather": True,
        "loss_chunk": 16,
        "watchdog_minutes": None,
    }
    settings = EngineSettings.parse({**values, **changes})
    return Engine("cpu", settings.precision == "bf16", False, 1, settings)


def fresh(*, adapter: bool = False, adapter_dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """A policy to train, the same at every call."""
    policy = Policy(core.build(SHAPE, VOCABULARY, TokenIds(), seed), None, "gemma2")  # type: ignore[arg-type]
    if adapter:
        torch.manual_seed(5)
        policy = policies.adapt(policy, AdapterSettings(kind="lora", rank=2, alpha=4.0, dropout=adapter_dropout))
    return policy.model


def logprobs(model: nn.Module, how: Engine | None = None) -> np.ndarray:
    return direct.pair_logprobs(model, pairs(), pad_id=0, engine=how or engine())


def run(
    out: Path,
    tokenizer_folder: Path,
    model: nn.Module,
    how: Engine | None = None,
    reference_PA: np.ndarray | None = None,
    **changes: object,
) -> Trained:
    out.mkdir(exist_ok=True)
    how = how or engine()
    return direct.train(
        model,
        PairRows.gather(pairs()),
        reference_PA=logprobs(fresh(), how) if reference_PA is None else reference_PA,
        beta=BETA,
        title="test",
        out=out,
        tokenizer_folder=tokenizer_folder,
        pad_id=0,
        numbers=Optimisation.parse({**NUMBERS, **changes}),
        engine=how,
        tracker=Tracker(TrackerSettings(wandb="off", project="test", every=1, upload="none"), out, {}),
        seed=3,
    )


def fit(
    out: Path, tokenizer_folder: Path, model: nn.Module | None = None, how: Engine | None = None, **changes: object
) -> nn.Module:
    model = model or fresh()
    run(out, tokenizer_folder, model, how, **changes)  # type: ignore[arg-type]
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def digest(model: nn.Module) -> str:
    return hashlib.sha256(weights(model).numpy().tobytes()).hexdigest()
