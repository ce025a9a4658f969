"""A run that is asked to stop ends at the end of a step, in all its processes, with everything that the next one needs.

``signals.py`` sets a flag in each process, at moments of their own. At the end of every step the flags are compared:
where one process was asked, all of them save, and end alike. A run whose last step is done is finished instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from alignment import ranks, signals
from alignment.training import watchdog

if TYPE_CHECKING:
    from transformers import Trainer


def agreed(device: str | torch.device) -> int:
    """The number of the signal by which any process was asked to stop, the same in all of them; 0 where none was.

    All processes call it at the same point.
    """
    if ranks.world() == 1:
        return signals.asked()
    flag = torch.tensor(signals.asked(), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return int(flag)


def heed(device: str | torch.device, where: str) -> None:
    """Raise :class:`signals.Preempted` in every process where one was asked to stop; called by all at once."""
    number = agreed(device)
    if number:
        raise signals.Preempted(number, where)


class StepEnds(TrainerCallback, ExportableState):
    """What a trainer of transformers' does at the end of a step besides: shows that it lives, and looks for a stop.

    The losses since the last row of metrics, and what else a row tells, are kept with a checkpoint, so that a stop
    between two rows leaves the next row as it would have been.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._losses = trainer, [0.0]
        self.stopped = 0
        """The number of the signal that ended the run before its last step, or 0."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the sum of losses of each process, what was noted of the steps besides, and the step
        after which that began.
        """
        trainer = self._trainer
        since = getattr(trainer, "_globalstep_last_logged", 0)
        unsaid = trainer.state.global_step > since
        losses = self._losses if unsaid else [0.0] * len(self._losses)
        noted = {name: list(values) for name, values in self._noted.items()} if unsaid else {}
        return {"args": {}, "attributes": {"losses": losses, "noted": noted, "since": since}}

    @property
    def _noted(self) -> dict[str, list[float]]:
        """What TRL's trainers gather between two rows, by name."""
        trainer: Any = self._trainer
        found: dict[str, list[float]] = trainer._metrics["train"]
        return found

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        if state.global_step > kept["since"] and sum(kept["losses"]):
            share, losses = ranks.rank(), kept["losses"]
            # Of another number of processes only the mean is known, which is all that a row tells.
            self._trainer._tr_loss += losses[share] if len(losses) == ranks.world() else sum(losses) / len(losses)
            self._trainer._globalstep_last_logged = kept["since"]
            for name, values in kept["noted"].items():
                self._noted[name] = list(values)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        watchdog.alive()
        if state.global_step < state.max_steps:
            self.stopped = agreed(args.device)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        if control.should_save:
            loss = self._trainer._tr_loss.detach().float().reshape(1)
            self._losses = self._trainer.accelerator.gather(loss).tolist()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        watchdog.alive()

    def end(self) -> None:
        """Raise :class:`signals.Preempted` where the run was stopped; its checkpoint is whole by now."""
        if self.stopped:
            step, steps = self._trainer.state.global_step, self._trainer.state.max_steps
            raise signals.Preempted(self.stopped, f"after step {step:,} of {steps:,}")
