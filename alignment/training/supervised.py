"""The adapter to TRL's SFTTrainer: our rows, our collator, our loss.

Rows arrive as ids and labels, and the loss is the NLL summed over answers, divided by the answers' tokens in the
*global* batch (a mean of means is wrong under accumulation and across ranks).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from alignment.gemma import branches, core
from alignment.objectives.imitation import chunked_nll
from alignment.training import loop
from alignment.training.engine import Engine, autocast
from alignment.training.loop import Course, Trained, Watcher
from alignment.training.optimisation import Optimisation
from alignment.training.rows import IGNORE, Collator, TokenRows
from alignment.training.tracking import Tracker


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
    course = Course(title, out, numbers, engine, tracker, seed, len(rows))
    collate = Collator(pad_id, engine.packed, one_line=not branches.shares_prompts(model))

    def build(course: Course, watcher: Watcher) -> SupervisedTrainer:
        trainer = SupervisedTrainer(
            model=cast(PreTrainedModel, model),
            args=course.arguments(
                SFTConfig,
                max_length=None,
                packing=False,
                average_tokens_across_devices=True,
                **loop.computing_again(model, engine),
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=rows.dataset(),
            data_collator=loop.Counting(collate, watcher, _tokens),
            processing_class=AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False),
            callbacks=[watcher],
        )
        trainer.adopt(course, course.batches(rows.lengths))
        trainer.model_accepts_loss_kwargs = True
        _install_loss_head(core.causal_lm(cast(nn.Module, trainer.model)), engine)
        return trainer

    trained = loop.conduct(course, build)
    core.causal_lm(model).__dict__.pop("forward", None)
    return trained


def _tokens(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(row["input_ids"]) for row in rows)


class SupervisedTrainer(loop.Planned, SFTTrainer):
    """SFTTrainer with everything of ours in the places that its authors left for it."""

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
        self.need_finite(nll, inputs)
        # Gradients are averaged over the processes, and the count is already global.
        return nll * (self.accelerator.num_processes / num_items_in_batch)


def _install_loss_head(model: core.CausalLM, engine: Engine) -> None:
    """Let ``model(..., answer_nll=True)`` return the summed NLL: inside DDP's and DeepSpeed's forward, that is."""
    original: Callable[..., Any] = model.forward

    @functools.wraps(original)
    def forward(*args: Any, answer_nll: bool = False, **inputs: Any) -> Any:
        if not answer_nll:
            return original(*args, **inputs)
        with autocast(engine):
            hidden_BTD = core.hidden_states(model, inputs["input_ids"], position_ids=inputs.get("position_ids"))
            weight_VD, softcap = core.head(model)
            hidden_ND, labels_N = hidden_BTD.flatten(0, 1), inputs["shift_labels"].flatten()
            chunk = engine.settings.loss_chunk
            return {"nll": chunked_nll(hidden_ND, weight_VD, labels_N, softcap=softcap, chunk_tokens=chunk)}

    model.forward = forward
