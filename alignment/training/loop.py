"""What our adapters to TRL's trainers share: the planned order, whole checkpoints, watching, and the end on a NaN.

From TRL and transformers come the loop, the optimiser, the schedule, mixed precision, DDP and DeepSpeed. What is
trained and how the loss is normalised is decided by the adapters (``supervised.py``, ``preferences.py``).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from alignment import console
from alignment.errors import UserError
from alignment.training import checkpoints, finite, team, universal, watchdog, zero
from alignment.training.engine import Engine, batch_arithmetic
from alignment.training.optimisation import Optimisation, total_steps
from alignment.training.preemption import StepEnds
from alignment.training.rows import PlannedBatches
from alignment.training.snapshots import Aside
from alignment.training.tracking import Tracker, read_metrics

Arguments = TypeVar("Arguments", bound=TrainingArguments)


@dataclass(frozen=True)
class Trained:
    """What a training run says of itself."""

    steps: int
    amount: int
    """What all processes have seen since they started: real tokens, padding not counted, or pairs."""
    seconds: float
    loss: float
    """Of the last logged steps: mean NLL per trained token, or mean loss per pair, in nats."""
    resumed_from: int | None


@dataclass(frozen=True)
class Course:
    """A run that is about to begin: what it does, where, with which numbers."""

    title: str
    out: Path
    numbers: Optimisation
    engine: Engine
    tracker: Tracker
    seed: int
    rows: int
    universal: bool = False
    """Whether it goes on from a checkpoint of another number of processes under DeepSpeed."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return total_steps(self.numbers, self.rows)

    @property
    def folder(self) -> Path:
        """Where its checkpoints lie."""
        return self.out / "checkpoints"

    @property
    def every(self) -> int:
        """Steps between rows of metrics, but at least ten rows a run."""
        return max(1, min(self.tracker.every, self.steps // 10))

    def batches(self, lengths: Any) -> PlannedBatches:
        """The rows of every step, those of like length together."""
        micro, _ = batch_arithmetic(self.numbers.batch, self.engine)
        return PlannedBatches(lengths, self.numbers.batch, self.steps, self.seed, self.numbers.length_window, micro)

    def arguments(self, kind: type[Arguments], **more: Any) -> Arguments:
        """The trainer's configuration, of TRL's class ``kind``."""
        numbers, engine = self.numbers, self.engine
        micro, accumulation = batch_arithmetic(numbers.batch, engine)
        # DeepSpeed would turn the weights into bf16; the adapters autocast instead.
        mixed = engine.bf16 and not engine.settings.zero
        if zero.begin(engine):
            more["accelerator_config"] = {"use_configured_state": True}
        return kind(
            output_dir=str(self.folder),
            max_steps=self.steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            learning_rate=numbers.learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": numbers.final_rate},
            warmup_steps=max(numbers.warmup_at_least, math.ceil(numbers.warmup_share * self.steps)),
            weight_decay=numbers.weight_decay,
            adam_beta1=numbers.beta1,
            adam_beta2=numbers.beta2,
            adam_epsilon=numbers.epsilon,
            max_grad_norm=numbers.clip_norm,
            optim="adamw_torch_fused",
            bf16=mixed,
            use_cpu=engine.device == "cpu" and not engine.settings.zero,
            deepspeed=zero.config(engine, universal=self.universal),
            seed=self.seed,
            data_seed=self.seed,
            logging_steps=self.every,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=numbers.checkpoint_steps,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            **more,
        )


def conduct(course: Course, build: Callable[[Course, Watcher], Planned]) -> Trained:
    """Train what ``build`` makes; goes on from the last whole checkpoint where there is one."""
    checkpoint = team.from_main(lambda: checkpoints.last_whole(course.folder))
    resumed = checkpoints.step_of(checkpoint) if checkpoint else None
    course.tracker.rewind(resumed or 0)
    if checkpoint is not None:
        found = universal.fitting(checkpoint, course.engine, course.out)
        course, checkpoint = replace(course, universal=found != checkpoint), found
    minutes = course.engine.settings.watchdog_minutes
    with console.progress(course.title, course.steps, "steps") as progress, watchdog.watching(course.out, minutes):
        watcher = Watcher(course.tracker, progress)
        trainer = build(course, watcher)
        trainer.add_callback(Aside(course.out, course.numbers.snapshots))
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.ends.end()
    trainer.need_finite_weights(cast(nn.Module, trainer.model))
    zero.end(trainer.model_wrapped, course.engine)
    amount = sum(team.exchange(watcher.amount))
    # From the file and not from memory: a run that was killed after its last step has no step left to log.
    loss = team.from_main(lambda: [row["loss"] for row in read_metrics(course.tracker.path) if "loss" in row][-1])
    return Trained(course.steps, amount, result.metrics["train_runtime"], loss, resumed)


def computing_again(model: nn.Module, engine: Engine) -> dict[str, Any]:
    """What a trainer's configuration says of activations that are computed again in the backward pass."""
    again, reentrant = engine.settings.gradient_checkpointing, zero.needs_reentrance(model, engine)
    if again and reentrant:
        # Such a checkpoint gives no gradients to what is within it where its input has none.
        cast(Any, model).enable_input_require_grads()
    return {"activation_checkpointing": again, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}


class Planned(Trainer):
    """To be mixed into a trainer of TRL's: our order of rows, our checkpoints."""

    def adopt(self, course: Course, batches: Sampler[list[int]]) -> None:
        """Take our batches and our folder; separate from the constructor, which is TRL's."""
        self._folder = self._writing = course.folder
        self._out, self._engine = course.out, course.engine
        self._batches = batches
        self._learned_from: deque[Mapping[str, Any]] = deque(maxlen=self.args.gradient_accumulation_steps)
        self.remove_callback(PrinterCallback)
        self.ends = StepEnds(self)
        self.add_callback(self.ends)
        self.processing_class = None  # The stage saves the tokenizer, once.

    def get_train_dataloader(self) -> DataLoader:
        """One pass over the planned batches is the whole run."""
        assert self.train_dataset is not None, "the constructor was given rows"
        loader: DataLoader = DataLoader(self.train_dataset, batch_sampler=self._batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
        """TRL's own, of a micro-batch; those of the last step are at hand."""
        self._learned_from.append(inputs)
        loss: Tensor = super().training_step(model, inputs, *rest, **more)
        return loss

    def need_finite(self, loss: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Stop where a loss is not a number, with the batch that made it saved. Raises :class:`UserError`."""
        if bool(torch.isfinite(loss)):
            return
        path = finite.save_batch(self._out, [inputs])
        raise UserError(
            f"the loss is {loss.item()} at step {self.state.global_step + 1}",
            cause="A learning rate that is too high, or weights that were damaged before.",
            remedy=f"Lower optimisation.learning_rate; the batch is in {path}, the last whole checkpoint from before.",
        )

    def need_finite_weights(self, model: nn.Module) -> None:
        """Stop where a trained weight is not a number, with the last step's batch saved. Raises :class:`UserError`."""
        trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
        rate, step = "optimisation.learning_rate", self.state.global_step
        finite.need_weights(trained, step, rate=rate, out=self._out, batch=self._learned_from)

    def _prepare_for_training(self, *args: Any, **more: Any) -> Any:
        zero.divide_for(cast(nn.Module, self.model), self._engine)
        prepared = super()._prepare_for_training(*args, **more)
        zero.need_engine(self.model_wrapped, self._engine, self.accelerator.num_processes)
        universal.divide_steps(self.model_wrapped)
        return prepared

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # TRL's own adds a model card; transformers' own writes in place. Ours is whole or not there.
        step = self.state.global_step
        self.need_finite_weights(model)
        with checkpoints.writing_together(self._folder, step, team.meet) as beside:
            self._writing = beside
            Trainer._save_checkpoint(self, model, trial)
            team.meet()
            if console.is_main_process():
                written = beside / f"checkpoint-{step}"
                for path in written.iterdir():
                    os.replace(path, beside / path.name)
                written.rmdir()
                self.keep_besides(beside)
                universal.describe(beside, self._engine)

    def keep_besides(self, folder: Path) -> None:
        """Write into a checkpoint what else the next step needs; done by the main process alone."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint; DeepSpeed's own has them."""
        if not self._engine.settings.zero:
            super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing)


LOGGED = (
    *("loss", "divergence", "nll", "clipped"),
    *("accuracy", "lead", "score", "safety_loss"),
    *("grad_norm", "learning_rate"),
)


class Watcher(TrainerCallback):
    """Moves the bar, writes the metrics, stops on a loss that is not a number."""

    def __init__(self, tracker: Tracker, progress: console.Progress) -> None:
        self.tracker, self.progress = tracker, progress
        self.amount, self.loss = 0, math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.begin_at(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.advance(1, "" if math.isnan(self.loss) else f"loss {self.loss:.3f}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.loss = logs["loss"]
        if not math.isfinite(self.loss):
            raise UserError(
                f"the loss is {self.loss} at step {state.global_step}",
                cause="A learning rate that is too high, or weights that were damaged before.",
                remedy="Lower optimisation.learning_rate; the last whole checkpoint is from before.",
            )
        self.tracker.log(state.global_step, {name: float(logs[name]) for name in LOGGED if name in logs})


class Counting:
    """A collator that counts on the way what the rows amount to."""

    def __init__(
        self,
        collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
        watcher: Watcher,
        amount: Callable[[Sequence[Mapping[str, Any]]], int],
    ) -> None:
        self._collate, self._watcher, self._amount = collate, watcher, amount

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        self._watcher.amount += self._amount(rows)
        return self._collate(rows)
