"""A stage on its engine: the phases of a step on one of its GPUs, and what that GPU sends.

Sizes are taken as large as the settings allow: every row is as long as is said, and all of its tokens carry loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.estimate import communication, memory
from alignment.estimate.arithmetic import FP32, Model
from alignment.estimate.communication import Traffic
from alignment.estimate.memory import Loss, Pass, Phase, Way
from alignment.estimate.roles import Drawing, Roles, reinforced

Stage = Literal["pretrain", "sft", "reward", "dpo", "rl"]
STAGES: tuple[Stage, ...] = ("pretrain", "sft", "reward", "dpo", "rl")
LOSSES: dict[Stage, Loss] = {"pretrain": "nll", "sft": "nll", "reward": "score", "dpo": "logprobs"}


@dataclass(frozen=True, slots=True)
class Job:
    """``rows`` (in rl: answers) of ``length`` tokens are a forward pass on each GPU, ``passes`` of them a step.

    In reward and dpo a row is a pair, prompt and both answers. In rl ``roles`` and ``drawing`` say the rest, and a
    prompt with its answers is a line of its own.
    """

    stage: Stage
    model: Model
    way: Way
    rows: int
    length: int
    passes: int
    roles: Roles | None = None
    drawing: Drawing | None = None

    @property
    def trained(self) -> int:
        """Parameters with gradients."""
        return self.model.trained if self.roles is None else self.roles.trained

    @property
    def divided(self) -> int:
        """Parameters in the engine, which ZeRO 3 divides."""
        return self.model.held if self.roles is None else self.roles.in_engine


def phases(job: Job) -> list[Phase]:
    """What one GPU holds at each moment of a step."""
    more = job.passes > 1
    if job.roles is None or job.drawing is None:
        one = Pass(job.rows, job.length, job.rows * job.length, trees=job.stage in ("reward", "dpo"), more=more)
        return memory.supervised(job.model, job.way, one, LOSSES[job.stage])
    drawing = job.drawing
    groups = max(1, job.rows // drawing.samples)
    line = drawing.prompt + drawing.samples * drawing.answer
    one = Pass(groups, line, groups * drawing.samples * drawing.answer, trees=True, more=more)
    return reinforced(job.roles, job.way, one, drawing)


def fullest(job: Job) -> Phase:
    """The phase that needs the most."""
    return max(phases(job), key=lambda phase: phase.total)


def traffic(job: Job) -> Traffic:
    """Bytes that one GPU sends in an optimiser step, and in rl for one batch of answers."""
    return communication.traffic(
        zero=job.way.zero,
        gpus=job.way.gpus,
        passes=job.passes,
        trained=FP32 * job.trained,
        held=FP32 * job.divided,
        gathered=FP32 * job.model.held if job.roles is not None and job.way.gather else 0,
    )
