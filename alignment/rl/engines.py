"""How roles become an engine's: Accelerate's or DeepSpeed's, with their parameters in groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin

from alignment.gemma.branches import Lines, Spans
from alignment.gemma.roles import Outputs, Roles
from alignment.rl.settings import Updating
from alignment.training import zero
from alignment.training.engine import Engine, autocast


def accelerator(engine: Engine, updating: Updating) -> Accelerator:
    """Accelerate for these processes, with DeepSpeed where the engine has it."""
    zero.begin(engine)
    # What an earlier step of this process has left there may be of another precision.
    AcceleratorState._reset_state()
    config = zero.config(engine)
    if config is None:
        return Accelerator(cpu=engine.device == "cpu", mixed_precision="bf16" if engine.bf16 else "no")
    config |= {
        "gradient_clipping": updating.clip_norm,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": engine.world,
    }
    return Accelerator(mixed_precision="no", deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))


def autocast_inside(roles: Roles, engine: Engine) -> None:
    """DeepSpeed ends an autocast that begins outside its forward pass."""
    original = roles.forward

    def forward(lines: Lines, where: Spans, temperature: float) -> Outputs:
        with autocast(engine):
            return original(lines, where, temperature)

    roles.forward = forward  # type: ignore[method-assign]


def by_decay(parameters: list[torch.nn.Parameter], decay: float) -> Iterator[tuple[list[torch.nn.Parameter], float]]:
    """Matrices decay, norms do not."""
    for some, share in (([p for p in parameters if p.ndim > 1], decay), ([p for p in parameters if p.ndim <= 1], 0.0)):
        if some:
            yield some, share
