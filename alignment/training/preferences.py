"""The adapter to TRL's RewardTrainer: our pairs, our collator, our loss.

The loss is the mean over the pairs of −log σ(r_chosen − r_rejected − m), plus ``safety_weight`` times the mean over a
pair's two answers of the safety loss (``objectives/preference.py``). Batches are counted in pairs.

Axes: P pairs, N = 2P answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from trl import RewardConfig, RewardTrainer

from alignment.gemma import branches
from alignment.objectives.preference import bradley_terry, safety_loss
from alignment.training import loop
from alignment.training.engine import Engine, autocast
from alignment.training.loop import Course, Trained, Watcher
from alignment.training.optimisation import Optimisation
from alignment.training.pair_rows import PairCollator, PairRows
from alignment.training.tracking import Tracker


def train(
    model: nn.Module,
    rows: PairRows,
    *,
    safety_weight: float,
    title: str,
    out: Path,
    tokenizer_folder: Path,
    pad_id: int,
    numbers: Optimisation,
    engine: Engine,
    tracker: Tracker,
    seed: int,
) -> Trained:
    """Train a reward model in place on ``rows``; resumes from the last whole checkpoint below ``out``.

    Raises :class:`UserError` where the loss stops being a number.
    """
    course = Course(title, out, numbers, engine, tracker, seed, len(rows))
    collate = PairCollator(pad_id, branches.shares_prompts(model))

    def build(course: Course, watcher: Watcher) -> PreferenceTrainer:
        trainer = PreferenceTrainer(
            model=cast(PreTrainedModel, model),
            args=course.arguments(
                RewardConfig,
                max_length=None,
                disable_dropout=False,  # It would silence an adapter's.
                **loop.computing_again(model, engine),
            ),
            train_dataset=rows.dataset,
            data_collator=loop.Counting(collate, watcher, _pairs),  # type: ignore[arg-type]
            processing_class=AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False),
            callbacks=[watcher],
        )
        trainer.adopt(course, course.batches(rows.lengths))
        trainer.safety_weight = safety_weight
        trainer.model_accepts_loss_kwargs = False  # A batch's loss is a mean over pairs, whatever their lengths.
        _install_scores(_base(cast(nn.Module, trainer.model)), engine)
        return trainer

    trained = loop.conduct(course, build)
    _base(model).__dict__.pop("forward", None)
    return trained


def _pairs(rows: Sequence[Mapping[str, Any]]) -> int:
    return len(rows)


class PreferenceTrainer(loop.Planned, RewardTrainer):
    """RewardTrainer with everything of ours in the places that its authors left for it."""

    safety_weight = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of this micro-batch's pairs, in nats."""
        assert not return_outputs, "evaluation does not go through the trainer"
        scores_N = model(**inputs, answer_scores=True)["scores"]
        chosen_P, rejected_P = scores_N[0::2], scores_N[1::2]
        loss = bradley_terry(chosen_P, rejected_P, inputs["margin"]).mean()
        if self.safety_weight:
            safety = safety_loss(scores_N, inputs["safe"]).mean()
            loss = loss + self.safety_weight * safety
            self._note("safety_loss", safety)
        self.need_finite(loss, inputs)
        lead_P = chosen_P - rejected_P
        self._note("accuracy", (lead_P > 0).float() + 0.5 * (lead_P == 0).float())
        self._note("lead", lead_P)
        self._note("score", scores_N)
        return loss

    def _note(self, name: str, values: Tensor) -> None:
        """Have the mean of ``values`` over all processes logged."""
        mean = self.accelerator.gather(values.detach().mean()).mean()
        self._metrics["train"][name].append(mean.item())


def _base(model: nn.Module) -> nn.Module:
    return getattr(model, "get_base_model", lambda: model)()


def _install_scores(model: nn.Module, engine: Engine) -> None:
    """Let ``model(..., answer_scores=True)`` score lines: inside DDP's and DeepSpeed's forward, that is."""
    original: Callable[..., Any] = model.forward

    @functools.wraps(original)
    def forward(*args: Any, answer_scores: bool = False, **inputs: Any) -> Any:
        if not answer_scores:
            return original(*args, **inputs)
        with autocast(engine):
            return {"scores": branches.scores(model, cast(dict[str, torch.Tensor], inputs))}

    model.forward = forward
