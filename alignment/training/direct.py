"""The adapter to TRL's DPOTrainer: our pairs, our collator, our loss, and a reference that is not a second model.

The loss is the mean over the pairs of −log σ(β[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])
(``objectives/preference.py``). π_ref is the weights that training starts from: what they give every answer is computed
once (:func:`pair_logprobs`) before the first step, and stands beside the pair from then on. Both answers of a pair
share the computation of their prompt (``gemma/branches.py``). Batches are counted in pairs.

Axes: P pairs, A the chosen and the rejected answer of each, N = 2P answers (chosen₁, rejected₁, chosen₂ …),
S tokens of all answers, T tokens of one answer, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from trl import DPOConfig, DPOTrainer

from alignment.gemma import branches, core
from alignment.gemma.branches import Lines, Spans, Tree
from alignment.objectives.preference import dpo_loss
from alignment.objectives.tokens import gather_logprobs
from alignment.training import loop, policies, zero
from alignment.training.engine import Engine, autocast
from alignment.training.loop import Course, Trained, Watcher
from alignment.training.optimisation import Optimisation
from alignment.training.pair_rows import PairRow, PairRows
from alignment.training.tracking import Tracker

TOKENS_A_BATCH = 8_192


def train(
    model: nn.Module,
    rows: PairRows,
    *,
    reference_PA: np.ndarray,
    beta: float,
    title: str,
    out: Path,
    tokenizer_folder: Path,
    pad_id: int,
    numbers: Optimisation,
    engine: Engine,
    tracker: Tracker,
    seed: int,
) -> Trained:
    """Train a policy in place on ``rows``; resumes from the last whole checkpoint below ``out``.

    ``reference_PA`` is what :func:`pair_logprobs` gave for the rows before the first step. Raises :class:`UserError`
    where the loss stops being a number.
    """
    # TRL reads its weights.
    zero.everywhere(model, engine.device)
    course = Course(title, out, numbers, engine, tracker, seed, len(rows))
    collate = DirectCollator(pad_id, branches.shares_prompts(model))

    def build(course: Course, watcher: Watcher) -> DirectTrainer:
        trainer = DirectTrainer(
            model=cast(PreTrainedModel, model),
            args=course.arguments(
                DPOConfig,
                beta=beta,
                precompute_ref_log_probs=True,  # It would load a second model otherwise.
                max_length=None,
                disable_dropout=False,  # It would silence an adapter's.
                **loop.computing_again(model, engine),
            ),
            train_dataset=_with_reference(rows, reference_PA),
            data_collator=loop.Counting(collate, watcher, len),  # type: ignore[arg-type]
            processing_class=AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False),
            callbacks=[watcher],
        )
        if "ref" in getattr(model, "peft_config", {}):
            # TRL copies an adapter to have a reference; ours is already known.
            cast(Any, model).delete_adapter("ref")
        trainer.adopt(course, course.batches(rows.lengths))
        _install_logprobs(core.causal_lm(cast(nn.Module, trainer.model)), engine)
        return trainer

    trained = loop.conduct(course, build)
    # It is asked again on the held-out pairs.
    zero.everywhere(model, engine.device)
    core.causal_lm(model).__dict__.pop("forward", None)
    return trained


@torch.no_grad()
def pair_logprobs(model: nn.Module, rows: Sequence[PairRow], *, pad_id: int, engine: Engine) -> np.ndarray:
    """``logprobs_PA``: log π of the chosen and of the rejected answer, summed over its tokens, in nats.

    In the arithmetic of training, so that a policy which has not moved is no further from its reference than rounding.
    """
    policies.read_here(model, engine)
    found_PA = np.zeros((len(rows), 2))
    share, was_training = branches.shares_prompts(model), model.training
    model.eval()
    by_length = sorted(range(len(rows)), key=lambda place: rows[place].tree.tokens)
    while by_length:
        many = max(1, TOKENS_A_BATCH // rows[by_length[-1]].tree.tokens)
        some, by_length = by_length[-many:], by_length[:-many]
        lines = {
            name: tensor.to(engine.device)
            for name, tensor in _laid_out([rows[place].tree for place in some], pad_id, share).items()
        }
        with autocast(engine):
            logprobs_N = batch_logprobs(model, lines, engine.settings.loss_chunk)
        found_PA[some] = logprobs_N.view(-1, 2).double().cpu().numpy()
    model.train(was_training)
    return found_PA


def batch_logprobs(model: nn.Module, lines: Lines, loss_chunk: int) -> Tensor:
    """``logprobs_N`` of a collated batch: log π of every answer with what closes it, in nats."""
    spans = Spans(*(lines[name] for name in Spans._fields))
    hidden_SD = branches.predictions(model, lines, spans)
    weight_VD, softcap = core.head(model)
    logprobs_S = gather_logprobs(hidden_SD, weight_VD, spans.ids_S, softcap=softcap, chunk_tokens=loss_chunk)
    # Summed by row and not by scattered additions, whose order a GPU does not promise.
    padded_NT = logprobs_S.new_zeros(len(lines["line"]), int(spans.step_S.max()) + 1)
    return padded_NT.index_put((spans.answer_S, spans.step_S), logprobs_S).sum(1)


@dataclass(frozen=True)
class DirectCollator:
    """Rows → lines (``gemma/branches.py``) with the spans of their answers, and beside them ``reference_PA``."""

    pad_id: int
    share: bool

    def __call__(self, rows: list[Mapping[str, Any]]) -> Lines:
        trees = [Tree(row["prompt_ids"], (row["chosen_ids"], row["rejected_ids"])) for row in rows]
        reference = [(row["reference_chosen"], row["reference_rejected"]) for row in rows]
        return _laid_out(trees, self.pad_id, self.share) | {"reference": torch.tensor(reference, dtype=torch.float32)}


class DirectTrainer(loop.Planned, DPOTrainer):
    """DPOTrainer with everything of ours in the places that its authors left for it."""

    loss_is_scaled_for_ga = False  # A micro-batch's loss is a mean over its pairs, whatever their lengths.

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of this micro-batch's pairs, in nats."""
        assert not return_outputs, "evaluation does not go through the trainer"
        chosen_P, rejected_P = model(**inputs, answer_logprobs=True)["logprobs"].view(-1, 2).unbind(1)
        reference_chosen_P, reference_rejected_P = inputs["reference"].unbind(1)
        loss = dpo_loss(chosen_P, rejected_P, reference_chosen_P, reference_rejected_P, self.beta).mean()
        self.need_finite(loss, inputs)
        # The rewards that the policy implies are logged as a reward model's scores are.
        rewards_PA = self.beta * torch.stack((chosen_P - reference_chosen_P, rejected_P - reference_rejected_P), 1)
        lead_P = rewards_PA[:, 0] - rewards_PA[:, 1]
        self._note("accuracy", (lead_P > 0).float() + 0.5 * (lead_P == 0).float())
        self._note("lead", lead_P)
        self._note("score", rewards_PA)
        return loss

    def _note(self, name: str, values: Tensor) -> None:
        """Have the mean of ``values`` over all processes logged."""
        mean = self.accelerator.gather(values.detach().mean()).mean()
        self._metrics["train"][name].append(mean.item())


def _with_reference(rows: PairRows, reference_PA: np.ndarray) -> Dataset:
    assert reference_PA.shape == (len(rows), 2), "two log-probabilities for every pair"
    dataset = rows.dataset
    for side, name in enumerate(("reference_chosen", "reference_rejected")):
        dataset = dataset.add_column(name, reference_PA[:, side].tolist())
    return dataset


def _laid_out(trees: Sequence[Tree], pad_id: int, share: bool) -> Lines:
    """Lines, and the spans of their answers under the names of :class:`Spans`."""
    lines = branches.lay_out(trees, pad_id=pad_id, share=share)
    return lines | branches.spans(lines, trees)._asdict()


def _install_logprobs(model: nn.Module, engine: Engine) -> None:
    """Let ``model(..., answer_logprobs=True)`` read lines: inside DDP's and DeepSpeed's forward, that is."""
    original: Callable[..., Any] = model.forward

    @functools.wraps(original)
    def forward(*args: Any, answer_logprobs: bool = False, **inputs: Any) -> Any:
        if not answer_logprobs:
            return original(*args, **inputs)
        with autocast(engine):
            return {"logprobs": batch_logprobs(model, cast(Lines, inputs), engine.settings.loss_chunk)}

    model.forward = forward
