"""A stage on its engine: the phases of a step on one of its GPUs, and what that GPU sends.

Sizes are taken as large as the settings allow: every row is as long as is said, and all of its tokens carry loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.estimate import communication, memory
from alignment.estimate.arithmetic import FP32, Model
from alignment.estimate.communication import Traffic
from alignment.estimate.distillation import Teaching, distilled
from alignment.estimate.memory import Loss, Pass, Phase, Way
from alignment.estimate.roles import Drawing, Roles, gathered, reinforced

Stage = Literal["pretrain", "sft", "distill", "reward", "dpo", "rl"]
LOSSES: dict[Stage, Loss] = {"pretrain": "nll", "sft": "nll", "reward": "score", "dpo": "logprobs"}


@dataclass(frozen=True, slots=True)
class Job:
    """``rows`` (in rl: answers) of ``length`` tokens are a forward pass on each GPU, ``passes`` of them a step.

    In reward and dpo a row is a pair, prompt and both answers. In rl ``roles`` and ``drawing`` say the rest, and a
    prompt with its answers is a line of its own. In distill ``teaching`` does, and of drawn rows only answers carry
    loss.
    """

    stage: Stage
    model: Model
    way: Way
    rows: int
    length: int
    passes: int
    roles: Roles | None = None
    drawing: Drawing | None = None
    teaching: Teaching | None = None

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
    if job.teaching is not None:
        answer = job.length if job.teaching.drawing is None else job.teaching.drawing.answer
        one = Pass(job.rows, job.length, job.rows * answer, more=job.passes > 1)
        return distilled(job.model, job.way, one, job.teaching)
    if job.roles is None or job.drawing is None:
        trees = job.stage in ("reward", "dpo")
        one = Pass(job.rows, job.length, job.rows * job.length, trees=trees, more=job.passes > 1)
        return memory.supervised(job.model, job.way, one, LOSSES[job.stage])
    return reinforced(job.roles, job.way, _of_trees(job, job.drawing), job.drawing)


def _of_trees(job: Job, drawing: Drawing) -> Pass:
    """A forward pass over prompts with their answers."""
    groups = max(1, job.rows // drawing.samples)
    line = drawing.prompt + drawing.samples * drawing.answer
    return Pass(groups, line, groups * drawing.samples * drawing.answer, trees=True, more=job.passes > 1)


def fullest(job: Job) -> Phase:
    """The phase that needs the most."""
    return max(phases(job), key=lambda phase: phase.total)


def traffic(job: Job) -> Traffic:
    """Bytes that one GPU sends in an optimiser step, and for one batch of answers where some are drawn."""
    rollout = 0.0 if job.teaching is None else job.teaching.gathered(job.model)
    if job.roles is not None and job.drawing is not None:
        rollout = gathered(job.roles, job.way, _of_trees(job, job.drawing), job.drawing)
    return communication.traffic(
        zero=job.way.zero,
        gpus=job.way.gpus,
        passes=job.passes,
        trained=FP32 * job.trained,
        held=FP32 * job.divided,
        gathered=rollout,
        read=0.0 if job.teaching is None else job.teaching.read,
    )
