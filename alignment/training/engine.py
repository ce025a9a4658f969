"""Where and how a stage computes: device, precision, micro-batches, layout, ZeRO. Never *what* it computes.

Nothing here enters a fingerprint. What a run really used is recorded in the artifact's notes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from alignment import ranks
from alignment.errors import UserError
from alignment.settings import Settings, execution

if TYPE_CHECKING:
    import torch


class EngineSettings(Settings):
    """``conf/engine/*.yaml``."""

    device: Literal["auto", "cpu", "cuda"] = execution(
        "where tensors live; auto takes a CUDA device where there is one"
    )
    precision: Literal["auto", "bf16", "fp32"] = execution(
        "arithmetic of the forward pass; auto is bf16 where the processor has it; masters stay fp32"
    )
    micro_batch: int | None = execution("rows per forward pass and process; null takes the whole batch at once", ge=1)
    layout: Literal["auto", "bucketed", "packed"] = execution(
        "rows beside each other by length, or packed end to end; auto packs where attention is flex (CUDA)"
    )
    gradient_checkpointing: bool = execution("compute activations again in the backward pass, to save memory")
    processes: Literal["one", "several", "any"] = execution("how many processes it is for; others are refused")
    zero: Literal[0, 1, 2, 3] = execution(
        "what DeepSpeed divides among the processes: 1 the optimiser's state, 2 gradients too, 3 weights too; 0 nothing"
    )
    offload: bool = execution("keep what ZeRO divides in the memory of the CPU")
    gather: bool = execution(
        "rl under ZeRO 3: gather whole weights once a rollout, to draw and to read; false gathers them to draw alone, "
        "and reads layer by layer, in less memory"
    )
    loss_chunk: int = execution("tokens per chunk of the loss over the vocabulary", ge=16)
    watchdog_minutes: float | None = execution(
        "without a step for so long a process counts as hung, and the run is stopped; null waits for ever", gt=0
    )


@dataclass(frozen=True)
class Engine:
    """Settings resolved on this machine."""

    device: str
    bf16: bool
    packed: bool
    world: int
    settings: EngineSettings

    @property
    def place(self) -> str:
        """Where a model lies that no engine has: on the device, but under ZeRO 3 in the memory of rank 0's CPU alone.

        The other processes have its modules without weights (``meta``).
        """
        # Of a plan's steps those that train are run by all processes, and the others by one that is alone.
        if self.settings.zero < 3 or "RANK" not in os.environ:
            return self.device
        return "cpu" if ranks.is_main() else "meta"

    def notes(self) -> dict[str, Any]:
        """What is worth recording beside a result."""
        precision = "bf16 autocast" if self.bf16 else "fp32"
        layout = "packed" if self.packed else "bucketed"
        return {"device": self.device, "precision": precision, "layout": layout, "processes": self.world}


def resolve(settings: EngineSettings) -> Engine:
    """Settle what ``auto`` means here. Raises :class:`UserError` for what this machine does not have."""
    import torch

    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise UserError("engine.device=cuda: this machine has no CUDA device", remedy="Say engine.device=cpu or auto.")
    device = "cuda" if cuda and settings.device != "cpu" else "cpu"
    if device == "cpu":
        # DeepSpeed, where installed, would otherwise look for an accelerator and print that there is none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and _has_bf16(device))
    if device == "cuda" and ranks.world() > 1:
        torch.cuda.set_device(ranks.local_rank() % torch.cuda.device_count())
    packed = settings.layout == "packed" or (settings.layout == "auto" and device == "cuda")
    return Engine(device, bf16, packed, ranks.world(), settings)


def autocast(engine: Engine) -> torch.autocast:
    """The context in which a forward pass of this engine runs."""
    import torch

    return torch.autocast(engine.device, dtype=torch.bfloat16, enabled=engine.bf16)


def batch_arithmetic(batch: int, engine: Engine) -> tuple[int, int]:
    """(rows per forward pass and process, forward passes per step); refuses what does not divide."""
    share, micro = share_of(batch, engine.world, engine.settings)
    return micro, share // micro


def share_of(batch: int, world: int, settings: EngineSettings) -> tuple[int, int]:
    """(rows per process and step, rows per forward pass). Raises :class:`UserError` where something does not divide."""
    if batch % world:
        raise UserError(
            f"batch={batch} does not divide among {world} processes", remedy=f"Choose a multiple of {world}."
        )
    share = batch // world
    micro = min(settings.micro_batch or share, share)
    if share % micro:
        raise UserError(
            f"engine.micro_batch={micro} does not divide a process's share of {share} rows",
            remedy=f"Choose a divisor of {share}.",
        )
    return share, micro


def _has_bf16(device: str) -> bool:
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.mkldnn.is_available() and (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )
