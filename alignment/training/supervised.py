"""The one adapter to TRL's SFTTrainer: our rows, our collator, our loss, our checkpoints.

From TRL and transformers come the loop, the optimiser, the schedule, mixed precision, DDP and
DeepSpeed. What is trained and how the loss is normalised is decided before and after: rows arrive as
ids and labels, and the loss is the NLL summed over answers, divided by the answers' tokens in the
*global* batch (TRAPS: a mean of means is wrong under accumulation and across ranks).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

if not torch.cuda.is_available():
    # DeepSpeed, where installed, would otherwise look for an accelerator and print that there is none.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from alignment import console
from alignment.errors import UserError
from alignment.gemma import core
from alignment.objectives.imitation import chunked_nll
from alignment.training import checkpoints
from alignment.training.engine import Engine, batch_arithmetic, deepspeed_config
from alignment.training.optimisation import Optimisation, total_steps
from alignment.training.rows import IGNORE, Collator, PlannedBatches, TokenRows
from alignment.training.tracking import Tracker, read_metrics


@dataclass(frozen=True)
class Trained:
    """What a training run says of itself."""

    steps: int
    tokens: int
    """Real tokens seen by this process since it started, padding not counted."""
    seconds: float
    loss: float
    """Mean NLL per trained token over the last logged steps, in nats."""
    resumed_from: int | None


def train(
    model: nn.Module,
    rows: TokenRows,
    *,
    title: str,
    out: Path,
    tokenizer_folder: Path,
    pad_id: int,
    numbers: Optimisation,
    engine: Engine,
    tracker: Tracker,
    seed: int,
) -> Trained:
    """Train ``model`` in place on ``rows``; resumes from the last whole checkpoint below ``out``.

    Raises :class:`UserError` where the loss stops being a number.
    """
    micro, accumulation = batch_arithmetic(numbers.batch, engine)
    steps = total_steps(numbers, len(rows))
    folder = out / "checkpoints"
    checkpoint = checkpoints.last_whole(folder)
    tracker.rewind(checkpoints.step_of(checkpoint) if checkpoint else 0)
    with console.progress(title, steps, "steps") as progress:
        watcher = _Watcher(tracker, progress)
        trainer = SupervisedTrainer(
            model=cast(PreTrainedModel, model),
            args=_arguments(folder, numbers, engine, tracker_every(tracker, steps), steps, micro, accumulation, seed),
            train_dataset=rows.dataset(),
            data_collator=_Counting(Collator(pad_id, engine.packed), watcher),
            processing_class=AutoTokenizer.from_pretrained(tokenizer_folder),
            callbacks=[watcher],
        )
        trainer.adopt(folder, rows, numbers, steps, micro, seed, engine.settings.loss_chunk)
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    core.causal_lm(model).__dict__.pop("forward", None)
    resumed = checkpoints.step_of(checkpoint) if checkpoint else None
    # From the file and not from memory: a run that was killed after its last step has no step left to log.
    logged = [row["loss"] for row in read_metrics(tracker.path) if "loss" in row]
    return Trained(steps, watcher.tokens, result.metrics["train_runtime"], logged[-1], resumed)


def tracker_every(tracker: Tracker, steps: int) -> int:
    """Steps between rows of metrics, but at least ten rows a run."""
    return max(1, min(tracker.every, steps // 10))


def _arguments(
    folder: Path,
    numbers: Optimisation,
    engine: Engine,
    every: int,
    steps: int,
    micro: int,
    accumulation: int,
    seed: int,
) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=numbers.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": numbers.final_rate},
        warmup_steps=max(numbers.warmup_at_least, math.ceil(numbers.warmup_share * steps)),
        weight_decay=numbers.weight_decay,
        adam_beta1=numbers.beta1,
        adam_beta2=numbers.beta2,
        adam_epsilon=numbers.epsilon,
        max_grad_norm=numbers.clip_norm,
        optim="adamw_torch_fused",
        bf16=engine.bf16,
        use_cpu=engine.device == "cpu",
        activation_checkpointing=engine.settings.gradient_checkpointing,
        deepspeed=deepspeed_config(engine),
        average_tokens_across_devices=True,
        seed=seed,
        data_seed=seed,
        logging_steps=every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=numbers.checkpoint_steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


class SupervisedTrainer(SFTTrainer):
    """SFTTrainer with everything of ours in the places that its authors left for it."""

    def adopt(
        self, folder: Path, rows: TokenRows, numbers: Optimisation, steps: int, micro: int, seed: int, loss_chunk: int
    ) -> None:
        """Take our batches and loss; separate from the constructor, which is TRL's."""
        self._folder = self._writing = folder
        self._batches = PlannedBatches(rows.lengths, numbers.batch, steps, seed, numbers.length_window, micro)
        self.remove_callback(PrinterCallback)
        self.processing_class = None  # The stage saves the tokenizer, once.
        self.model_accepts_loss_kwargs = True
        _install_loss_head(core.causal_lm(cast(nn.Module, self.model)), loss_chunk)

    def get_train_dataloader(self) -> DataLoader:
        """One pass over the planned batches is the whole run."""
        assert self.train_dataset is not None, "the constructor was given rows"
        loader: DataLoader = DataLoader(self.train_dataset, batch_sampler=self._batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor:
        """Trained tokens of the global batch: over all micro-batches and all processes."""
        counts = [(batch["shift_labels"] != IGNORE).sum() for batch in batch_samples]
        return self.accelerator.gather(torch.stack(counts).sum().to(device)).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """NLL of this micro-batch over the trained tokens of the global batch."""
        assert num_items_in_batch is not None, "the loop counts the global batch's tokens"
        assert not return_outputs, "evaluation does not go through the trainer"
        nll = model(**inputs, answer_nll=True)["nll"]
        # Gradients are averaged over the processes, and the count is already global.
        return nll * (self.accelerator.num_processes / num_items_in_batch)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # TRL's own adds a model card; transformers' own writes in place. Ours is whole or not there.
        step = self.state.global_step
        if not console.is_main_process():
            self._writing = self._folder / f"checkpoint-{step}.partial"
            Trainer._save_checkpoint(self, model, trial)
            self.accelerator.wait_for_everyone()
            self.accelerator.wait_for_everyone()
            return
        with checkpoints.writing(self._folder, step) as beside:
            self._writing = beside
            Trainer._save_checkpoint(self, model, trial)
            written = beside / f"checkpoint-{step}"
            self.accelerator.wait_for_everyone()
            for path in written.iterdir():
                os.replace(path, beside / path.name)
            written.rmdir()
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing)


def _install_loss_head(model: core.CausalLM, loss_chunk: int) -> None:
    """Let ``model(..., answer_nll=True)`` return the summed NLL: inside DDP's and DeepSpeed's forward, that is."""
    original: Callable[..., Any] = model.forward

    @functools.wraps(original)
    def forward(*args: Any, answer_nll: bool = False, **inputs: Any) -> Any:
        if not answer_nll:
            return original(*args, **inputs)
        hidden_BTD = core.hidden_states(model, inputs["input_ids"], position_ids=inputs.get("position_ids"))
        weight_VD, softcap = core.head(model)
        hidden_ND, labels_N = hidden_BTD.flatten(0, 1), inputs["shift_labels"].flatten()
        return {"nll": chunked_nll(hidden_ND, weight_VD, labels_N, softcap=softcap, chunk_tokens=loss_chunk)}

    model.forward = forward


class _Watcher(TrainerCallback):
    """Moves the bar, writes the metrics, stops on a loss that is not a number."""

    def __init__(self, tracker: Tracker, progress: console.Progress) -> None:
        self.tracker, self.progress = tracker, progress
        self.tokens, self.loss = 0, math.nan

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
        names = ("loss", "grad_norm", "learning_rate")
        self.tracker.log(state.global_step, {name: float(logs[name]) for name in names if name in logs})


class _Counting:
    """A collator that counts real tokens on their way."""

    def __init__(self, collator: Collator, watcher: _Watcher) -> None:
        self._collator, self._watcher = collator, watcher

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        self._watcher.tokens += sum(len(row["input_ids"]) for row in rows)
        return self._collator(rows)
